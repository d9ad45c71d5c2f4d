"""Look at image files and decode them. OpenCV is imported here and nowhere else."""

import math
import os
import re
import stat
from io import BytesIO
from typing import Any

import numpy as np

from resnet_tf.data.image_size import (
    TIFF_BITS,
    TIFF_ORIENTATION,
    TIFF_SAMPLES,
    image_format,
    inspect_jpeg,
    stored_size,
    tiff_value,
)
from resnet_tf.errors import UserError, optional_import

try:
    import cv2
except ImportError as error:
    raise UserError(
        f"OpenCV cannot be imported ({error}); either install the system libraries it needs "
        "(Debian/Ubuntu: apt-get install libgl1 libglib2.0-0 libxcb1) or swap the package "
        "(pip uninstall -y opencv-python && pip install opencv-python-headless)"
    ) from error

__all__ = ["cv2"]

Pixels = np.ndarray  # (height, width, channels) uint8

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
MAX_BYTES = 2**30
MAX_PIXELS = 2**27
# A progressive JPEG costs time for every scan that it has, however empty; encoders write about ten.
_MAX_SCANNED = 2**31
# A 16-bit picture that would keep fewer levels than these of 256 is stretched.
_MIN_LEVELS = 16

_KINDS = {3: "COLOR", 1: "GRAYSCALE"}
_DEEP_FORMATS = ("png", "tiff", "jp2", "pnm")
_TURNED_FORMATS = ("webp", "avif")
_AVIF_TURN, _AVIF_MIRROR = (re.compile(rb"\0{3}\x09" + box + rb"(.)", re.DOTALL) for box in (b"irot", b"imir"))
# What is wrong with a file is said here, in a few words. The function's place depends on OpenCV's version.
if "OPENCV_LOG_LEVEL" not in os.environ:
    (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)(0)


class UnreadableImageError(Exception):
    """A file is not an image that can be decoded; the message says why in a few words."""


def read_image(path: str | os.PathLike[str], channels: int = 3, min_side: int | None = None) -> Pixels:
    return decode_image(read_bytes(path), channels, min_side)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a regular, non-empty file of at most `MAX_BYTES`; raises UnreadableImageError."""
    try:
        status = os.stat(path)
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImageError("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
        if status.st_size > MAX_BYTES:
            raise UnreadableImageError("too large")
        with open(path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise UnreadableImageError(f"unreadable: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise UnreadableImageError("empty")
    return data


def decode_image(data: bytes, channels: int = 3, min_side: int | None = None) -> Pixels:
    """Decode a file's content to RGB (`channels` 3) or gray (1) uint8, turned as its EXIF data say.

    A JPEG whose shorter side is larger than `min_side` is decoded at 1/2, 1/4 or 1/8 of its size as far as that allows,
    which is faster and not quite what averaging gives. 16 bits are cut to 8. Where that leaves few levels, and
    with signed, 32-bit or floating-point samples, what lies between the lowest and the highest becomes 0–255, but
    floating-point numbers from 0 to 1 are multiplied by 255. Raises UnreadableImageError.
    """
    kind = image_format(data)
    if kind is None:
        raise UnreadableImageError("no image")
    if kind == "heic":
        return _decode_heic(data, channels)
    jpeg = inspect_jpeg(data) if kind == "jpeg" else None
    width, height = (jpeg.width, jpeg.height) if jpeg else stored_size(data) or (0, 0)
    # OpenCV's own limit is eight times as high, and could only be lowered before Keras imports it.
    if width * height * _decoding_cost(data, kind) > MAX_PIXELS:
        raise UnreadableImageError("too large")
    # Some versions of OpenCV fill what is missing of a JPEG with gray and say nothing.
    if jpeg and not jpeg.complete:
        raise UnreadableImageError("truncated")
    if jpeg and width * height * jpeg.scans > _MAX_SCANNED:
        raise UnreadableImageError("too many scans")
    reduction = 1
    if jpeg and min_side is not None:
        reduction = next((factor for factor in (8, 4, 2) if min(width, height) // factor >= min_side), 1)
    name = f"REDUCED_{_KINDS[channels]}_{reduction}" if reduction > 1 else _KINDS[channels]
    mode = getattr(cv2, f"IMREAD_{name}")
    if kind in _TURNED_FORMATS:
        mode |= cv2.IMREAD_IGNORE_ORIENTATION
    elif kind in _DEEP_FORMATS:
        mode |= cv2.IMREAD_ANYDEPTH
    image = _imdecode(data, mode) if width * height else None
    if image is None and kind == "tiff" and width * height:
        image = _imdecode(data, cv2.IMREAD_UNCHANGED)  # floating-point and 32-bit samples are not converted
    if image is not None and kind in _DEEP_FORMATS:
        image = _in_channels(_in_bytes(image), channels)
    if image is None:
        raise UnreadableImageError("damaged" if jpeg else "damaged or truncated")
    if kind in _TURNED_FORMATS:
        image = _turn(image, _orientation(data, kind))
    pixels: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image[..., np.newaxis]
    return pixels


def _imdecode(data: bytes, flags: int) -> Any:
    """The picture in OpenCV's order of channels, or None."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if "MAX_IMAGE" in str(error):
            raise UnreadableImageError("too large") from error
        return None


