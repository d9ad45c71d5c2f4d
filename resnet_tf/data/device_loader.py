"""Batches on the device before it asks for them.

A GPU is through with a batch of small images before the host has copied the next one. CIFAR fits into
any GPU's memory as uint8; a batch is then two columns of numbers: which images, and how each is varied.
Larger data are copied a batch ahead. Draws and pixels are the same in all cases, so that a run may go on
in another.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet_tf.data.loader import ArraySource, DataSource, TrainLoader
from resnet_tf.data.transforms import PadCropFlip, Transform
from resnet_tf.errors import UserError

LARGEST = 10**9  # bytes of images that are kept on a GPU where nobody asks for it
AHEAD = 2  # batches that are copied before they are needed

Choice = tuple[NDArray[np.int64], NDArray[np.int64]]
Update = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class PrefetchToDevice:
    """Batches as tensors on the current device, copied while earlier ones are in use.

    Attributes:
        steps_per_epoch: as of the batches.
        batch_size: likewise.
    """

    def __init__(self, batches: TrainLoader) -> None:
        """Take the batches of the host."""
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._batches = batches

    def iterate(self, start: int, stop: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Images uint8 (B, H, W, C) and labels int32 (B,) of the steps start … stop - 1, in order."""
        waiting: deque[tuple[tf.Tensor, tf.Tensor]] = deque()
        with contextlib.closing(self._batches.iterate(start, stop)) as batches:
            for images, labels in batches:
                waiting.append((tf.constant(images), tf.constant(labels)))
                if len(waiting) > AHEAD:
                    yield waiting.popleft()
            yield from waiting


class DeviceCachedLoader:
    """Images and labels on the current device, and batches of them that name rows and draws.

    Attributes:
        steps_per_epoch: as of the batches.
        batch_size: likewise.
    """

    def __init__(self, batches: TrainLoader, source: ArraySource, policy: PadCropFlip) -> None:
        """Copy the images of `source`, which `batches` reads and varies by `policy`, to the device."""
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._batches, self._policy = batches, policy
        count, self._height, self._width, channels = source.images.shape
        # One more pixel, of the pad's color, so that cropping is one look-up.
        fill = np.full((1, channels), policy.fill, np.uint8)
        self._fill_index = tf.constant(count * self._height * self._width, tf.int64)
        self._pixels = tf.constant(np.concatenate([source.images.reshape(-1, channels), fill]))
        self._labels = tf.constant(source.labels)

    def iterate(self, start: int, stop: int) -> Iterator[Choice]:
        """Rows int64 (B,) and draws int64 (B, 3) of the steps start … stop - 1, in order."""
        for step in range(start, stop):
            yield self._batches.batch_indices(step)

    def update(self, function: Update, several: bool = False) -> Update:
        """An update that takes rows and draws in place of images and labels.

        Args:
            function: of images, labels and a learning rate, such as `make_train_step` makes.
            several: rows, draws and learning rates have one axis more, over the updates.
        """
        lead = (None,) if several else ()
        signature = (
            tf.TensorSpec((*lead, None), tf.int64),
            tf.TensorSpec((*lead, None, 3), tf.int64),
            tf.TensorSpec(lead, tf.float32),
        )

        @tf.function(input_signature=signature)
        def update(rows: tf.Tensor, draws: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
            return function(self.images(rows, draws), tf.gather(self._labels, rows), learning_rate)

        return update

    def images(self, rows: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        """Varied images uint8 (…, H, W, C) of rows int64 (…) by draws (dy, dx, flip) int64 (…, 3).

        They are those of `PadCropFlip.apply`, to the pixel.
        """
        dy, dx, flip = (part[..., None] for part in tf.unstack(draws, axis=-1))
        y, y_outside = self._within(tf.range(self._height, dtype=tf.int64) + dy, self._height)
        across = tf.range(self._width, dtype=tf.int64)
        x, x_outside = self._within(tf.where(flip == 1, self._width - 1 - across, across) + dx, self._width)
        place = (rows[..., None, None] * self._height + y[..., None]) * self._width + x[..., None, :]
        outside = tf.logical_or(y_outside[..., None], x_outside[..., None, :])
        return tf.gather(self._pixels, tf.where(outside, self._fill_index, place))

    def _within(self, padded: tf.Tensor, side: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Of positions in the padded image: those in the image itself, and where there is none."""
        position = padded - self._policy.pad
        if self._policy.mode == "constant":
            return position, tf.logical_or(position < 0, position >= side)
        # Period of a reflection that does not repeat the edge; an image of one pixel is all edge.
        period = max(1, 2 * (side - 1))
        position = tf.math.floormod(position, period)
        return tf.minimum(position, period - position) if side > 1 else position, tf.zeros_like(position, tf.bool)


def to_device(
    batches: TrainLoader,
    source: DataSource,
    policy: Transform,
    *,
    wish: str,
    is_gpu: bool,
    per_call: int,
    replicas: int = 1,
) -> TrainLoader | PrefetchToDevice | DeviceCachedLoader:
    """The way of a run's batches to the device.

    Args:
        batches: of the run.
        source: what they read.
        policy: how they vary it.
        wish: "always" or "never" keep the images on the device, or "auto": on GPUs, up to `LARGEST` bytes.
        is_gpu: whether the current device is one.
        per_call: updates in one call.
        replicas: devices that share a batch, which is then parted on the host.

    Raises:
        UserError: images are to be kept that come from files, that are varied otherwise than by pad, crop and flip,
            or on several devices.
    """
    if replicas > 1:
        if wish == "always":
            raise UserError(
                f"--keep-on-device always is for one device, here are {replicas} replicas; give auto or never"
            )
        return batches
    if isinstance(source, ArraySource) and isinstance(policy, PadCropFlip):
        if wish == "always" or (wish == "auto" and is_gpu and source.images.nbytes <= LARGEST):
            return DeviceCachedLoader(batches, source, policy)
    elif wish == "always":
        raise UserError(
            "--keep-on-device always is for CIFAR and shapes as they are, padded, cropped and flipped, and goes with "
            "neither --augment nor --input-size; give auto or never"
        )
    return PrefetchToDevice(batches) if is_gpu and per_call == 1 else batches
