"""Training and evaluation batches, prepared by background threads."""

import functools
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_tf.data.dataset import Channels
from resnet_tf.data.image_folder import ImageFiles
from resnet_tf.data.image_io import Pixels, UnreadableImageError, read_image
from resnet_tf.data.transforms import ResizeCenterCrop, Transform
from resnet_tf.errors import UserError

# Not 0: numpy gives the keys [seed, 0, 0] and [seed] the same stream.
_ORDER_STREAM = 1
_TRANSFORM_STREAM = 2

# An evaluation batch has as many pixels as 500 images of CIFAR, but enough images to make a kernel worth calling.
_EVAL_PIXELS, _MIN_EVAL_BATCH, _MAX_EVAL_BATCH = 500 * 32 * 32, 16, 500

Batch = tuple[NDArray[np.uint8], NDArray[np.int32]]


class DataSource(Protocol):
    """N images uint8 (H, W, C), read by several threads at once, with labels int32 (N,)."""

    labels: NDArray[np.int32]

    def __len__(self) -> int: ...

    def image(self, index: int) -> Pixels: ...


class ArraySource:
    """Images that are in memory: uint8 (N, H, W, C), not copied, with integer labels (N,)."""

    def __init__(self, images: NDArray[np.uint8], labels: ArrayLike) -> None:
        given = np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise UserError(f"images are {images.dtype} {images.shape}; they must be uint8 (N, H, W, C)")
        if given.dtype.kind not in "iu" or given.shape != images.shape[:1]:
            raise UserError(f"labels are {given.dtype} {given.shape}; they must be integers ({len(images)},)")
        self.images = images
        self.labels: NDArray[np.int32] = given.astype(np.int32)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Pixels:
        return self.images[index]


class FileSource:
    """Image files, decoded to RGB whenever they are asked for; `min_side` is that of `decode_image`."""

    def __init__(self, files: ImageFiles, min_side: int | None = None) -> None:
        self.labels = files.labels
        self._paths, self._min_side = files.paths, min_side

    def __len__(self) -> int:
        return len(self._paths)

    def image(self, index: int) -> Pixels:
        path = self._paths[index]
        try:
            return read_image(path, min_side=self._min_side)
        except UnreadableImageError as error:
            raise UserError(f"{path} cannot be decoded ({error}) any more; restore it") from error


class ResizedSource:
    """The images of another source, all cut and resized to one size when they are asked for."""

    def __init__(self, source: DataSource, crop: ResizeCenterCrop) -> None:
        self.labels: NDArray[np.int32] = source.labels
        self._source, self._crop = source, crop

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> Pixels:
        return self._crop(self._source.image(index))


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch, _ORDER_STREAM]).permutation(count)


def epoch_params(transform: Transform, seed: int, epoch: int, count: int) -> np.ndarray:
    return transform.sample(np.random.default_rng([seed, epoch, _TRANSFORM_STREAM]), count)


class TrainLoader:
    """Shuffled, augmented batches of a source, each a pure function of its step; an epoch's rest is left out.

    `workers` threads prepare up to `ahead` batches beyond the one in use. `shard` is (index, count): each of `count`
    processes reads only its rows of each of the `microbatches` of a batch.
    """

    def __init__(
        self,
        source: DataSource,
        transform: Transform,
        *,
        batch_size: int,
        seed: int,
        indices: ArrayLike | None = None,
        workers: int = 1,
        ahead: int = 4,
        shard: tuple[int, int] = (0, 1),
        microbatches: int = 1,
    ) -> None:
        members = np.arange(len(source)) if indices is None else np.asarray(indices)
        if batch_size > len(members):
            raise UserError(f"the batch size {batch_size} is larger than the {len(members)} training images")
        index, count = shard
        if batch_size % (count * microbatches):
            raise UserError(
                f"the batch size {batch_size} cannot be shared evenly; give a multiple of {count * microbatches}"
            )
        self.batch_size = batch_size
        self.steps_per_epoch = len(members) // batch_size
        self._positions = np.arange(batch_size).reshape(microbatches, count, -1)[:, index].ravel()
        self._source, self._transform, self._seed, self._members = source, transform, seed, members
        self._workers, self._ahead = workers, ahead
        # Two epochs, because batches prepared ahead reach into the next one.
        self._epoch = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def batch(self, step: int) -> Batch:
        """This process's images, uint8 (B, H, W, C), and labels, int32 (B,), of `step` (0, 1, …)."""
        indices, params = self.batch_indices(step)
        varied = (
            self._transform.apply(self._source.image(index), of_image)
            for index, of_image in zip(indices.tolist(), params, strict=True)
        )
        first = next(varied)
        images = np.empty((len(indices), *first.shape), np.uint8)
        images[0] = first
        for row, image in enumerate(varied, start=1):
            images[row] = image
        return images, self._source.labels[indices]

    def batch_indices(self, step: int) -> tuple[NDArray[np.int64], np.ndarray]:
        """Which images this process takes in `step`, int64 (B,), and the transform's random numbers, (B, …)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order, params = self._epoch(epoch)
        indices = order[position * self.batch_size + self._positions]
        return indices, params[indices]

    def iterate(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps start … stop−1 in order, prepared in the background."""
        return _prefetch(self.batch, range(start, stop), self._workers, self._ahead)

    def _plan_epoch(self, epoch: int) -> tuple[NDArray[np.int64], np.ndarray]:
        order = self._members[epoch_order(self._seed, epoch, len(self._members))]
        # Drawn for the whole source, so that an image's numbers do not depend on which others are trained on.
        return order, epoch_params(self._transform, self._seed, epoch, len(self._source))


