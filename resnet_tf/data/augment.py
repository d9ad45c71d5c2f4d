"""Augmentation with OpenCV: pure functions of an image and of numbers drawn beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_tf.opencv import cv2

_BORDERS = {"constant": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}
_FLIP_LEFT_RIGHT = 1
_CHANNELS_OF_A_SCALAR = 4


class Policy(Protocol):
    """How training images are varied: `draw` for an epoch at once, then `apply` to each image."""

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw an epoch's random numbers; row i, shape (count, …), belongs to image i."""
        ...

    def apply(self, image: NDArray[np.uint8], draw: np.ndarray) -> NDArray[np.uint8]:
        """Vary one uint8 image (H, W, C) by its row of `draw`; the result may be a view."""
        ...


class NoAugmentation:
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

    `pad` is in pixels. `fill` is the pad colour of mode "constant": a value (0–255) per channel, or values
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
    """Round a per-channel mean (pixel units, 0–255) to the pad colour that normalises to almost zero."""
    return tuple(round(float(value)) for value in mean)