def _in_bytes(image: Any) -> Any:
    """Levels of any depth in 8 bits."""
    if image.dtype == np.uint8:
        return image
    low, high = float(np.nanmin(image)), float(np.nanmax(image))
    if not np.isfinite(high - low):
        image = np.where(np.isfinite(image), image, 0)
        low, high = float(image.min()), float(image.max())
    if image.dtype == np.uint16 and (high - low >= _MIN_LEVELS * 256 or low == high):
        return (image >> 8).astype(np.uint8)
    if image.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    levels = np.subtract(image, low, dtype=np.float32 if image.dtype.itemsize <= 2 else np.float64)
    levels *= 255 / ((high - low) or 1)
    return np.nan_to_num(levels.round(out=levels), copy=False).astype(np.uint8)


def _in_channels(image: Any, channels: int) -> Any:
    """A picture of any channels in three (blue, green, red), or in one without an axis; alpha is left out."""
    stored = image.shape[2] if image.ndim == 3 else 1
    if stored in (1, 2):
        image = image.reshape(*image.shape[:2], stored)[..., 0]
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if channels == 3 else image
    return image[..., :3] if channels == 3 else cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)


def _decode_heic(data: bytes, channels: int) -> Pixels:
    try:
        pillow_heif = optional_import("pillow_heif", "heif")
    except UserError as error:
        raise UnreadableImageError("HEIC, which is read after pip install 'resnet_tf[heif]'") from error
    try:
        heif = pillow_heif.open_heif(BytesIO(data), convert_hdr_to_8bit=True)
        image = np.asarray(heif) if math.prod(heif.size) <= MAX_PIXELS else None
    except Exception as error:  # its reader names no class of errors
        raise UnreadableImageError("damaged or truncated") from error
    if image is None:
        raise UnreadableImageError("too large")
    image = image if image.ndim == 3 else image[..., np.newaxis]
    if image.shape[2] < 3:
        return np.repeat(image[..., :1], channels, axis=2)
    return image[..., :3] if channels == 3 else cv2.cvtColor(image[..., :3], cv2.COLOR_RGB2GRAY)[..., np.newaxis]


def _turn(image: Any, orientation: int) -> Any:
    """Undo an EXIF orientation: 5 to 8 have rows and columns exchanged, and mirrored are 2, 3, 6, 7 and 3, 4, 7, 8."""
    if orientation in (5, 6, 7, 8):
        image = cv2.transpose(image)
    flip = {2: 1, 6: 1, 3: -1, 7: -1, 4: 0, 8: 0}.get(orientation)
    return image if flip is None else cv2.flip(image, flip)


def _decoding_cost(data: bytes, kind: str) -> float:
    """Memory that a pixel takes while it is decoded, in multiples of what one of a PNG of 8 bits does."""
    if kind == "tiff":
        return max(1, tiff_value(data, TIFF_BITS) * tiff_value(data, TIFF_SAMPLES) / 24)
    return {"gif": 2, "jp2": 2.5, "avif": 2.5}.get(kind, 1)


def _orientation(data: bytes, kind: str) -> int:
    """EXIF's number for how a WebP or AVIF is turned; OpenCV does not turn them in all versions."""
    if kind == "webp":
        start = data.rfind(b"EXIF") if data[12:16] == b"VP8X" and data[20] & 8 else -1
        return tiff_value(data[start + 8 :].removeprefix(b"Exif\0\0"), TIFF_ORIENTATION) if start >= 0 else 1
    # The boxes of an AVIF turn the picture to the left by right angles and then mirror it.
    turn, mirror = _AVIF_TURN.search(data), _AVIF_MIRROR.search(data)
    angle = turn[1][0] & 3 if turn else 0
    return (1, 8, 3, 6)[angle] if not mirror else ((4, 5, 2, 7), (2, 7, 4, 5))[mirror[1][0] & 1][angle]
