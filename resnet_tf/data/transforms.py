"""Augmentation for training and the matching resize and crop for evaluation."""

import itertools
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_tf.data import image_ops as color
from resnet_tf.data.image_io import cv2
from resnet_tf.data.image_ops import BOX_DRAWS, ResizeCenterCrop, crop, flip, frame, random_box, resize, rotate
from resnet_tf.errors import UserError

_BORDERS = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
_FLIP_LEFT_RIGHT = 1
_CHANNELS_OF_A_SCALAR = 4


class Transform(Protocol):
    """How training images are varied: `draw` for an epoch at once, then `apply` to each image."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw an epoch's random numbers; row i, shape (count, …), belongs to image i."""
        ...

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Vary one uint8 image (H, W, C) by its row of `draw`; the result may be a view."""
        ...


class NoTransform:
    """Every image as it is."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` empty rows, shape (count, 0)."""
        return np.empty((count, 0), np.int64)

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Return `image` itself."""
        return image


@dataclass(frozen=True)
class PadCropFlip:
    """The papers' CIFAR augmentation: pad each side, crop the old size anywhere, mirror half of the images.

    `pad` is in pixels. `fill` is the pad color of mode "constant": a value (0–255) per channel, or values
    that are all equal, which suit any number of channels. Mode "reflect" mirrors without repeating the edge.
    """

    pad: int = 4
    mode: Literal["constant", "reflect"] = "constant"
    fill: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self) -> None:
        """Raise ValueError for a field out of range."""
        if self.pad < 0:
            raise ValueError(f"pad is {self.pad}; it is a number of pixels, 0 or more")
        if self.mode not in _BORDERS:
            raise ValueError(f"mode is {self.mode!r}; it is one of {', '.join(_BORDERS)}")
        if not self.fill or not all(0 <= value <= 255 for value in self.fill):
            raise ValueError(f"fill is {self.fill}; it has one or more values in 0–255")

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw (dy, dx, flip) per image, int64 (count, 3): offsets in 0…2·pad inclusive, flip in {0, 1}."""
        offsets = 2 * self.pad + 1
        # Row by row, so that an image's draw does not depend on how many images come after it.
        return rng.integers(0, [offsets, offsets, 2], size=(count, 3))

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Crop the padded uint8 image (H, W, C) at (dy, dx) to (H, W, C), then mirror it left to right if flip.

        Raises ValueError when `fill` does not suit the image's channels.
        """
        dy, dx, flip = draw.tolist()
        height, width, _ = image.shape
        varied: np.ndarray = self._padded(image)[dy : dy + height, dx : dx + width]
        if flip:
            varied = cv2.flip(varied, _FLIP_LEFT_RIGHT)
        # OpenCV drops the channel axis of a single-channel image.
        return varied.reshape(image.shape)

    def _padded(self, image: NDArray[np.uint8]) -> np.ndarray:
        pad, (height, width, channels) = self.pad, image.shape
        fill = self._fill_for(channels)
        if self.mode == "constant" and channels > _CHANNELS_OF_A_SCALAR:
            padded = np.empty((height + 2 * pad, width + 2 * pad, channels), np.uint8)
            padded[:] = fill
            padded[pad : pad + height, pad : pad + width] = image
            return padded
        return cv2.copyMakeBorder(image, pad, pad, pad, pad, _BORDERS[self.mode], value=fill[:_CHANNELS_OF_A_SCALAR])

    def _fill_for(self, channels: int) -> tuple[int, ...]:
        if len(self.fill) == channels:
            return self.fill
        if len(set(self.fill)) > 1:
            raise ValueError(f"fill has {len(self.fill)} different values for images of {channels} channels")
        return self.fill[:1] * channels


def mean_fill(mean: Sequence[float]) -> tuple[int, ...]:
    """Round a per-channel mean (pixel units, 0–255) to the pad color that normalizes to almost zero."""
    return tuple(round(float(value)) for value in mean)


POLICIES = ("cifar", "imagenet", "strong", "none")

CustomFunction = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]


@dataclass(frozen=True)
class TransformPair:
    """What belongs together: a policy for training, the framing for evaluation, and what training needs of a file.

    `min_side` is for `FileSource`: smallest side in pixels a training image is decoded to, None for full size.
    Evaluation always decodes in full.
    """

    policy: Transform
    framing: ResizeCenterCrop
    min_side: int | None = None


def augmentation(name: str, size: int, pad_crop_flip: PadCropFlip | None = None) -> TransformPair:
    """Make one of the augmentations `POLICIES` for images of `size` × `size` pixels.

    cifar: shorter side to `size`, center, then `pad_crop_flip`, by default with a pad of `size` / 8. Evaluation
    without the latter.
    imagenet: `RandomCropFlip`. Evaluation with the shorter side at 256/224 of `size`, of that the center.
    strong: `StrongAugment`. Evaluation by squashing.
    none: training and evaluation as the evaluation of cifar.

    Raises:
        UserError: there is no such augmentation, or the size is below 1.
    """
    if size < 1:
        raise UserError(f"the input size {size} makes no sense; give 1 pixel or more")
    whole = ResizeCenterCrop(size, size, size)
    if name == "cifar":
        return TransformPair(ResizedTransform(whole, pad_crop_flip or PadCropFlip(pad=size // 8)), whole)
    if name == "imagenet":
        random_crop = RandomCropFlip(size)
        return TransformPair(random_crop, ResizeCenterCrop(round(size * 256 / 224), size, size), random_crop.min_side)
    if name == "strong":
        strong = StrongAugment(size)
        return TransformPair(strong, ResizeCenterCrop(None, size, size), 2 * strong.squashed)
    if name == "none":
        return TransformPair(ResizedTransform(whole, NoTransform()), whole)
    raise UserError(f"the augmentation {name!r} is not known; choose one of {', '.join(POLICIES)}")


def custom_transforms(function: CustomFunction, size: int, framing_of: str = "none") -> TransformPair:
    """Make an augmentation of a user's function; see `CustomTransform`. Evaluation frames as one of `POLICIES` does.

    Raises UserError when the size is below 1.
    """
    return TransformPair(CustomTransform(function, size), augmentation(framing_of, size).framing)


@dataclass(frozen=True)
class ResizedTransform:
    """Another policy on images that are framed first, so that all of them have one shape."""

    framing: ResizeCenterCrop
    policy: Transform

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw what the other policy draws."""
        return self.policy.draw(rng, count)

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Frame the image to uint8 (framing.height, framing.width, C), then vary it."""
        return self.policy.apply(frame(image, self.framing), draw)


@dataclass(frozen=True)
class RandomCropFlip:
    """The ImageNet augmentation: a random box resized to `size` × `size` pixels, half of the images mirrored.

    The box has `scale` of the image's area and `ratio` as its width / height (`random_box`).
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    @property
    def min_side(self) -> int:
        """Pixels of an image's shorter side from which on the smallest box need not be enlarged."""
        return math.ceil(self.size / math.sqrt(self.scale[0] * min(self.ratio[0], 1 / self.ratio[1])))

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw the box's numbers, then the flip's, float32 (count, 23) in [0, 1)."""
        return rng.random((count, BOX_DRAWS + 1), np.float32)

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Cut, resize and mirror an image (H, W, C) to (size, size, C)."""
        *box, mirror = draw.tolist()
        part = crop(image, random_box(image.shape[0], image.shape[1], box, self.scale, self.ratio))
        return flip(resize(part, self.size, self.size), mirror < 0.5, False)


