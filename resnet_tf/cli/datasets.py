"""The data sets by name, as the commands know them."""

from pathlib import Path

from resnet_tf.data.dataset import Dataset, is_own
from resnet_tf.errors import UserError

DATASETS = ("cifar10", "cifar100", "shapes")
OWN_FORMS = ("folder:PATH", "list:TRAIN[,[VALID][,TEST]]")
ON_BAD = ("stop", "skip")


def check_name(name: str, data_dir: str | None = None) -> None:
    """Find out whether a name can stand for data, without looking for any.

    Raises:
        UserError: it cannot, or --data-dir does not go with it.
    """
    if name not in DATASETS and not is_own(name):
        raise UserError(f"--dataset {name} is not known; allowed: {', '.join((*DATASETS, *OWN_FORMS))}")
    if data_dir is not None and is_own(name):
        raise UserError(f"--data-dir does not go with --dataset {name}, which says where it is; leave it out")


def short_name(name: str) -> str:
    """What a data set is called in the name of a run: of own images, the name of the folder or the first list."""
    if not is_own(name):
        return name
    place = Path(name.partition(":")[2].partition(",")[0].strip()).absolute()
    return place.stem if name.startswith("list:") else place.name


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
