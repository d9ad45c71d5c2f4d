"""Decode image files. OpenCV is imported here and nowhere else."""

import os
import re
import stat
import struct
from collections.abc import Callable
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


# Width and height; None where the file does not say.
_Size = tuple[int, int] | None

_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_SHORT = 3
_NETPBM = re.compile(rb"P[1-6]\s(?:\s|#[^\n]*\n)*([0-9]+)(?:\s|#[^\n]*\n)+([0-9]+)")


def stored_size(data: bytes) -> _Size:
    """Return the width and height in pixels that a file's content declares, or None where it declares none known.

    PNG, GIF, BMP, WebP, TIFF, JPEG 2000, AVIF and the PNM family are known; JPEG is a module of its own.
    """
    for signature, read in _READERS.items():
        if data.startswith(signature):
            try:
                return read(data)
            except struct.error:
                return None
    return None


def _png(data: bytes) -> _Size:
    return struct.unpack_from(">II", data, 16)


def _gif(data: bytes) -> _Size:
    return struct.unpack_from("<HH", data, 6)


def _bmp(data: bytes) -> _Size:
    if struct.unpack_from("<I", data, 14) == (12,):
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    # A negative height says that the rows begin at the top.
    return abs(width), abs(height)


def _webp(data: bytes) -> _Size:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff(order: str) -> Callable[[bytes], _Size]:
    def read(data: bytes) -> _Size:
        (directory,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, directory)
        size = {_TIFF_WIDTH: 0, _TIFF_HEIGHT: 0}
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, entry)
            if tag in size:
                (size[tag],) = struct.unpack_from(f"{order}{'H' if kind == _TIFF_SHORT else 'I'}", data, entry + 8)
        return size[_TIFF_WIDTH], size[_TIFF_HEIGHT]

    return read


def _box(name: bytes, skipped: int, width_first: bool) -> Callable[[bytes], _Size]:
    def read(data: bytes) -> _Size:
        start = data.find(name)
        if start < 0:
            return None
        one, other = struct.unpack_from(">II", data, start + len(name) + skipped)
        return (one, other) if width_first else (other, one)

    return read


def _netpbm(data: bytes) -> _Size:
    # More digits than any size has would only cost time.
    found = _NETPBM.match(data[:4096])
    return (int(found[1][:20]), int(found[2][:20])) if found else None


_READERS: dict[bytes, Callable[[bytes], _Size]] = {
    b"\x89PNG": _png,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"RIFF": _webp,
    b"II*\0": _tiff("<"),
    b"MM\0*": _tiff(">"),
    b"\0\0\0\x0cjP": _box(b"ihdr", 0, width_first=False),
    # The length of the first box, its name, and the brand: HEIC and MP4 have others.
    **{b"\0\0\0" + bytes([length]) + b"ftypavi": _box(b"ispe", 4, width_first=True) for length in range(16, 64, 4)},
    **{b"P%d" % kind: _netpbm for kind in range(1, 7)},
}
KNOWN = tuple(_READERS)


SIGNATURE = b"\xff\xd8\xff"

# In picture data 0xFF is followed by 0x00 or by a restart marker (0xD0–0xD7). Besides these, TEM (0x01) and SOI (0xD8)
# have no length after them; all others but EOI have one.
_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd9-\xfe])")
_END = 0xD9
# Start-of-frame markers, among which DHT (C4), JPG (C8) and DAC (CC) are something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class Jpeg:
    """Size in pixels as stored, before any EXIF rotation (0 where no frame was found), and whether the end is there."""

    height: int
    width: int
    whole: bool


def inspect(data: bytes) -> Jpeg:
    """Walk the markers of a JPEG file up to its end marker; what follows it is nobody's business.

    A thumbnail's own end marker lies inside a segment and does not count.
    """
    height = width = 0
    position = len(SIGNATURE) - 1
    while marker := _MARKER.search(data, position):
        code, position = marker[1][0], marker.end()
        if code == _END:
            return Jpeg(height, width, True)
        if code in _FRAMES and len(data) >= position + 7:
            height = int.from_bytes(data[position + 3 : position + 5])
            width = int.from_bytes(data[position + 5 : position + 7])
        position += int.from_bytes(data[position : position + 2])
    return Jpeg(height, width, False)


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


def read_image(path: str | os.PathLike[str], channels: int = 3, min_side: int | None = None) -> Pixels:
    """Decode an image file; see `decode_image` for the arguments and the pixels.

    Raises:
        UnreadableImageError: the file cannot be read, or what it holds cannot be decoded.
    """
    return decode_image(read_bytes(path), channels, min_side)


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


def decode_image(data: bytes, channels: int = 3, min_side: int | None = None) -> Pixels:
    """Decode an image file's content, by what it is and not by what it is called, turned as its EXIF data say.

    16 bits become 8 (the high byte, within one level of exact scaling), gray becomes RGB with equal channels, CMYK
    becomes RGB, an animation is its first picture. Transparency is dropped and the stored colors are kept, as other
    training libraries do, so that their weights see the pixels that they were trained on.

    Args:
        data: content of a file of any format that OpenCV reads.
        channels: 3 for RGB, 1 for gray.
        least: pixels that the shorter side needs at least. A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size as
            far as that allows, which is faster and not quite what averaging the full picture gives. None decodes in
            full.

    Returns:
        Pixels (height, width, channels) uint8.

    Raises:
        UnreadableImageError: it is no image, damaged, truncated, or says that it has more than `MAX_PIXELS`.
    """
    picture = inspect(data) if data.startswith(SIGNATURE) else None
    width, height = (picture.width, picture.height) if picture else stored_size(data) or (0, 0)
    # OpenCV's own limit is eight times as high, and could only be lowered before Keras imports it.
    if width * height > MAX_PIXELS:
        raise UnreadableImageError("too large")
    # Some versions of OpenCV fill what is missing of a JPEG with gray and say nothing.
    if picture and not picture.whole:
        raise UnreadableImageError("truncated")
    reduction = _reduction(min(width, height), min_side) if picture else 1
    how = _REDUCED.get((channels, reduction), _WHOLE[channels])
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        raise UnreadableImageError("too large" if "MAX_IMAGE" in str(error) else "damaged") from error
    if image is None:
        known = "damaged or truncated" if data.startswith(KNOWN) else "no image"
        raise UnreadableImageError("damaged" if picture else known)
    pixels: Pixels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if channels == 3 else image[..., np.newaxis]
    return pixels


def _reduction(side: int, min_side: int | None) -> int:
    if min_side is None:
        return 1
    return next((factor for factor in (8, 4, 2) if side // factor >= min_side), 1)
