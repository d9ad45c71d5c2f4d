"""Augmentation for training, the resize and crop of evaluation, and what they do to uint8 images (H, W, C)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_tf.config import AUGMENTATIONS
from resnet_tf.data.custom_transform import CustomFunction, CustomTransform
from resnet_tf.data.image_io import Pixels, cv2
from resnet_tf.errors import UserError

Box = tuple[int, int, int, int]  # top, left, height, width

# Tries at a box that fits before the largest centered one is taken; the random numbers that they need.
BOX_TRIES = 10
BOX_DRAWS = 2 * BOX_TRIES + 2

_LEVELS = np.arange(256, dtype=np.float64)
_BORDERS = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
_OPENCV_SCALAR_CHANNELS = 4
_JITTER_ORDERS = tuple(itertools.permutations(range(4)))


@dataclass(frozen=True)
class ResizeCenterCrop:
    """Resize the shorter side to `resize` pixels and cut the center (height, width); None squashes the whole image.

    The fields are written to sidecars.
    """

    resize: int | None
    height: int
    width: int

    def __call__(self, image: Pixels) -> Pixels:
        if self.resize is not None:
            # Cut before it is resized, so that an image of any proportions takes no more memory than it has.
            rows, columns, _ = image.shape
            zoom = max(self.resize / min(rows, columns), self.height / rows, self.width / columns)
            image = image[_center(rows, self.height / zoom), _center(columns, self.width / zoom)]
        return resize(image, self.height, self.width)


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
        return flip(cropped.reshape(image.shape), bool(mirror), False)

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
        return rng.random((count, BOX_DRAWS + 1), np.float32)

    def apply(self, image: Pixels, params: np.ndarray) -> Pixels:
        *box, mirror = params.tolist()
        cropped = crop(image, random_box(image.shape[0], image.shape[1], box, self.scale, self.ratio))
        return flip(resize(cropped, self.size, self.size), mirror < 0.5, False)


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
        image = resize(image, self.squashed, self.squashed)
        image = rotate(image, self.degrees * (2 * angle - 1), self.size, self.size)
        image = flip(image, left_right < 0.5, upside_down < 0.5)
        image = self._jitter(image, changes, order)
        return to_grayscale(image) if grayness < self.gray else image

    def _jitter(self, image: Pixels, changes: list[float], order: float) -> Pixels:
        adjustments = (
            (adjust_brightness, self.brightness, 1),
            (adjust_contrast, self.contrast, 1),
            (adjust_saturation, self.saturation, 1),
            (adjust_hue, self.hue, 0),
        )
        for i in _JITTER_ORDERS[int(order * len(_JITTER_ORDERS))]:
            adjust, reach, neutral = adjustments[i]
            image = adjust(image, neutral + reach * (2 * changes[i] - 1))
        return image


def _center(length: int, wanted: float) -> slice:
    size = min(length, max(1, round(wanted)))
    start = (length - size) // 2
    return slice(start, start + size)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resize by averaging where an image gets no larger either way, else by linear interpolation."""
    rows, columns, channels = image.shape
    if (rows, columns) == (height, width):
        return image
    shrinks = height <= rows and width <= columns
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Pixels = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=interpolation)
    # OpenCV drops the channel axis of a single-channel image.
    return resized.reshape(height, width, channels)


def random_box(
    height: int, width: int, draws: Sequence[float], scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Choose a box of an image by area, then width / height (evenly on a logarithmic scale), then place.

    `draws` are `BOX_DRAWS` numbers in [0, 1): area and ratio of each try, then top and left.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(BOX_TRIES):
        area = height * width * (scale[0] + draws[2 * i] * (scale[1] - scale[0]))
        shape = math.exp(low + draws[2 * i + 1] * (high - low))
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            down, right = draws[-2:]
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    rows, columns = min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def crop(image: Pixels, box: Box) -> Pixels:
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def rotate(image: Pixels, degrees: float, height: int, width: int) -> Pixels:
    """Rotate counter-clockwise about the center and cut out the center (height, width); outside is black."""
    rows, columns = image.shape[:2]
    # Coordinates are of pixel centers, so the middle of n pixels is at (n − 1) / 2.
    matrix = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0)
    matrix[:, 2] -= (columns - width) / 2, (rows - height) / 2
    rotated: Pixels = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    return rotated.reshape(height, width, image.shape[2])


def flip(image: Pixels, left_right: bool, upside_down: bool) -> Pixels:
    if not (left_right or upside_down):
        return image
    code = -1 if left_right and upside_down else int(left_right)
    mirrored: Pixels = cv2.flip(image, code)
    return mirrored.reshape(image.shape)


def adjust_brightness(image: Pixels, factor: float) -> Pixels:
    return _map_levels(image, factor * _LEVELS)


def adjust_contrast(image: Pixels, factor: float) -> Pixels:
    mean = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
    return _map_levels(image, mean + factor * (_LEVELS - mean))


def adjust_saturation(image: Pixels, factor: float) -> Pixels:
    """Move every pixel away from its own gray by a factor, or toward it by one below 1."""
    saturated: Pixels = cv2.addWeighted(image, factor, to_grayscale(image), 1 - factor, 0)
    return saturated


def adjust_hue(image: Pixels, turns: float) -> Pixels:
    """Turn the hue by a part of the color circle, in float32: OpenCV's 8-bit HSV has steps that are seen."""
    if turns == 0:
        return image
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = np.mod(hsv[..., 0] + np.float32(360 * turns), np.float32(360))
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)


def to_grayscale(image: Pixels) -> Pixels:
    """Replace every pixel by its luma, 0.299 R + 0.587 G + 0.114 B, in three equal channels."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gray: Pixels = cv2.merge((luma, luma, luma))
    return gray


def _map_levels(image: Pixels, levels: NDArray[np.float64]) -> Pixels:
    mapped: Pixels = cv2.LUT(image, np.rint(levels).clip(0, 255).astype(np.uint8))
    return mapped
