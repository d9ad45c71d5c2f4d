"""Labelled images in memory, and the data sets by name."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_tf.errors import UserError

# Keeps the split's draws apart from every other generator that is keyed by the same seed.
_SPLIT_STREAM = 0x5B11
# np.bincount widens its input to 64 bits, so the images are counted in pieces.
_IMAGES_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, H, W, C) uint8 RGB with their labels (N,) int32."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split; `source` says in words which variant of the data it is ("original", "built-in")."""

    name: str
    source: str
    class_names: tuple[str, ...]
    train: Split
    test: Split


def fingerprint(split: Split) -> str:
    """SHA-256, in hex, of the shape, the pixels and the labels; equal only for the same images in the same order."""
    digest = hashlib.sha256(repr((split.images.shape, str(split.images.dtype))).encode())
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels, dtype="<i4").data)
    return digest.hexdigest()


def stratified_split(labels: np.ndarray, validation_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0..N-1 into sorted (train_indices, validation_indices), each class in proportion.

    `labels` is (N,) of integers. `validation_size` is a fraction in [0, 1), rounded to whole images, or a count
    of at least 1; 0 leaves validation empty. The classes' shares are rounded by largest remainder, so the total
    is exactly the count asked for. The same arguments always give the same split.
    Raises UserError for a size that is negative, not below the size of the set, or that rounds to no image.
    """
    labels = np.asarray(labels)
    count = _validation_count(validation_size, len(labels))
    _, classes, class_sizes = np.unique(labels, return_inverse=True, return_counts=True)
    shares, remainders = np.divmod(count * class_sizes, max(len(labels), 1))
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    chosen = np.zeros(len(labels), bool)
    for index, share in enumerate(shares):
        chosen[rng.permutation(np.flatnonzero(classes == index))[:share]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (N, H, W, C) uint8 images, in units of 0-255.

    They are the population's (divided by the number of pixels), computed from whole-number histograms, so the only
    rounding is the last division. A channel of one value has deviation 0.
    Raises UserError for another dtype or rank, or no pixels.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise UserError(
            f"channel statistics need images of shape (N, H, W, C) and dtype uint8 with at least one pixel, "
            f"not {images.shape} {images.dtype}; give the raw pixels"
        )
    moments = [_moments(images[..., channel]) for channel in range(images.shape[3])]
    return tuple(mean for mean, _ in moments), tuple(deviation for _, deviation in moments)


def _moments(values: np.ndarray) -> tuple[float, float]:
    histogram = np.zeros(256, np.int64)
    for start in range(0, len(values), _IMAGES_AT_ONCE):
        histogram += np.bincount(values[start : start + _IMAGES_AT_ONCE].ravel(), minlength=256)
    # Python's integers do not overflow where total * squares would.
    counts = histogram.tolist()
    total = sum(counts)
    first = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    return first / total, math.sqrt((total * squares - first * first) / (total * total))


def _validation_count(size: float, total: int) -> int:
    allowed = "give a fraction in [0, 1) or a whole number of images, or 0 for none"
    whole = isinstance(size, (int, np.integer))
    if isinstance(size, bool) or not size >= 0 or (not whole and size >= 1):
        raise UserError(f"validation size {size} makes no sense; {allowed}")
    count = int(size) if whole else math.floor(size * total + 0.5)
    if count == 0 and size > 0:
        raise UserError(f"validation size {size} of {total} images is not even one image; {allowed}")
    if count >= total and count > 0:
        raise UserError(f"validation size {size} leaves none of the {total} images for training; {allowed}")
    return count


def is_image_dataset(dataset: str) -> bool:
    """Whether a data set is named as a user's own images are."""
    return dataset.startswith(("folder:", "list:"))


DATASETS = ("cifar10", "cifar100", "shapes")
OWN_FORMS = ("folder:PATH", "list:TRAIN[,[VALID][,TEST]]")
ON_BAD = ("stop", "skip")


def check_name(name: str, data_dir: str | None = None) -> None:
    """Find out whether a name can stand for data, without looking for any.

    Raises:
        UserError: it cannot, or --data-dir does not go with it.
    """
    if name not in DATASETS and not is_image_dataset(name):
        raise UserError(f"--dataset {name} is not known; allowed: {', '.join((*DATASETS, *OWN_FORMS))}")
    if data_dir is not None and is_image_dataset(name):
        raise UserError(f"--data-dir does not go with --dataset {name}, which says where it is; leave it out")


def short_name(name: str) -> str:
    """What a data set is called in the name of a run: of own images, the name of the folder or the first list."""
    if not is_image_dataset(name):
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
