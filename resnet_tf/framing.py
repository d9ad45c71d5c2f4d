"""Which part of a picture a network sees, and in how many pixels."""

from dataclasses import dataclass

import numpy as np

from resnet_tf.opencv import cv2

Pixels = np.ndarray  # (height, width, channels) uint8


@dataclass(frozen=True)
class Framing:
    """The centre of a picture whose shorter side was made `resize` pixels; or, with None, the whole of it, squashed.

    `height` and `width` are what the network sees; with a `resize`, both are at most that.
    """

    resize: int | None
    height: int
    width: int


def frame(image: Pixels, framing: Framing) -> Pixels:
    """Cut and resize a picture as `framing` says; returns pixels (framing.height, framing.width, channels)."""
    if framing.resize is None:
        return resize(image, framing.height, framing.width)
    return centre_crop(image, framing.resize, framing.height, framing.width)


def centre_crop(image: Pixels, shorter: int, height: int, width: int) -> Pixels:
    """Resize the shorter side and cut out the centre, in the other order: what falls away is not resized first.

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
    part = image[_centre(rows, height / zoom), _centre(columns, width / zoom)]
    return resize(part, height, width)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """Resize pixels (H, W, C) to (height, width, C); a picture of that size already is returned as it is.

    A picture that gets no larger either way is averaged over the pixels that fall together, as antialiasing readers
    do; any other is interpolated linearly between pixel centres.
    """
    rows, columns, channels = image.shape
    if (rows, columns) == (height, width):
        return image
    shrinks = height <= rows and width <= columns
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: Pixels = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how)
    # OpenCV drops the channel axis of a single-channel image.
    return resized.reshape(height, width, channels)


def _centre(length: int, wanted: float) -> slice:
    size = min(length, max(1, round(wanted)))
    start = (length - size) // 2
    return slice(start, start + size)
