"""Passes over a source in order, for evaluation and statistics, prepared by threads in the background."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from resnet_tf.data.pipeline import Batch, Source
from resnet_tf.errors import UserError


def ordered_batches(
    source: Source, indices: NDArray[np.int64], *, batch_size: int, workers: int = 1, ahead: int = 4
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
    source: Source, indices: NDArray[np.int64], workers: int = 1
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
