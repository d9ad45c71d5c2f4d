"""Resize, crop, rotate, flip and recolor uint8 images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_tf.data.image_io import cv2

Pixels = np.ndarray  # (height, width, channels) uint8


@dataclass(frozen=True)
class ResizeCenterCrop:
    """The center of a picture whose shorter side was made `resize` pixels; or, with None, the whole of it, squashed.

    `height` and `width` are what the network sees; with a `resize`, both are at most that.
    """

    resize: int | None
    height: int
    width: int


def frame(image: Pixels, framing: ResizeCenterCrop) -> Pixels:
    """Cut and resize a picture as `framing` says; returns pixels (framing.height, framing.width, channels)."""
    if framing.resize is None:
        return resize(image, framing.height, framing.width)
    return center_crop(image, framing.resize, framing.height, framing.width)


def center_crop(image: Pixels, shorter: int, height: int, width: int) -> Pixels:
    """Resize the shorter side and cut out the center, in the other order: what falls away is not resized first.

    A picture of any proportions thus takes no more memory than it has, and the same part of it is seen.

    Args:
        image: pixels (H, W, C).
        shorter: pixels that the shorter side would be resized to.
        height: rows of the crop.
        width: columns of the crop.

    Returns:
        Pixels (height, width, C).
    """
    rows, columns, _ = image.shape
    zoom = max(shorter / min(rows, columns), height / rows, width / columns)
    part = image[_center(rows, height / zoom), _center(columns, width / zoom)]
    return resize(part, height, width)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resize pixels (H, W, C) to (height, width, C); a picture of that size already is returned as it is.

    A picture that gets no larger either way is averaged over the pixels that fall together, as antialiasing readers
    do; any other is interpolated linearly between pixel centers.
    """
    rows, columns, channels = image.shape
    if (rows, columns) == (height, width):
        return image
    shrinks = height <= rows and width <= columns
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Pixels = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how)
    # OpenCV drops the channel axis of a single-channel image.
    return resized.reshape(height, width, channels)


def _center(length: int, wanted: float) -> slice:
    size = min(length, max(1, round(wanted)))
    start = (length - size) // 2
    return slice(start, start + size)


Box = tuple[int, int, int, int]

# Tries at a box that fits before the largest centered one is taken.
BOX_TRIES = 10
BOX_DRAWS = 2 * BOX_TRIES + 2


def random_box(
    height: int, width: int, draws: Sequence[float], scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Choose a box in a picture: area and shape first, then a place, each alike likely.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        draws: `BOX_DRAWS` numbers in [0, 1): an area and a shape for each try, then the place's row and column.
        scale: least and greatest part of the picture's area.
        ratio: least and greatest width / height, drawn evenly on a logarithmic scale.

    Returns:
        Top, left, height and width in pixels. Where no try fits, the largest centered box of an allowed shape.
    """
    min_side, greatest = math.log(ratio[0]), math.log(ratio[1])
    for i in range(BOX_TRIES):
        area = height * width * (scale[0] + draws[2 * i] * (scale[1] - scale[0]))
        shape = math.exp(min_side + draws[2 * i + 1] * (greatest - min_side))
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            down, right = draws[-2:]
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    rows, columns = min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def crop(image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """Cut out a box; the result is a view."""
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def rotate(image: NDArray[np.uint8], degrees: float, height: int, width: int) -> NDArray[np.uint8]:
    """Turn an image about its center, counter-clockwise, and cut out the center, (height, width, C).

    Pixels are interpolated linearly; what comes from outside the image is black. Only what is cut out is computed.
    """
    rows, columns = image.shape[:2]
    # Coordinates are of pixel centers, so the middle of n pixels is at (n − 1) / 2.
    turn = cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), degrees, 1.0)
    turn[:, 2] -= (columns - width) / 2, (rows - height) / 2
    turned: np.ndarray = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR)
    return turned.reshape(height, width, image.shape[2])


def flip(image: NDArray[np.uint8], left_right: bool, upside_down: bool) -> NDArray[np.uint8]:
    """Mirror an image left to right, upside down, both or not at all."""
    if not (left_right or upside_down):
        return image
    code = -1 if left_right and upside_down else int(left_right)
    mirrored: np.ndarray = cv2.flip(image, code)
    return mirrored.reshape(image.shape)


_LEVELS = np.arange(256, dtype=np.float64)


def brighten(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Multiply all levels by a factor."""
    return _mapped(image, factor * _LEVELS)


def contrast(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Move all levels away from the image's mean gray by a factor, or toward it by one below 1."""
    mean = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
    return _mapped(image, mean + factor * (_LEVELS - mean))


def saturate(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Move every pixel away from its own gray by a factor, or toward it by one below 1."""
    saturated: np.ndarray = cv2.addWeighted(image, factor, gray(image), 1 - factor, 0)
    return saturated


def adjust_hue(image: NDArray[np.uint8], turns: float) -> NDArray[np.uint8]:
    """Turn the hue of every pixel by a part of the color circle, leaving its HSV saturation and value.

    In float32: the 8-bit HSV of OpenCV has steps of hue and saturation that are seen in the result.
    """
    if turns == 0:
        return image
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = np.mod(hsv[..., 0] + np.float32(360 * turns), np.float32(360))
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)


def gray(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace every pixel by its luma, 0.299 R + 0.587 G + 0.114 B, in three equal channels."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    equal: np.ndarray = cv2.merge((luma, luma, luma))
    return equal


def _mapped(image: NDArray[np.uint8], levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    mapped: np.ndarray = cv2.LUT(image, np.rint(levels).clip(0, 255).astype(np.uint8))
    return mapped
