"""Data sets in memory (splitting, digests) and the names that data go by."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_tf.errors import UserError

IMAGE_FORMS = ("folder:PATH", "list:TRAIN[,[VALID][,TEST]]")
# Keeps the split's random numbers apart from every other generator that is keyed by the same seed.
_SPLIT_STREAM = 0x5B11

_TRAIN_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""

Channels = tuple[float, ...]


@dataclass(frozen=True)
class CifarInfo:
    """What is known of one of the two data sets; the binary version's files have the same names with `.bin`."""

    title: str
    class_names: tuple[str, ...]
    label_key: str
    header: int  # bytes before the pixels of a binary record; the last of them is the (fine) label
    train: tuple[str, ...]
    test: str
    python_folder: str
    binary_folder: str
    sha256: str
    md5: tuple[str, ...]  # of the files of the Python version
    content: tuple[str, ...] = ()  # fingerprints of the images to train and to test on, in whatever files

    def files(self, suffix: str) -> tuple[str, ...]:
        return tuple(name + suffix for name in (*self.train, self.test))

    def archives(self) -> tuple[str, ...]:
        """The official names (Python, binary) first, then those that Keras gives and gave to the same file."""
        official = tuple(f"{self.title.lower()}-{version}.tar.gz" for version in ("python", "binary"))
        return *official, f"{self.keras_name}_archive", f"{self.python_folder}.tar.gz"

    @property
    def keras_name(self) -> str:
        return f"{self.python_folder}-target"

    @property
    def advice(self) -> str:
        return f"fetch {self.archives()[0]} or {self.archives()[1]} again"


KINDS = {
    "cifar10": CifarInfo(
        title="CIFAR-10",
        class_names=tuple(_CIFAR10_NAMES.split()),
        label_key="labels",
        header=1,
        train=_TRAIN_BATCHES,
        test="test_batch",
        python_folder="cifar-10-batches-py",
        binary_folder="cifar-10-batches-bin",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        md5=(
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
        ),
        content=(
            "031aaec00b1cad0e6b78899221fafe66bbf8c81337867813838a196c01589ad6",
            "543c4c74cd4daa69c9ace9d83e9f92829c4faee2d8744088b45ab313fc73e25e",
        ),
    ),
    "cifar100": CifarInfo(
        title="CIFAR-100",
        class_names=tuple(_CIFAR100_NAMES.split()),
        label_key="fine_labels",
        header=2,
        train=("train",),
        test="test",
        python_folder="cifar-100-python",
        binary_folder="cifar-100-binary",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        md5=("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
}
DATASETS = (*KINDS, "shapes")


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, H, W, C) uint8 RGB with their labels (N,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in memory, to train on and, where there are such, to test and validate on.

    Attributes:
        name: what the data set is called.
        source: in words, which variant of it this is ("original", "built-in").
        class_names: names of the classes in the order of their labels.
        train: images to train on, part of which is kept for validation where there is no `validation`.
        test: images to test on, or None.
        validation: images to validate on, or None.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    test: Split | None = None
    validation: Split | None = None


def class_indices(labels: Any) -> np.ndarray:
    """Class numbers int32 (N,) of labels that are whole numbers (N,) or (N, 1), or one-hot (N, classes).

    Raises ValueError for any others, such as the soft labels of mixed images.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf" or labels.ndim not in (1, 2):
        raise ValueError(f"labels of dtype {labels.dtype} and shape {labels.shape}")
    if labels.ndim == 2 and labels.shape[1] != 1:
        if not np.all((labels == 0) | (labels == 1)) or not np.all(labels.sum(axis=1) == 1):
            raise ValueError(f"labels of shape {labels.shape} that are not one-hot")
        return labels.argmax(axis=1).astype(np.int32)
    if labels.dtype.kind == "f" and not np.all(labels == np.rint(labels)):
        raise ValueError("labels that are not whole numbers")
    return labels.reshape(-1).astype(np.int32)


def fingerprint(split: Split) -> str:
    """SHA-256, in hex, of the shape, the pixels and the labels; equal only for the same images in the same order."""
    digest = hashlib.sha256(repr((split.images.shape, str(split.images.dtype))).encode())
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels, dtype="<i4").data)
    return digest.hexdigest()


def stratified_split(labels: np.ndarray, validation_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split 0 … N-1 into sorted (train_indices, validation_indices), each class in proportion.

    `validation_size` is a fraction in [0, 1), or a count; counts per class are rounded by largest remainder.
    """
    labels = np.asarray(labels)
    total = _validation_count(validation_size, len(labels))
    _, classes, class_sizes = np.unique(labels, return_inverse=True, return_counts=True)
    counts, remainders = np.divmod(total * class_sizes, max(len(labels), 1))
    counts[np.argsort(-remainders, kind="stable")[: total - counts.sum()]] += 1
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    held_out = np.zeros(len(labels), bool)
    for index, count in enumerate(counts):
        held_out[rng.permutation(np.flatnonzero(classes == index))[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _validation_count(size: float, total: int) -> int:
    is_count = isinstance(size, (int, np.integer))
    valid = not isinstance(size, bool) and size >= 0 and (is_count or size < 1)
    count = (int(size) if is_count else math.floor(size * total + 0.5)) if valid else -1
    problem = None
    if count < 0:
        problem = "is neither"
    elif count == 0 and size > 0:
        problem = "is less than one image"
    elif count and count >= total:
        problem = "leaves none to train on"
    if problem:
        raise UserError(
            f"invalid validation_size={size}: of {total} images, this {problem}; expected a fraction in [0, 1) or a "
            "number of images",
            argument="validation_size",
        )
    return count


def is_image_dataset(name: str) -> bool:
    return name.startswith(("folder:", "list:"))


def check_name(name: str, data_dir: Any = None) -> None:
    """Raise UserError where a name stands for no data, or `data_dir` does not go with it; look for no files."""
    if name not in DATASETS and not is_image_dataset(name):
        raise UserError(f"data={name!r} is not known; allowed: {', '.join((*DATASETS, *IMAGE_FORMS))}", argument="data")
    if data_dir is not None and is_image_dataset(name):
        raise UserError(f"data_dir=… does not go with data={name!r}, which says where it is; leave it out")


def short_name(name: str) -> str:
    """What a data set is called in the name of a run: for images, the name of the folder or of the first list."""
    if not is_image_dataset(name):
        return name
    place = Path(name.partition(":")[2].partition(",")[0].strip()).absolute()
    return place.stem if name.startswith("list:") else place.name
