"""Training and evaluation batches, prepared by background threads."""

import functools
import math
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_tf.data.image_folder import ImageFiles
from resnet_tf.data.image_io import UnreadableImageError, read_image
from resnet_tf.data.image_ops import ResizeCenterCrop, frame
from resnet_tf.data.transforms import Transform
from resnet_tf.errors import UserError

# Not 0: numpy gives the keys [seed, 0, 0] and [seed] the same stream.
_ORDER_STREAM = 1
_DRAW_STREAM = 2

Batch = tuple[NDArray[np.uint8], NDArray[np.int32]]


class DataSource(Protocol):
    """Labelled images by index."""

    @property
    def labels(self) -> NDArray[np.int32]:
        """The class of every image, int32 (N,)."""
        ...

    def __len__(self) -> int:
        """The number of images, N."""
        ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """Image `index` (0 … N−1), uint8 (H, W, C). Called from several threads at once."""
        ...


class ArraySource:
    """Images that are in memory: uint8 (N, H, W, C), with integer labels (N,)."""

    def __init__(self, images: NDArray[np.uint8], labels: ArrayLike) -> None:
        """Keep `images` without copying; raise ValueError where shapes or dtypes do not fit."""
        given = np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"images are {images.dtype} {images.shape}; they must be uint8 (N, H, W, C)")
        if given.dtype.kind not in "iu" or given.shape != images.shape[:1]:
            raise ValueError(f"labels are {given.dtype} {given.shape}; they must be integers ({len(images)},)")
        self.images = images
        self.labels: NDArray[np.int32] = given.astype(np.int32)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, a view, uint8 (H, W, C)."""
        return self.images[index]


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of an epoch, a permutation of 0 … count−1, int64 (count,)."""
    return np.random.default_rng([seed, epoch, _ORDER_STREAM]).permutation(count)


