"""`python -m resnet_tf` is the console command `resnet-tf`."""

from resnet_tf.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
