"""What the headers of image files say, without decoding them."""

import contextlib
import itertools
import math
import re
import struct
from collections.abc import Iterator
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
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_ORIENTATION, TIFF_SAMPLES = 256, 257, 258, 274, 277
_TIFF_INTEGERS = {3: "H", 4: "I", 16: "Q"}
# In JPEG picture data 0xFF is followed by 0x00 or by a restart marker (0xD0–0xD7). Besides these, TEM (0x01) and SOI
# (0xD8) have no length after them; all others but EOI have one.
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
# Start-of-frame markers, among which DHT (C4), JPG (C8) and DAC (CC) are something else.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_AV1_ITEM = re.compile(rb"infe(?:\x02.{3}(..)|\x03.{3}(.{4}))..av01", re.DOTALL)
_MAX_NUMBERS, _MAX_BOXES = 2**18, 2**16


def image_format(data: bytes) -> str | None:
    """Of a file's content, by its beginning: "jpeg", "png", …; None for what is not decoded."""
    found = _FORMAT.match(data)
    return found.lastgroup if found else None


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
    kind, sizes = image_format(data), []
    try:
        if kind == "png" and _chunks_fit(data):  # OpenCV makes room for a chunk as long as it says to be
            return struct.unpack_from(">II", data, 16)
        if kind == "gif":
            return struct.unpack_from("<HH", data, 6)
        if kind == "bmp":
            if struct.unpack_from("<I", data, 14) == (12,):
                return struct.unpack_from("<HH", data, 18)
            width, height = struct.unpack_from("<ii", data, 18)
            return abs(width), abs(height)  # a negative height says that the lines begin at the top
        if kind == "webp":
            if data[12:16] == b"VP8X":
                return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
            if data[12:16] == b"VP8L":
                (bits,) = struct.unpack_from("<I", data, 21)
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        if kind == "tiff" and (width := tiff_value(data, TIFF_WIDTH)) and (height := tiff_value(data, TIFF_HEIGHT)):
            return width, height
        if kind == "jp2":
            # Decoded is what the code stream says, which may be another picture than the file's boxes promise.
            for found in re.finditer(rb"\xff\x4f\xff\x51", data):
                right, bottom, left, top = struct.unpack_from(">4I", data, found.end() + 4)
                sizes.append((right - left, bottom - top))
        if kind == "avif":
            sizes = _avif_sizes(data)
        if kind == "pnm" and (size := _PNM_SIZE.match(data)) and max(map(len, size.groups())) < 20:
            return int(size[1]), int(size[2])
    except (struct.error, IndexError):
        return None
    return max(sizes, key=math.prod, default=None)


def _chunks_fit(data: bytes) -> bool:
    position, name = 8, b""
    while position + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        position += 12 + length
    return position <= len(data)


def tiff_value(data: bytes, wanted: int) -> int:
    """The largest value of a tag in the first directory of a TIFF or BigTIFF, 0 without; readers take the first."""
    order = "<" if data.startswith(b"II") else ">"
    big = b"+" in data[2:4]
    word, room = ("Q", 8) if big else ("I", 4)
    value = 0
    try:
        (directory,) = struct.unpack_from(order + word, data, room)
        (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, directory)
        start, length = (directory + 8, 20) if big else (directory + 2, 12)
        for entry in range(start, start + length * min(entries, 2**16), length):
            tag, field_type, count = struct.unpack_from(f"{order}HH{word}", data, entry)
            if tag == wanted:
                kind, place = order + _TIFF_INTEGERS[field_type], entry + 4 + room
                if count * struct.calcsize(kind) > room:
                    (place,) = struct.unpack_from(order + word, data, place)
                value = max(value, *struct.unpack_from(kind, data, place))
    except (struct.error, KeyError, OverflowError):
        return 0
    return value


def _avif_sizes(data: bytes) -> list[tuple[int, int]]:
    """Sizes in the boxes and the streams of an AVIF: decoded is what a stream says, and nothing without its header."""
    boxes = [struct.unpack_from(">II", data, found.end() + 4) for found in _boxes(b"ispe", data)]
    reader = _Bits(data, [_MAX_NUMBERS])
    streams = [size for stream in _av1_streams(reader) for size in _av1_sizes(reader.of(stream))]
    return [*boxes, *streams] if boxes and streams else []


