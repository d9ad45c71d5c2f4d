"""Where augmentation moves pixels to: pure functions of an image (H, W, C) uint8 and of numbers drawn beforehand."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from resnet_tf.opencv import cv2

Box = tuple[int, int, int, int]

# Tries at a box that fits before the largest centred one is taken.
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
        Top, left, height and width in pixels. Where no try fits, the largest centred box of an allowed shape.
    """
    least, greatest = math.log(ratio[0]), math.log(ratio[1])
    for i in range(BOX_TRIES):
        area = height * width * (scale[0] + draws[2 * i] * (scale[1] - scale[0]))
        shape = math.exp(least + draws[2 * i + 1] * (greatest - least))
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
    """Turn an image about its centre, counter-clockwise, and cut out the centre, (height, width, C).

    Pixels are interpolated linearly; what comes from outside the image is black. Only what is cut out is computed.
    """
    rows, columns = image.shape[:2]
    # Coordinates are of pixel centres, so the middle of n pixels is at (n − 1) / 2.
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
