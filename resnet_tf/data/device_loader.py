"""Prefetch batches to the GPU, or keep the whole data set in its memory; pixels are the same either way."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet_tf.data.loader import ArraySource, DataSource, TrainLoader
from resnet_tf.data.transforms import PadCropFlip, Transform
from resnet_tf.errors import UserError

MAX_CACHED_BYTES = 10**9  # of images that are kept on a GPU where nobody asks for it
AHEAD = 2  # batches that are copied before they are needed

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class PrefetchToDevice:
    """Batches of a loader as tensors on the current device, copied while earlier ones are in use."""

    def __init__(self, loader: TrainLoader) -> None:
        self.steps_per_epoch, self.batch_size = loader.steps_per_epoch, loader.batch_size
        self._loader = loader

    def iterate(self, start: int, stop: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        waiting: deque[tuple[tf.Tensor, tf.Tensor]] = deque()
        with contextlib.closing(self._loader.iterate(start, stop)) as batches:
            for images, labels in batches:
                waiting.append((tf.constant(images), tf.constant(labels)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
            yield from waiting


class DeviceCachedLoader:
    """Images and labels on the current device; a batch is the indices and the random numbers of `loader`."""

    def __init__(self, loader: TrainLoader, source: ArraySource, transform: PadCropFlip) -> None:
        self.steps_per_epoch, self.batch_size = loader.steps_per_epoch, loader.batch_size
        self._loader, self._transform = loader, transform
        count, self._height, self._width, channels = source.images.shape
        # One more pixel, of the pad's color, so that cropping is one look-up.
        pad_color = np.full((1, channels), transform.fill, np.uint8)
        self._pad_index = tf.constant(count * self._height * self._width, tf.int64)
        self._pixels = tf.constant(np.concatenate([source.images.reshape(-1, channels), pad_color]))
        self._labels = tf.constant(source.labels)

    def iterate(self, start: int, stop: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        for step in range(start, stop):
            yield self._loader.batch_indices(step)

    def update(self, function: Step, several: bool = False) -> Step:
        """Make a step of images and labels one of indices and random numbers; `several` has one axis more, of steps."""
        lead = (None,) if several else ()
        signature = (
            tf.TensorSpec((*lead, None), tf.int64),
            tf.TensorSpec((*lead, None, 3), tf.int64),
            tf.TensorSpec(lead, tf.float32),
        )

        @tf.function(input_signature=signature)
        def update(indices: tf.Tensor, params: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
            return function(self.images(indices, params), tf.gather(self._labels, indices), learning_rate)

        return update

    def images(self, indices: tf.Tensor, params: tf.Tensor) -> tf.Tensor:
        """Images uint8 (…, H, W, C) as `PadCropFlip.apply` varies them, by params (dy, dx, flip) int64 (…, 3)."""
        dy, dx, flip = (column[..., None] for column in tf.unstack(params, axis=-1))
        y, y_outside = self._within(tf.range(self._height, dtype=tf.int64) + dy, self._height)
        across = tf.range(self._width, dtype=tf.int64)
        x, x_outside = self._within(tf.where(flip == 1, self._width - 1 - across, across) + dx, self._width)
        place = (indices[..., None, None] * self._height + y[..., None]) * self._width + x[..., None, :]
        outside = tf.logical_or(y_outside[..., None], x_outside[..., None, :])
        return tf.gather(self._pixels, tf.where(outside, self._pad_index, place))

    def _within(self, padded: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Positions in the image for those in the padded image, and where there are none."""
        position = padded - self._transform.pad
        if self._transform.mode == "constant":
            return position, tf.logical_or(position < 0, position >= side)
        # Period of a reflection that does not repeat the edge; an image of one pixel is all edge.
        period = max(1, 2 * (side - 1))
        position = tf.math.floormod(position, period)
        return tf.minimum(position, period - position) if side > 1 else position, tf.zeros_like(position, tf.bool)


def to_device(
    loader: TrainLoader,
    source: DataSource | None,
    transform: Transform | None,
    *,
    keep: str,
    is_gpu: bool,
    steps_per_execution: int,
    replicas: int = 1,
) -> TrainLoader | PrefetchToDevice | DeviceCachedLoader:
    """Choose how batches get to the current device; the host keeps those of several `replicas`, and splits them.

    `keep` is "always" or "never" for images in the device's memory, or "auto": on GPUs, up to `MAX_CACHED_BYTES`.
    """
    if not isinstance(loader, TrainLoader):
        return loader
    if replicas > 1:
        if keep == "always":
            raise UserError(f"keep_on_device='always' is for one device, here are {replicas} replicas")
        return loader
    if isinstance(source, ArraySource) and isinstance(transform, PadCropFlip):
        if keep == "always" or (keep == "auto" and is_gpu and source.images.nbytes <= MAX_CACHED_BYTES):
            return DeviceCachedLoader(loader, source, transform)
    elif keep == "always":
        raise UserError(
            "keep_on_device='always' is for CIFAR and shapes as they are, without augment=… and input_size=…"
        )
    return PrefetchToDevice(loader) if is_gpu and steps_per_execution == 1 else loader