def epoch_draws(policy: Transform, seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the augmentation draws of an epoch; row i belongs to source image i."""
    return policy.draw(np.random.default_rng([seed, epoch, _DRAW_STREAM]), count)


class TrainLoader:
    """Shuffled, augmented batches of a source, each a pure function of its step.

    `steps_per_epoch` is N // B for N training images and batches of B: the rest of an epoch's order is dropped.
    """

    def __init__(
        self,
        source: DataSource,
        policy: Transform,
        *,
        batch_size: int,
        seed: int,
        indices: ArrayLike | None = None,
        workers: int = 1,
        ahead: int = 4,
        share: tuple[int, int] = (0, 1),
        parts: int = 1,
    ) -> None:
        """Take the images of `source` named by `indices` (all of them when None) in batches of `batch_size`.

        `workers` threads prepare up to `ahead` batches beyond the one in use; neither changes the content.
        `share` is (index, count): each of `count` processes reads and augments its own rows of the batch and no
        others; together they have the batch that one process has. `parts` equal parts of a batch are shared
        one by one, so that all processes work on the same part at a time.
        Raises UserError for a batch larger than the data, one that cannot be shared evenly, and for numbers out of
        range, ValueError for `indices` that are not distinct indices of `source`.
        """
        _check_at_least(1, batch_size=batch_size, workers=workers, ahead=ahead)
        _check_at_least(0, seed=seed)
        members = _members(indices, len(source))
        if batch_size > len(members):
            raise UserError(
                f"the batch size {batch_size} is larger than the {len(members)} training images; "
                f"choose one of 1 to {len(members)}"
            )
        index, count = share
        if batch_size % (count * parts):
            raise UserError(f"the batch size {batch_size} cannot be shared evenly; give a multiple of {count * parts}")
        self.batch_size = batch_size
        self.steps_per_epoch = len(members) // batch_size
        self._rows = np.arange(batch_size).reshape(parts, count, -1)[:, index].ravel()
        self._source, self._policy = source, policy
        self._workers, self._ahead = workers, ahead
        # Two epochs, because batches prepared ahead reach into the next one.
        self._plan = functools.lru_cache(maxsize=2)(functools.partial(_epoch_plan, policy, seed, len(source), members))

    def batch(self, step: int) -> Batch:
        """Return this process's images, uint8 (B, H, W, C), and labels, int32 (B,), of `step` (0, 1, …)."""
        chosen, draws = self.batch_indices(step)
        varied = (
            self._policy.apply(self._source.image(index), draw)
            for index, draw in zip(chosen.tolist(), draws, strict=True)
        )
        first = next(varied)
        images = np.empty((len(chosen), *first.shape), np.uint8)
        images[0] = first
        for row, image in enumerate(varied, start=1):
            images[row] = image
        return images, self._source.labels[chosen]

    def batch_indices(self, step: int) -> tuple[NDArray[np.int64], np.ndarray]:
        """Return which images this process takes in `step`, int64 (B,), and the policy's draws for them, (B, …)."""
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        epoch, position = divmod(step, self.steps_per_epoch)
        order, draws = self._plan(epoch)
        chosen = order[position * self.batch_size + self._rows]
        return chosen, draws[chosen]

    def iterate(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yield the batches of steps start … stop−1 in order, prepared in the background.

        An exception in a thread is raised here, at the step it belongs to. Closing the generator ends the threads
        as soon as the batches in work are done.
        """
        steps = iter(range(start, stop))
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="batches")
        try:
            pending = deque(pool.submit(self.batch, step) for step in islice(steps, self._ahead))
            while pending:
                ready = pending.popleft().result()
                pending.extend(pool.submit(self.batch, step) for step in islice(steps, 1))
                yield ready
        finally:
            pool.shutdown(cancel_futures=True)


def _epoch_plan(
    policy: Transform, seed: int, total: int, members: NDArray[np.int64], epoch: int
) -> tuple[NDArray[np.int64], np.ndarray]:
    # Draws cover the whole source, so that an image's draw does not depend on which others are trained on.
    return members[epoch_order(seed, epoch, len(members))], epoch_draws(policy, seed, epoch, total)


def _members(indices: ArrayLike | None, total: int) -> NDArray[np.int64]:
    if indices is None:
        return np.arange(total)
    members = np.asarray(indices)
    if members.ndim != 1 or members.dtype.kind not in "iu":
        raise ValueError(f"indices are {members.dtype} {members.shape}; they must be integers (n,)")
    if members.size and (members.min() < 0 or members.max() >= total):
        raise ValueError(f"indices run from {members.min()} to {members.max()}; the source has 0 to {total - 1}")
    if len(np.unique(members)) != len(members):
        raise ValueError("indices name an image twice; each image is trained on once an epoch")
    return members.astype(np.int64)


def _check_at_least(min_side: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < min_side:
            raise UserError(f"{name.replace('_', ' ')} is {number}; give {min_side} or more")


def ordered_batches(
    source: DataSource, indices: NDArray[np.int64], *, batch_size: int, workers: int = 1, ahead: int = 4
) -> Iterator[Batch]:
    """Yield images, uint8 (B, H, W, C), and labels, int32 (B,), in the order of `indices`; the last may be fewer.

    `workers` threads prepare up to `ahead` batches beyond the one in use. The images of `source` have one shape.
    An exception in a thread is raised here.
    """

    def batch(start: int) -> Batch:
        chosen = indices[start : start + batch_size]
        return np.stack([source.image(index) for index in chosen.tolist()]), source.labels[chosen]

    pool = ThreadPoolExecutor(workers, thread_name_prefix="ordered")
    pending: deque[Future[Batch]] = deque()
    try:
        for start in range(0, len(indices), batch_size):
            pending.append(pool.submit(batch, start))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def source_statistics(
    source: DataSource, indices: NDArray[np.int64], workers: int = 1
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of the images at `indices`, in units of 0–255.

    They are the population's, from whole-number histograms, as `channel_statistics` has them of images in memory.
    Raises UserError when there is no image.
    """
    if len(indices) == 0:
        raise UserError("there are no images to take the mean of; give one at least")
    counts: NDArray[np.int64] | None = None
    for images, _ in ordered_batches(source, indices, batch_size=64, workers=workers):
        batch = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])])
        counts = batch if counts is None else counts + batch
    assert counts is not None
    moments = [_moments(channel) for channel in counts.tolist()]
    return tuple(mean for mean, _ in moments), tuple(deviation for _, deviation in moments)


