"""Augmentation for training, and the matching resize and crop for evaluation."""

import itertools
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from resnet_tf.config import AUGMENTATIONS
from resnet_tf.data import image_ops as ops
from resnet_tf.data.image_io import Pixels, cv2
from resnet_tf.data.image_ops import ResizeCenterCrop
from resnet_tf.errors import UserError

CustomFunction = Callable[[Pixels, np.random.Generator], Pixels]

_BORDERS = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
_OPENCV_SCALAR_CHANNELS = 4
_JITTER_ORDERS = tuple(itertools.permutations(range(4)))


class Transform(Protocol):
    """How training images are varied.

    `sample` draws an epoch's random numbers, shape (count, …), a row for each image; `apply` varies one uint8 image
    (H, W, C) by its row.
    """

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray: ...

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels: ...


class NoTransform:
    """Every image as it is."""

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return np.empty((count, 0), np.int64)

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels:
        return image


@dataclass(frozen=True)
class PadCropFlip:
    """The papers' CIFAR augmentation: pad each side, crop the old size anywhere, mirror half of the images.

    `fill` is the pad color of mode "constant": a value (0–255) per channel, or one for all of them. Mode "reflect"
    mirrors without repeating the edge.
    """

    pad: int = 4
    mode: Literal["constant", "reflect"] = "constant"
    fill: tuple[int, ...] = (0,)

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw (dy, dx, flip) per image, int64 (count, 3): offsets in 0 … 2·pad inclusive, flip in {0, 1}."""
        offsets = 2 * self.pad + 1
        # Row by row, so that an image's numbers do not depend on how many images come after it.
        return rng.integers(0, [offsets, offsets, 2], size=(count, 3))

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels:
        dy, dx, mirror = params.tolist()
        height, width, _ = image.shape
        cropped: Pixels = self._padded(image)[dy : dy + height, dx : dx + width]
        # OpenCV drops the channel axis of a single-channel image.
        return ops.flip(cropped.reshape(image.shape), bool(mirror), False)

    def _padded(self, image: Pixels) -> np.ndarray:
        pad, (height, width, channels) = self.pad, image.shape
        fill = self.fill * channels if len(self.fill) == 1 else self.fill
        if self.mode == "constant" and channels > _OPENCV_SCALAR_CHANNELS:
            padded = np.empty((height + 2 * pad, width + 2 * pad, channels), np.uint8)
            padded[:] = fill
            padded[pad : pad + height, pad : pad + width] = image
            return padded
        return cv2.copyMakeBorder(image, pad, pad, pad, pad, _BORDERS[self.mode], value=fill[:_OPENCV_SCALAR_CHANNELS])


def mean_fill(mean: Sequence[float]) -> tuple[int, ...]:
    """Round a per-channel mean (0–255) to the pad color that normalizes to almost zero."""
    return tuple(round(float(value)) for value in mean)


@dataclass(frozen=True)
class TransformPair:
    """How images are varied in training and cut in evaluation."""

    train: Transform
    eval: ResizeCenterCrop
    min_side: int | None = None  # pixels of the shorter side that `train` needs, None for full size


def make_transforms(name: str, size: int, pad_crop_flip: PadCropFlip | None = None) -> TransformPair:
    """Make one of the `AUGMENTATIONS` for images of `size` × `size` pixels, with the evaluation that goes with it."""
    if size < 1:
        raise UserError(f"invalid input size {size}; expected 1 pixel or more")
    center = ResizeCenterCrop(size, size, size)
    if name == "cifar":
        return TransformPair(ResizedTransform(center, pad_crop_flip or PadCropFlip(pad=size // 8)), center)
    if name == "imagenet":
        random_crop = RandomCropFlip(size)
        return TransformPair(random_crop, ResizeCenterCrop(round(size * 256 / 224), size, size), random_crop.min_side)
    if name == "strong":
        strong = StrongAugment(size)
        return TransformPair(strong, ResizeCenterCrop(None, size, size), 2 * strong.squashed)
    if name == "none":
        return TransformPair(ResizedTransform(center, NoTransform()), center)
    raise UserError(f"unknown augmentation {name!r}; choose one of {', '.join(AUGMENTATIONS)}")


def custom_transforms(function: CustomFunction, size: int, eval_as: str = "none") -> TransformPair:
    """Make a pair of a user's function (see `CustomTransform`) and the evaluation of one of the `AUGMENTATIONS`."""
    return TransformPair(CustomTransform(function, size), make_transforms(eval_as, size).eval)


