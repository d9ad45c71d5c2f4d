"""The data sets by name: CIFAR, the built-in shapes, and image folders and lists."""

import os
from pathlib import Path
from typing import Any

from resnet_tf.data.arrays import Dataset, Split, channel_statistics, fingerprint, stratified_split  # noqa: F401
from resnet_tf.errors import UserError

DATASETS = ("cifar10", "cifar100", "shapes")
IMAGE_FORMS = ("folder:PATH", "list:TRAIN[,[VALID][,TEST]]")
ON_BAD = ("stop", "skip")


def is_image_dataset(name: str) -> bool:
    """Whether a name stands for an image folder or image lists."""
    return name.startswith(("folder:", "list:"))


def check_name(name: str, data_dir: Any = None) -> None:
    """Raise UserError where a name stands for no data, or `data_dir` does not go with it; look for no files."""
    if name not in DATASETS and not is_image_dataset(name):
        raise UserError(f"dataset={name!r} is not known; allowed: {', '.join((*DATASETS, *IMAGE_FORMS))}")
    if data_dir is not None and is_image_dataset(name):
        raise UserError(f"data_dir=… does not go with dataset={name!r}, which says where it is; leave it out")


def short_name(name: str) -> str:
    """What a data set is called in the name of a run: for images, the name of the folder or of the first list."""
    if not is_image_dataset(name):
        return name
    place = Path(name.partition(":")[2].partition(",")[0].strip()).absolute()
    return place.stem if name.startswith("list:") else place.name


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set into memory.

    Args:
        name: "cifar10", "cifar100" or "shapes" (drawn on the spot).
        data_dir: folder or archive with CIFAR; None looks into Keras' cache, then downloads.

    Returns:
        Images uint8 (N, H, W, C) and labels int32 (N,) to train and to test on.

    Raises:
        UserError: the name is not known, the files are not there, or they are damaged.
    """
    if name == "shapes":
        if data_dir is not None:
            raise UserError("data_dir=… does not go with dataset='shapes', which is drawn on the spot; leave it out")
        from resnet_tf.data.shapes import load_shapes

        return load_shapes()
    if name in ("cifar10", "cifar100"):
        from resnet_tf.data.cifar import load_cifar

        return load_cifar(name, None if data_dir is None else os.fspath(data_dir))
    raise UserError(f"dataset={name!r} is not known; allowed: {', '.join(DATASETS)}")