def _boxes(name: bytes | re.Pattern[bytes], data: bytes | memoryview) -> list[re.Match[bytes]]:
    """Where a box of this name may be; struct.error where it is more often than in any picture."""
    found = list(itertools.islice(re.finditer(name, data), _MAX_BOXES))
    if len(found) == _MAX_BOXES:
        raise struct.error
    return found


@dataclass
class _Bits:
    """Numbers of some bits; IndexError at the end, struct.error after more numbers (`left`) than any picture takes."""

    data: bytes | memoryview
    left: list[int]
    at: int = 0

    def of(self, data: bytes | memoryview) -> "_Bits":
        return _Bits(data, self.left)

    def take(self, count: int) -> int:
        self.at += count
        self.left[0] -= 1
        if self.left[0] < 0:
            raise struct.error
        if self.at > 8 * len(self.data):
            raise IndexError
        value = int.from_bytes(self.data[(self.at - count) // 8 : -(-self.at // 8)]) >> -self.at % 8
        return value & (1 << count) - 1


def _av1_streams(reader: _Bits) -> Iterator[bytes | memoryview]:
    """What the coded items of an AVIF hold (ISO 14496-12, 8.11.3), and the first samples of its tracks."""
    data, lengths = memoryview(reader.data), [0]
    coded = {int.from_bytes(found[1] or found[2]) for found in _boxes(_AV1_ITEM, data)}
    inner = [found.end() for found in _boxes(b"idat", data)]
    for reader.at in (8 * found.end() for found in _boxes(b"iloc", data)):
        version = reader.take(32) >> 24
        offset_bits, length_bits, base_bits, index_bits = (8 * reader.take(4) for _ in range(4))
        word = 32 if version == 2 else 16
        for _ in range(reader.take(word)):
            item = reader.take(word)
            inside = reader.take(16) & 1 if version else 0
            reader.take(16)
            base, parts = reader.take(base_bits), []
            for _ in range(reader.take(16)):
                reader.take(index_bits if version else 0)
                start = base + reader.take(offset_bits)
                parts.append((start, start + reader.take(length_bits)))
            for origin in (inner if inside else [0]) if item in coded else []:
                content = [data[origin + start : origin + end] for start, end in parts]
                reader.left[0] -= len(parts) + sum(map(len, content[1:])) // 2**10
                if reader.left[0] < 0:
                    raise struct.error
                yield content[0] if len(content) == 1 else b"".join(content)
    for reader.at in (8 * found.end() + 32 for found in _boxes(b"stsz", data)):
        size, count = reader.take(32), reader.take(32)
        lengths.append(size or (reader.take(32) if count else 0))
    for box, bits in ((b"stco", 32), (b"co64", 64)):
        for reader.at in (8 * found.end() + 64 for found in _boxes(box, data)):
            start = reader.take(bits)
            yield data[start : start + max(lengths)]


def _av1_sizes(reader: _Bits) -> list[tuple[int, int]]:
    """Sizes in the sequence headers of a stream (AV1 specification, 5.3 and 5.5), which may be cut off."""
    end, sizes = 8 * len(reader.data), []
    with contextlib.suppress(IndexError):
        while reader.at < end:
            header = reader.take(8)
            reader.take(8 * (header >> 2 & 1))
            length, byte, shift = 0, 128, 3
            while header & 2 and byte & 128 and shift < 59:
                byte = reader.take(8)
                length, shift = length | (byte & 127) << shift, shift + 7
            after = reader.at + length if header & 2 else end
            if header >> 3 & 15 == 1:
                sizes.append(_sequence_size(reader.of(reader.data[reader.at // 8 : after // 8])))
            reader.at = after
    return sizes


def _sequence_size(header: _Bits) -> tuple[int, int]:
    take, delays, model = header.take, 0, 0
    if take(5) & 1:  # the short header of a still picture
        take(5)
    else:
        if take(1):
            take(64)
            if take(1):
                zeros = next(k for k in itertools.count() if take(1))
                take(zeros % 32)
            if take(1):
                model = take(5) + 1
                take(42)
        delays = take(1)
        for _ in range(take(5) + 1):
            take(12)
            take(take(5) > 7)
            if model and take(1):
                take(2 * model + 1)
            if delays and take(1):
                take(4)
    width, height = take(4) + 1, take(4) + 1
    return take(width) + 1, take(height) + 1