@dataclass(frozen=True)
class ResizedTransform:
    """Another transform on images that are cut and resized first, so that all of them have one shape."""

    crop: ResizeCenterCrop
    transform: Transform

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.transform.sample(rng, count)

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels:
        return self.transform.apply(self.crop(image), params)


@dataclass(frozen=True)
class RandomCropFlip:
    """The ImageNet augmentation: a random box resized to `size` × `size` pixels, half of the images mirrored."""

    size: int
    scale: tuple[float, float] = (0.08, 1.0)  # of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height

    @property
    def min_side(self) -> int:
        """Pixels of an image's shorter side from which on the smallest box need not be enlarged."""
        return math.ceil(self.size / math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1])))

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw the box's numbers, then the flip's, float32 (count, 23) in [0, 1)."""
        return rng.random((count, ops.BOX_DRAWS + 1), np.float32)

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels:
        *box, mirror = params.tolist()
        cropped = ops.crop(image, ops.random_box(image.shape[0], image.shape[1], box, self.scale, self.ratio))
        return ops.flip(ops.resize(cropped, self.size, self.size), mirror < 0.5, False)


@dataclass(frozen=True)
class StrongAugment:
    """The strong augmentation of the transfer-learning tutorials, for RGB images.

    Squash to 300/256 of `size`, rotate by up to `degrees`, cut the center of `size` × `size`, mirror either way, change
    brightness, contrast, saturation (factors 1 ± the field) and hue (± part of the color circle) in random order, and
    make gray with probability `gray`.
    """

    size: int
    degrees: float = 45.0
    brightness: float = 0.2
    contrast: float = 0.1
    saturation: float = 0.1
    hue: float = 0.1
    gray: float = 0.1

    @property
    def squashed(self) -> int:
        return round(self.size * 300 / 256)

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw angle, flips, four changes of color, their order and grayness, float32 (count, 9) in [0, 1)."""
        return rng.random((count, 9), np.float32)

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels:
        angle, left_right, upside_down, *changes, order, grayness = params.tolist()
        image = ops.resize(image, self.squashed, self.squashed)
        image = ops.rotate(image, self.degrees * (2 * angle - 1), self.size, self.size)
        image = ops.flip(image, left_right < 0.5, upside_down < 0.5)
        image = self._jitter(image, changes, order)
        return ops.to_grayscale(image) if grayness < self.gray else image

    def _jitter(self, image: Pixels, changes: list[float], order: float) -> Pixels:
        adjustments = (
            (ops.adjust_brightness, self.brightness, 1),
            (ops.adjust_contrast, self.contrast, 1),
            (ops.adjust_saturation, self.saturation, 1),
            (ops.adjust_hue, self.hue, 0),
        )
        for i in _JITTER_ORDERS[int(order * len(_JITTER_ORDERS))]:
            adjust, reach, neutral = adjustments[i]
            image = adjust(image, neutral + reach * (2 * changes[i] - 1))
        return image


class CustomTransform:
    """A user's function of a read-only uint8 image (H, W, C) and the image's own generator; returns (size, size, C)."""

    def __init__(self, function: CustomFunction, size: int) -> None:
        self._function, self._size = function, size

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, 2**64, (count, 1), np.uint64)

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels:
        name = getattr(self._function, "__name__", type(self._function).__name__)
        original = image.view()
        original.flags.writeable = False
        try:
            varied = self._function(original, np.random.default_rng(int(params[0])))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename}, line {where.lineno}"
            raise UserError(f"the augmentation {name} raised {type(error).__name__}: {error} ({place})") from error
        expected = (self._size, self._size, image.shape[2])
        if not isinstance(varied, np.ndarray) or varied.dtype != np.uint8 or varied.shape != expected:
            got = f"{varied.dtype} {varied.shape}" if isinstance(varied, np.ndarray) else type(varied).__name__
            raise UserError(f"the augmentation {name} returned {got}; it must return uint8 {expected}")
        return varied
