"""Score a saved model or a run: the same as `resnet-tf evaluate`."""

import sys

from resnet_tf.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["evaluate", *sys.argv[1:]]))
