"""How augmentation changes colours: pure functions of an RGB image (H, W, 3) uint8 and of a number drawn beforehand.

A factor of 1, and a turn of 0, leave the image as it is. Results are rounded once, to the nearest level, and cut off
at 0 and 255.
"""

import numpy as np
from numpy.typing import NDArray

from resnet_tf.opencv import cv2

_LEVELS = np.arange(256, dtype=np.float64)


def brighten(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Multiply all levels by a factor."""
    return _mapped(image, factor * _LEVELS)


def contrast(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Move all levels away from the image's mean grey by a factor, or toward it by one below 1."""
    mean = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
    return _mapped(image, mean + factor * (_LEVELS - mean))


def saturate(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Move every pixel away from its own grey by a factor, or toward it by one below 1."""
    saturated: np.ndarray = cv2.addWeighted(image, factor, grey(image), 1 - factor, 0)
    return saturated


def turn_hue(image: NDArray[np.uint8], turns: float) -> NDArray[np.uint8]:
    """Turn the hue of every pixel by a part of the colour circle, leaving its HSV saturation and value.

    In float32: the 8-bit HSV of OpenCV has steps of hue and saturation that are seen in the result.
    """
    if turns == 0:
        return image
    hsv = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = np.mod(hsv[..., 0] + np.float32(360 * turns), np.float32(360))
    return np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)


def grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Replace every pixel by its luma, 0.299 R + 0.587 G + 0.114 B, in three equal channels."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    equal: np.ndarray = cv2.merge((luma, luma, luma))
    return equal


def _mapped(image: NDArray[np.uint8], levels: NDArray[np.float64]) -> NDArray[np.uint8]:
    mapped: np.ndarray = cv2.LUT(image, np.rint(levels).clip(0, 255).astype(np.uint8))
    return mapped
