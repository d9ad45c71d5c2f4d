"""How many pixels an image file says it has, read from its header, so that what is too large need not be decoded."""

import re
import struct
from collections.abc import Callable

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