@dataclass(frozen=True)
class StrongAugment:
    """The strong augmentation of the transfer-learning tutorials, for RGB images.

    The image is squashed to 300/256 of `size` both ways, turned by up to `degrees` either way, cut to its center of
    `size` × `size`, mirrored either way with probability ½, changed in brightness, contrast, saturation and hue in
    random order, and made gray with probability `gray`. `brightness`, `contrast` and `saturation` are the largest
    departures of a factor from 1; `hue` is the largest turn as a part of the color circle.
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
        """Pixels of either side before the center is cut out."""
        return round(self.size * 300 / 256)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw angle, flips, four changes of color, their order and grayness, float32 (count, 9) in [0, 1)."""
        return rng.random((count, 9), np.float32)

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Vary an image (H, W, 3) to (size, size, 3)."""
        angle, left_right, upside_down, *changes, order, grayness = draw.tolist()
        image = resize(image, self.squashed, self.squashed)
        image = rotate(image, self.degrees * (2 * angle - 1), self.size, self.size)
        image = flip(image, left_right < 0.5, upside_down < 0.5)
        image = self._jitter(image, changes, order)
        return color.gray(image) if grayness < self.gray else image

    def _jitter(self, image: NDArray[np.uint8], changes: list[float], order: float) -> NDArray[np.uint8]:
        operations = (
            (color.brighten, self.brightness, 1),
            (color.contrast, self.contrast, 1),
            (color.saturate, self.saturation, 1),
            (color.adjust_hue, self.hue, 0),
        )
        for i in _ORDERS[int(order * len(_ORDERS))]:
            operation, reach, neutral = operations[i]
            image = operation(image, neutral + reach * (2 * changes[i] - 1))
        return image


_ORDERS = tuple(itertools.permutations(range(4)))


class CustomTransform:
    """A user's function of an image and a random generator, which is keyed by (seed, epoch, image).

    The image is uint8 (H, W, C) as it was read, of any size, and cannot be changed in place; the function returns uint8
    (size, size, C). It must draw from the generator alone.
    """

    def __init__(self, function: CustomFunction, size: int) -> None:
        """Wrap `function`, which makes images of `size` × `size` pixels."""
        self._function, self._size = function, size

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw a key for each image's own generator, uint64 (count, 1); `rng` is keyed by (seed, epoch)."""
        return rng.integers(0, 2**64, (count, 1), np.uint64)

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Call the function; raises UserError when it raises, or returns anything but uint8 (size, size, C)."""
        name = getattr(self._function, "__name__", type(self._function).__name__)
        original = image.view()
        original.flags.writeable = False
        try:
            varied = self._function(original, np.random.default_rng(int(draw[0])))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"the augmentation {name} raised {type(error).__name__}: {error} ({where.filename}, line "
                f"{where.lineno}) on an image of the shape {image.shape}; mend it"
            ) from error
        wanted = (self._size, self._size, image.shape[2])
        if not isinstance(varied, np.ndarray) or varied.dtype != np.uint8 or varied.shape != wanted:
            got = f"{varied.dtype} {varied.shape}" if isinstance(varied, np.ndarray) else type(varied).__name__
            raise UserError(f"the augmentation {name} returned {got}; it must return uint8 {wanted}")
        return varied
