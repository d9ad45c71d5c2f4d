"""Batches as TensorFlow has them: of a user's tf.data.Dataset, and those of a loader on their way to the device."""

import contextlib
import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet_tf.data.dataset import Channels, class_indices
from resnet_tf.data.loader import ArraySource, DataSource, TrainLoader
from resnet_tf.data.transforms import PadCropFlip, Transform
from resnet_tf.errors import UserError

MAX_CACHED_BYTES = 10**9  # of images that are kept on a GPU where nobody asks for it
AHEAD = 2  # batches that are copied before they are needed
_LABELS = "integers (B,) or one-hot (B, classes)"

Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


class TfSubset:
    """Images to evaluate on from a data set, in its own batches."""

    def __init__(self, dataset: tf.data.Dataset) -> None:
        _check(dataset, "validation")
        self._dataset = dataset
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(len(labels) for _, labels in self.batches())
        return self._length

    def __getitem__(self, position: int) -> np.ndarray:
        """Image at `position`, found by going through the data set."""
        for images, _ in self.batches():
            if position < len(images):
                return images[position]
            position -= len(images)
        raise IndexError(position)

    @property
    def labels(self) -> NDArray[np.int32]:
        return np.concatenate([labels for _, labels in self.batches()])

    def batches(self, batch_size: int | None = None) -> Iterator[tuple[np.ndarray, NDArray[np.int32]]]:
        for images, labels in self._dataset:
            pixels = images.numpy()
            pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
            yield pixels, _class_indices(labels)

    def shard(self, index: int, count: int) -> "TfSubset":
        return TfSubset(self._dataset.shard(count, index))

    def take(self, count: int) -> "TfSubset":
        """At least the first `count` images."""
        batches = 0
        for _, labels in self.batches():
            batches, count = batches + 1, count - len(labels)
            if count <= 0:
                break
        return TfSubset(self._dataset.take(batches))

    def arrays(self) -> tuple[np.ndarray, NDArray[np.int32]]:
        images, labels = zip(*self.batches(), strict=True)
        return np.concatenate(images), np.concatenate(labels)


class TfLoader:
    """Batches to train on, by step: the data set over and over, from where a run goes on."""

    def __init__(self, dataset: tf.data.Dataset, batch_size: int, steps_per_epoch: int) -> None:
        self._dataset, self.batch_size, self.steps_per_epoch = dataset, batch_size, steps_per_epoch

    def iterate(self, start: int, stop: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Images and labels of the steps start … stop - 1; what comes before is read and skipped."""
        batches = self._dataset.repeat().skip(start).take(stop - start).prefetch(tf.data.AUTOTUNE)
        dtype = image_dtype(self._dataset)
        for images, labels in batches:
            yield tf.cast(images, dtype), tf.constant(_class_indices(labels))


@dataclasses.dataclass(eq=False)
class TfData:
    """A data set to train on; `prepared` gives it statistics, validation and test images."""

    dataset: tf.data.Dataset
    given_names: Sequence[str] | None = None
    steps_per_epoch: int | None = None
    outputs: int = 0
    mean: Channels = ()
    std: Channels = ()
    validation: Any = None
    test: Any = None

    name = "tf.data"
    source = "tf.data"
    crop = None
    images = None
    transform = None
    exact_resume = False

    def __post_init__(self) -> None:
        _check(self.dataset, "data")
        images, _ = next(iter(self.dataset.take(1)), (None, None))
        if images is None:
            raise UserError("data is a tf.data.Dataset without a batch", argument="data")
        self.shape = tuple(images.shape[1:])
        self.batch_size = int(images.shape[0])
        self.image_dtype = image_dtype(self.dataset)
        if self.steps_per_epoch is None:
            cardinality = int(self.dataset.cardinality())
            if cardinality == tf.data.INFINITE_CARDINALITY:
                message = "data is an infinite tf.data.Dataset; pass steps_per_epoch=N"
                raise UserError(message, argument="steps_per_epoch")
            self.steps_per_epoch = cardinality if cardinality > 0 else sum(1 for _ in self.dataset)
        self._pass: tuple[int, Channels, Channels] | None = None

    @property
    def train(self) -> TfSubset:
        assert self.steps_per_epoch is not None
        return TfSubset(self.dataset.take(self.steps_per_epoch))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The given names, or numbers for as many classes as an epoch, its one-hot labels or the model has."""
        if self.given_names is not None:
            return tuple(map(str, self.given_names))
        one_hot = [size for size in self.dataset.element_spec[1].shape[1:] if size is not None]
        return tuple(f"class {index}" for index in range(max(self._look()[0], self.outputs, *one_hot)))

    @property
    def fingerprint(self) -> str:
        # Of the form of the data, not of their content.
        return hashlib.sha256(repr((self.dataset.element_spec, self.steps_per_epoch)).encode()).hexdigest()

    def prepared(self, statistics: tuple[Channels, Channels] | None, validation: Any, test: Any) -> "TfData":
        """The same data with what a run asks of it."""
        mean, std = statistics or self._look()[1:]
        empty = TfSubset(self.dataset.take(0))
        # The names go along: to count the classes again would be another pass.
        return dataclasses.replace(
            self,
            given_names=self.class_names,
            mean=mean,
            std=std,
            validation=empty if validation is None else validation,
            test=test,
        )

    def loader(self, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1), microbatches: int = 1) -> TfLoader:
        if shard[1] > 1:
            raise UserError("a tf.data.Dataset cannot be shared by several workers; use arrays, names or folders")
        assert self.steps_per_epoch is not None
        return TfLoader(self.dataset, self.batch_size, self.steps_per_epoch)

    def _look(self) -> tuple[int, Channels, Channels]:
        """Number of classes, mean and standard deviation of the channels, from one pass over an epoch."""
        if self._pass is None:
            classes, count, total, squares = 0, 0, np.zeros(self.shape[2]), np.zeros(self.shape[2])
            for images, labels in self.train.batches():
                pixels = images.astype(np.float64)
                classes = max(classes, int(labels.max(initial=-1)) + 1)
                count += pixels[..., 0].size
                total += pixels.sum(axis=(0, 1, 2))
                squares += np.square(pixels).sum(axis=(0, 1, 2))
            mean = total / count
            std = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
            self._pass = classes, tuple(mean.tolist()), tuple(std.tolist())
        return self._pass


def image_dtype(dataset: tf.data.Dataset) -> tf.DType:
    """uint8 stays uint8, everything else trains as float32."""
    return tf.uint8 if dataset.element_spec[0].dtype == tf.uint8 else tf.float32


def _check(dataset: tf.data.Dataset, argument: str) -> None:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or any(not hasattr(part, "shape") for part in spec):
        found, expected = spec, "(image batch, label batch)"
    elif spec[0].shape.rank != 4:
        found, expected = f"images of shape {spec[0].shape}", "batches (B, H, W, C): use dataset.batch(128)"
    elif not (spec[1].dtype.is_integer or spec[1].dtype.is_floating) or spec[1].shape.rank not in (None, 1, 2):
        found, expected = f"labels of dtype {spec[1].dtype.name} and shape {spec[1].shape}", _LABELS
    else:
        return
    raise UserError(f"{argument} is a tf.data.Dataset of {found}; expected {expected}", argument=argument)


def _class_indices(labels: tf.Tensor) -> NDArray[np.int32]:
    try:
        return class_indices(labels.numpy())
    except ValueError as error:
        raise UserError(f"a tf.data.Dataset has {error}; expected {_LABELS}") from error


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

        @tf.function(input_signature=signature, autograph=False)
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
