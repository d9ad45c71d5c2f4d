"""What the bytes of an image file say before it is decoded: format, size, completeness and orientation."""

import math
import re
import struct
from dataclasses import dataclass, field

# How the files begin that are decoded, and no others; the group's name is the format's. AVIF and HEIC say in the brands
# of their first box what they are.
_FORMAT = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG)|(?P<gif>GIF8)|(?P<bmp>BM)|(?P<webp>RIFF)|(?P<tiff>II[*+]\0|MM\0[*+])"
    rb"|(?P<jp2>\0{3}\x0cjP|\xff\x4f\xff\x51)|(?P<pnm>P[1-6]\s)|(?P<avif>.{4}ftyp(?:.{4}){0,32}?avi[fs])"
    rb"|(?P<heic>.{4}ftyp(?:.{4}){0,32}?(?:he[iv][a-z]|mif1|msf1))",
    re.DOTALL,
)
_PNM_SIZE = re.compile(rb"P[1-6]\s(?:\s|#[^\r\n]*+[\r\n])*+([0-9]++)(?:\s|#[^\r\n]*+[\r\n])++([0-9]++)")
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_ORIENTATION, _TIFF_SAMPLES = 256, 257, 258, 274, 277
_COSTS = {"gif": 2, "jp2": 2.5, "avif": 2.5}
_TIFF_INTEGERS = {3: "H", 4: "I", 16: "Q"}
_AVIF_TURN, _AVIF_MIRROR = (re.compile(rb"\0{3}\x09" + box + rb"(.)", re.DOTALL) for box in (b"irot", b"imir"))
# In JPEG picture data 0xFF is followed by 0x00 or by a restart marker (0xD0–0xD7). Besides these, TEM (0x01) and SOI
# (0xD8) have no length after them; all others but EOI have one.
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
# Start-of-frame markers, among which DHT (C4), JPG (C8) and DAC (CC) are something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def image_format(data: bytes) -> str | None:
    """The name of a format of `_FORMAT`."""
    found = _FORMAT.match(data)
    return found.lastgroup if found else None


def decoding_cost(data: bytes, kind: str) -> float:
    """Memory that a pixel takes while it is decoded, in multiples of what one of a PNG of 8 bits does."""
    try:
        return (
            max(1, _tiff_value(data, _TIFF_BITS) * _tiff_value(data, _TIFF_SAMPLES) / 24)
            if kind == "tiff"
            else _COSTS[kind]
        )
    except (struct.error, KeyError, OverflowError):
        return 1


@dataclass(frozen=True)
class JpegInfo:
    """Size in pixels as stored, before any EXIF rotation (0 where there is none), whether the end is there, and scans.

    Of several frame headers the largest counts.
    """

    height: int
    width: int
    complete: bool
    scans: int = field(default=0, compare=False)


def inspect_jpeg(data: bytes) -> JpegInfo:
    """Walk the markers of a JPEG file up to its end marker; a thumbnail's own lies inside a segment."""
    height = width = scans = 0
    position = 2
    while marker := _JPEG_MARKER.search(data, position):
        code, position = marker[1][0], marker.end()
        if code == _JPEG_END:
            return JpegInfo(height, width, True, scans)
        scans += code == _JPEG_SCAN
        if code in _JPEG_FRAMES and len(data) >= position + 7:
            height, width = max((height, width), struct.unpack_from(">HH", data, position + 3), key=math.prod)
        position += int.from_bytes(data[position : position + 2])
    return JpegInfo(height, width, False, scans)


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a file other than JPEG declares, if it does; the largest of several."""
    try:
        return _header_size(data, image_format(data))
    except (struct.error, KeyError, OverflowError):
        return None


def _header_size(data: bytes, kind: str | None) -> tuple[int, int] | None:
    if kind == "png":
        # OpenCV makes room for a chunk as long as it says to be.
        return struct.unpack_from(">II", data, 16) if _chunks_fit(data) else None
    if kind == "gif":
        return struct.unpack_from("<HH", data, 6)
    if kind == "bmp":
        if struct.unpack_from("<I", data, 14) == (12,):
            return struct.unpack_from("<HH", data, 18)
        width, height = struct.unpack_from("<ii", data, 18)
        # A negative height says that the lines begin at the top.
        return abs(width), abs(height)
    if kind == "webp":
        return _webp_size(data)
    if kind == "tiff":
        return _tiff_value(data, _TIFF_WIDTH), _tiff_value(data, _TIFF_HEIGHT)
    if kind == "jp2":
        # Decoded is what the code stream says, which may be another picture than the file's boxes promise.
        starts = (found.end() for found in re.finditer(rb"\xff\x4f\xff\x51", data))
        corners = (struct.unpack_from(">4I", data, start + 4) for start in starts)
        return max(((right - left, bottom - top) for right, bottom, left, top in corners), key=math.prod, default=None)
    if kind == "avif":
        sizes = (struct.unpack_from(">II", data, found.end() + 4) for found in re.finditer(b"ispe", data))
        return max(sizes, key=math.prod, default=None)
    if kind == "pnm" and (size := _PNM_SIZE.match(data)) and max(map(len, size.groups())) < 20:
        return int(size[1]), int(size[2])
    return None


def _chunks_fit(data: bytes) -> bool:
    position, name = 8, b""
    while position + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
    return position <= len(data)


def _webp_size(data: bytes) -> tuple[int, int]:
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _tiff_value(data: bytes, wanted: int) -> int:
    """The largest value of a tag in the first directory of a TIFF or BigTIFF, 0 without; readers take the first."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    word, room = ("Q", 8) if big else ("I", 4)
    (directory,) = struct.unpack_from(order + word, data, room)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
    start, length = (directory + 8, 20) if big else (directory + 2, 12)
    value = 0
    for entry in range(start, start + length * min(entries, 2**16), length):
        tag, field_type, count = struct.unpack_from(f"{order}HH{word}", data, entry)
        if tag == wanted:
            kind, place = order + _TIFF_INTEGERS[field_type], entry + 4 + room
            if count * struct.calcsize(kind) > room:
                (place,) = struct.unpack_from(order + word, data, place)
            value = max(value, *struct.unpack_from(kind, data, place))
    return value


def webp_orientation(data: bytes) -> int:
    if data[12:16] != b"VP8X" or not data[20] & 8 or (start := data.rfind(b"EXIF")) < 0:
        return 1
    try:
        return _tiff_value(data[start + 8 :].removeprefix(b"Exif\0\0"), _TIFF_ORIENTATION)
    except (struct.error, KeyError, OverflowError):
        return 1


def avif_orientation(data: bytes) -> int:
    """EXIF's number for the boxes that turn a picture to the left by right angles and then mirror it."""
    turn, mirror = _AVIF_TURN.search(data), _AVIF_MIRROR.search(data)
    angle = turn[1][0] & 3 if turn else 0
    return (1, 8, 3, 6)[angle] if not mirror else ((4, 5, 2, 7), (2, 7, 4, 5))[mirror[1][0] & 1][angle]
