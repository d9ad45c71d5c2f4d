"""Decode image files. OpenCV is imported here and nowhere else."""

import os
import re
import stat
import struct
from dataclasses import dataclass

import numpy as np

from resnet_tf.errors import UserError

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

# HEIC cannot be decoded; it is here so that a phone's photos are reported, not overlooked.
SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
MAX_BYTES = 2**30
MAX_PIXELS = 2**27

_FULL = {3: cv2.IMREAD_COLOR, 1: cv2.IMREAD_GRAYSCALE}
_REDUCED = {
    (3, 2): cv2.IMREAD_REDUCED_COLOR_2,
    (3, 4): cv2.IMREAD_REDUCED_COLOR_4,
    (3, 8): cv2.IMREAD_REDUCED_COLOR_8,
    (1, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (1, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4,
    (1, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# How files of the formats that OpenCV reads begin; the group's name is the format's. HEIC and MP4 files have other
# brands than "avif" and "avis" after the length and the name of their first box.
_FORMAT = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG)|(?P<gif>GIF8)|(?P<bmp>BM)|(?P<webp>RIFF)|(?P<tiff>II\*\0|MM\0\*)"
    rb"|(?P<jp2>\0{3}\x0cjP)|(?P<avif>\0{3}.ftypavi)|(?P<pnm>P[1-6])",
    re.DOTALL,
)
_PNM_SIZE = re.compile(rb"P[1-6]\s(?:\s|#[^\n]*\n)*([0-9]+)(?:\s|#[^\n]*\n)+([0-9]+)")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_SHORT = 256, 257, 3
# In JPEG picture data 0xFF is followed by 0x00 or by a restart marker (0xD0–0xD7). Besides these, TEM (0x01) and SOI
# (0xD8) have no length after them; all others but EOI have one.
_JPEG_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])")
_JPEG_END = 0xD9
# Start-of-frame markers, among which DHT (C4), JPG (C8) and DAC (CC) are something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


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
    which is faster and not quite what averaging gives. Raises UnreadableImageError.
    """
    found = _FORMAT.match(data)
    jpeg = inspect_jpeg(data) if found and found.lastgroup == "jpeg" else None
    width, height = (jpeg.width, jpeg.height) if jpeg else stored_size(data) or (0, 0)
    # OpenCV's own limit is eight times as high, and could only be lowered before Keras imports it.
    if width * height > MAX_PIXELS:
        raise UnreadableImageError("too large")
    # Some versions of OpenCV fill what is missing of a JPEG with gray and say nothing.
    if jpeg and not jpeg.complete:
        raise UnreadableImageError("truncated")
    reduction = 1
    if jpeg and min_side is not None:
        reduction = next((factor for factor in (8, 4, 2) if min(width, height) // factor >= min_side), 1)
    mode = _REDUCED.get((channels, reduction), _FULL[channels])
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), mode)
    except cv2.error as error:
        raise UnreadableImageError("too large" if "MAX_IMAGE" in str(error) else "damaged") from error
    if image is None:
        raise UnreadableImageError("damaged" if jpeg else "damaged or truncated" if found else "no image")
    pixels: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image[..., np.newaxis]
    return pixels


@dataclass(frozen=True)
class JpegInfo:
    """Size in pixels as stored, before any EXIF rotation (0 where there is none), and whether the end is there."""

    height: int
    width: int
    complete: bool


def inspect_jpeg(data: bytes) -> JpegInfo:
    """Walk the markers of a JPEG file up to its end marker; a thumbnail's own lies inside a segment."""
    height = width = 0
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        code, position = marker[1][0], marker.end()
        if code == _JPEG_END:
            return JpegInfo(height, width, True)
        if code in _JPEG_FRAMES and len(data) >= position + 7:
            height, width = struct.unpack_from(">HH", data, position + 3)
        position += int.from_bytes(data[position : position + 2])
    return JpegInfo(height, width, False)


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a file other than JPEG declares, if it does."""
    found = _FORMAT.match(data)
    try:
        return _header_size(data, found.lastgroup) if found else None
    except struct.error:
        return None


def _header_size(data: bytes, image_format: str | None) -> tuple[int, int] | None:
    if image_format == "png":
        return struct.unpack_from(">II", data, 16)
    if image_format == "gif":
        return struct.unpack_from("<HH", data, 6)
    if image_format == "bmp":
        if struct.unpack_from("<I", data, 14) == (12,):
            return struct.unpack_from("<HH", data, 18)
        width, height = struct.unpack_from("<ii", data, 18)
        # A negative height says that the lines begin at the top.
        return abs(width), abs(height)
    if image_format == "webp":
        return _webp_size(data)
    if image_format == "tiff":
        return _tiff_size(data, "<" if data.startswith(b"II") else ">")
    if image_format == "jp2" and (start := data.find(b"ihdr")) >= 0:
        height, width = struct.unpack_from(">II", data, start + 4)
        return width, height
    if image_format == "avif" and (start := data.find(b"ispe")) >= 0:
        return struct.unpack_from(">II", data, start + 8)
    if image_format == "pnm" and (size := _PNM_SIZE.match(data[:4096])):
        return int(size[1]), int(size[2])
    return None


def _webp_size(data: bytes) -> tuple[int, int]:
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_size(data: bytes, order: str) -> tuple[int, int]:
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    (entries,) = struct.unpack_from(f"{order}H", data, directory)
    size = {_TIFF_WIDTH: 0, _TIFF_HEIGHT: 0}
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, field_type = struct.unpack_from(f"{order}HH", data, entry)
        if tag in size:
            (size[tag],) = struct.unpack_from(f"{order}{'H' if field_type == _TIFF_SHORT else 'I'}", data, entry + 8)
    return size[_TIFF_WIDTH], size[_TIFF_HEIGHT]