def _moments(counts: list[int]) -> tuple[float, float]:
    # Python's integers do not overflow where total * squares would.
    total = sum(counts)
    first = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    return first / total, math.sqrt((total * squares - first * first) / (total * total))


# As many pixels as in 500 images of CIFAR; but never fewer images than make a kernel worth calling.
_PIXELS_AT_ONCE, _LEAST_AT_ONCE, _MOST_AT_ONCE = 500 * 32 * 32, 16, 500


@dataclass(frozen=True, eq=False)
class Subset:
    """The images of a source at `indices`, all of one shape, as a network is evaluated on them."""

    source: DataSource
    indices: NDArray[np.int64]
    workers: int = 1

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __getitem__(self, position: int) -> NDArray[np.uint8]:
        """Image at `position` of this part, uint8 (H, W, C)."""
        return self.source.image(int(self.indices[position]))

    @property
    def labels(self) -> NDArray[np.int32]:
        """The class of every image, int32 (N,)."""
        return self.source.labels[self.indices]

    def batches(self, batch_size: int | None = None) -> Iterator[Batch]:
        """All images and labels in order; as many at once as their size suggests where no `batch_size` is given."""
        return ordered_batches(
            self.source,
            self.indices,
            batch_size=batch_size or eval_batch_size(self[0].shape),
            workers=self.workers,
        )

    def share(self, index: int, count: int) -> "Subset":
        """Every `count`-th image from number `index` on; the shares of all indices are the whole."""
        return Subset(self.source, self.indices[index::count], self.workers)

    def first(self, count: int) -> "Subset":
        """The first `count` images."""
        return Subset(self.source, self.indices[:count], self.workers)

    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """All images (N, H, W, C) and labels (N,) in memory."""
        return np.stack([self[position] for position in range(len(self))]), self.labels


def eval_batch_size(shape: Sequence[int]) -> int:
    """How many images of a shape (H, W, C) a network is evaluated on at once."""
    return max(_LEAST_AT_ONCE, min(_MOST_AT_ONCE, _PIXELS_AT_ONCE // (shape[0] * shape[1])))


class FileSource:
    """Image files, decoded whenever they are asked for; only paths and labels are in memory."""

    def __init__(self, files: ImageFiles, min_side: int | None = None) -> None:
        """Take the images of `files`; `min_side` is what `decode_image` says of it, None decodes in full."""
        self.files = files
        self.labels: NDArray[np.int32] = files.labels
        self._least = min_side

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Decode image `index`, uint8 (H, W, 3) RGB, each of its own size.

        Raises UserError when the file cannot be decoded (any more).
        """
        path = self.files.paths[index]
        try:
            return read_image(path, min_side=self._least)
        except UnreadableImageError as error:
            raise UserError(
                f"{path} cannot be decoded ({error}), though it is among the images to use; mend it"
            ) from error


class ResizedSource:
    """The images of another source, all cut and resized to one size when they are asked for."""

    def __init__(self, source: DataSource, framing: ResizeCenterCrop) -> None:
        """Show the images of `source` as `framing` says."""
        self.labels: NDArray[np.int32] = source.labels
        self._source, self._framing = source, framing

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._source)

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return image `index`, uint8 (framing.height, framing.width, C)."""
        return frame(self._source.image(index), self._framing)
