"""The data sets by name, as the commands know them."""

from pathlib import Path

from resnet_tf.data.dataset import Dataset
from resnet_tf.errors import UserError

DATASETS = ("cifar10", "cifar100", "shapes")


def load_dataset(name: str, data_dir: str | None) -> Dataset:
    """Load a data set into memory.

    Args:
        name: one of `DATASETS`.
        data_dir: where CIFAR lies; None looks into Keras' cache, then downloads.

    Raises:
        UserError: the name is not known, the files are not there, or they are damaged.
    """
    if name == "shapes":
        if data_dir is not None:
            raise UserError("--data-dir does not go with --dataset shapes, which is drawn on the spot; leave it out")
        from resnet_tf.data.shapes import load_shapes

        return load_shapes()
    if name in ("cifar10", "cifar100"):
        from resnet_tf.data.cifar import load_cifar

        return load_cifar(name, None if data_dir is None else Path(data_dir))
    raise UserError(f"--dataset {name} is not known; allowed: {', '.join(DATASETS)}")
