"""Resize, crop, rotate, flip and recolor uint8 images (H, W, C)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_tf.data.image_io import Pixels, cv2

Box = tuple[int, int, int, int]  # top, left, height, width

# Tries at a box that fits before the largest centered one is taken; the random numbers that they need.
BOX_TRIES = 10
BOX_DRAWS = 2 * BOX_TRIES + 2

_LEVELS = np.arange(256, dtype=np.float64)


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
