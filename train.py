"""Train a network: the same as `resnet-tf train`."""

import sys

from resnet_tf.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
