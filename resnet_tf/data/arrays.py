"""Labelled images in memory: split them by class, digest them, and measure their channels."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from resnet_tf.errors import UserError

# Keeps the split's random numbers apart from every other generator that is keyed by the same seed.
_SPLIT_STREAM = 0x5B11
# np.bincount widens its input to 64 bits, so the images are counted in pieces.
_IMAGES_PER_HISTOGRAM = 1024

Channels = tuple[float, ...]


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


def fingerprint(split: Split) -> str:
    """SHA-256, in hex, of the shape, the pixels and the labels; equal only for the same images in the same order."""
    digest = hashlib.sha256(repr((split.images.shape, str(split.images.dtype))).encode())
    digest.update(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels, dtype="<i4").data)
    return digest.hexdigest()


def stratified_split(labels: np.ndarray, validation_size: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split 0 … N-1 into sorted (train_indices, validation_indices), each class in proportion.

    `validation_size` is a fraction in [0, 1), rounded to whole images, or a count. The counts per class are rounded by
    largest remainder, so the total is exact; the same arguments always give the same split.
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
    allowed = "expected a fraction in [0, 1) or a number of images, 0 for none"
    if isinstance(size, bool) or not size >= 0 or (not is_count and size >= 1):
        raise UserError(f"invalid validation size {size}; {allowed}")
    count = int(size) if is_count else math.floor(size * total + 0.5)
    if count == 0 and size > 0:
        raise UserError(f"validation size {size} of {total} images is less than one image; {allowed}")
    if count >= total and count > 0:
        raise UserError(f"validation size {size} leaves none of the {total} images for training; {allowed}")
    return count


def channel_statistics(images: np.ndarray) -> tuple[Channels, Channels]:
    """Mean and population standard deviation of each channel of (N, H, W, C) uint8 images, in units of 0–255."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
        raise UserError(
            f"channel statistics need images of shape (N, H, W, C) and dtype uint8 with at least one pixel, "
            f"not {images.shape} {images.dtype}; pass the raw pixels"
        )
    starts = range(0, len(images), _IMAGES_PER_HISTOGRAM)
    pieces = [channel_histograms(images[start : start + _IMAGES_PER_HISTOGRAM]) for start in starts]
    return histogram_statistics(np.sum(pieces, axis=0))


def channel_histograms(images: np.ndarray) -> np.ndarray:
    """How often each channel of (N, H, W, C) uint8 images has each level, int64 (C, 256)."""
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])])


def histogram_statistics(histograms: np.ndarray) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel from its histogram (C, 256); only the last division rounds."""
    means, deviations = [], []
    # Python's integers do not overflow where total * squares would.
    for counts in histograms.tolist():
        total = sum(counts)
        first = sum(level * count for level, count in enumerate(counts))
        squares = sum(level * level * count for level, count in enumerate(counts))
        means.append(first / total)
        deviations.append(math.sqrt((total * squares - first * first) / (total * total)))
    return tuple(means), tuple(deviations)
