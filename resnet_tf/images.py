"""Image files to pixels: everything that the package reads from picture files goes through here."""

import os
import stat

import numpy as np

from resnet_tf import headers, jpeg
from resnet_tf.opencv import cv2

# HEIC cannot be decoded; it is here so that a telephone's photos are reported, not overlooked.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
MAX_BYTES = 2**30
MAX_PIXELS = 2**27

Pixels = np.ndarray  # (height, width, channels) or a batch of them, uint8

_WHOLE = {3: cv2.IMREAD_COLOR, 1: cv2.IMREAD_GRAYSCALE}
_REDUCED = {
    (3, 2): cv2.IMREAD_REDUCED_COLOR_2,
    (3, 4): cv2.IMREAD_REDUCED_COLOR_4,
    (3, 8): cv2.IMREAD_REDUCED_COLOR_8,
    (1, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (1, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (1, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class UnreadableImageError(Exception):
    """A file is no image that can be decoded; the message says why in a few words."""


def read_image(path: str | os.PathLike[str], channels: int = 3, least: int | None = None) -> Pixels:
    """Decode an image file; see `decode_image` for the arguments and the pixels.

    Raises:
        UnreadableImageError: the file cannot be read, or what it holds cannot be decoded.
    """
    return decode_image(read_bytes(path), channels, least)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file whole, after a look at what it is.

    Raises:
        UnreadableImageError: it is not there, not permitted, not a regular file, empty, or larger than `MAX_BYTES`.
    """
    try:
        status = os.stat(path)
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImageError("too large")
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UnreadableImageError(f"unreadable: {error.strerror or error}") from error
    except ValueError as error:
        raise UnreadableImageError(f"unreadable: {error}") from error
    if not data:
        raise UnreadableImageError("empty")
    return data


def decode_image(data: bytes, channels: int = 3, least: int | None = None) -> Pixels:
    """Decode an image file's content, by what it is and not by what it is called, turned as its EXIF data say.

    16 bits become 8 (the high byte, within one level of exact scaling), grey becomes RGB with equal channels, CMYK
    becomes RGB, an animation is its first picture. Transparency is dropped and the stored colours are kept, as other
    training libraries do, so that their weights see the pixels that they were trained on.

    Args:
        data: content of a file of any format that OpenCV reads.
        channels: 3 for RGB, 1 for grey.
        least: pixels that the shorter side needs at least. A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size as
            far as that allows, which is faster and not quite what averaging the full picture gives. None decodes in
            full.

    Returns:
        Pixels (height, width, channels) uint8.

    Raises:
        UnreadableImageError: it is no image, damaged, truncated, or says that it has more than `MAX_PIXELS`.
    """
    picture = jpeg.inspect(data) if data.startswith(jpeg.SIGNATURE) else None
    width, height = (picture.width, picture.height) if picture else headers.stored_size(data) or (0, 0)
    # OpenCV's own limit is eight times as high, and could only be lowered before Keras imports it.
    if width * height > MAX_PIXELS:
        raise UnreadableImageError("too large")
    # Some versions of OpenCV fill what is missing of a JPEG with grey and say nothing.
    if picture and not picture.whole:
        raise UnreadableImageError("truncated")
    reduction = _reduction(min(width, height), least) if picture else 1
    how = _REDUCED.get((channels, reduction), _WHOLE[channels])
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        raise UnreadableImageError("too large" if "MAX_IMAGE" in str(error) else "damaged") from error
    if image is None:
        known = "damaged or truncated" if data.startswith(headers.KNOWN) else "no image"
        raise UnreadableImageError("damaged" if picture else known)
    pixels: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image[..., np.newaxis]
    return pixels


def _reduction(side: int, least: int | None) -> int:
    if least is None:
        return 1
    return next((factor for factor in (8, 4, 2) if side // factor >= least), 1)