def _prefetch(
    function: Callable[[int], Batch], arguments: Iterable[int], workers: int, ahead: int
) -> Generator[Batch, None, None]:
    """Yield the results in order while threads work up to `ahead` calls on; closing the generator ends the threads."""
    remaining = iter(arguments)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        pending = deque(pool.submit(function, argument) for argument in islice(remaining, ahead))
        while pending:
            ready = pending.popleft().result()
            pending.extend(pool.submit(function, argument) for argument in islice(remaining, 1))
            yield ready
    finally:
        pool.shutdown(cancel_futures=True)


def ordered_batches(
    source: DataSource, indices: NDArray[np.int64], *, batch_size: int, workers: int = 1, ahead: int = 4
) -> Generator[Batch, None, None]:
    """Yield images of one shape and labels in the order of `indices`; the last batch may be smaller."""

    def batch(start: int) -> Batch:
        chosen = indices[start : start + batch_size]
        return np.stack([source.image(index) for index in chosen.tolist()]), source.labels[chosen]

    return _prefetch(batch, range(0, len(indices), batch_size), workers, ahead)


def source_statistics(source: DataSource, indices: NDArray[np.int64], workers: int = 1) -> tuple[Channels, Channels]:
    """Mean and population standard deviation of each channel of the images at `indices`, in units of 0-255."""
    if len(indices) == 0:
        raise UserError("there are no images to take the mean of; give at least one")
    batches = ordered_batches(source, indices, batch_size=64, workers=workers)
    levels = functools.reduce(np.add, (_histograms(images) for images, _ in batches))
    means, deviations = [], []
    # Python's integers do not overflow where total * squares would; only the last division rounds.
    for counts in levels.tolist():
        total = sum(counts)
        first = sum(level * count for level, count in enumerate(counts))
        squares = sum(level * level * count for level, count in enumerate(counts))
        means.append(first / total)
        deviations.append(math.sqrt((total * squares - first * first) / (total * total)))
    return tuple(means), tuple(deviations)


def _histograms(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each channel of images (N, H, W, C) has each level, (C, 256)."""
    return np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])])


@dataclass(frozen=True, eq=False)
class Subset:
    """The images of a source at `indices`, all of one shape, as a network is evaluated on them."""

    source: DataSource
    indices: NDArray[np.int64]
    workers: int = 1

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Pixels:
        return self.source.image(int(self.indices[position]))

    @property
    def labels(self) -> NDArray[np.int32]:
        return self.source.labels[self.indices]

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or eval_batch_size(self[0].shape)
        return ordered_batches(self.source, self.indices, batch_size=size, workers=self.workers)

    def shard(self, index: int, count: int) -> "Subset":
        """Every `count`-th image from number `index` on; the shards of all indices are the whole."""
        return Subset(self.source, self.indices[index::count], self.workers)

    def take(self, count: int) -> "Subset":
        return Subset(self.source, self.indices[:count], self.workers)

    def arrays(self) -> Batch:
        return np.stack([self[position] for position in range(len(self))]), self.labels


def eval_batch_size(shape: Sequence[int]) -> int:
    return max(_MIN_EVAL_BATCH, min(_MAX_EVAL_BATCH, _EVAL_PIXELS // (shape[0] * shape[1])))
