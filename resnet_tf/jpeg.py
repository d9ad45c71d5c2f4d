"""What the markers of a JPEG file say without decoding it: how large the picture is, and whether its end is there."""

import re
from dataclasses import dataclass

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
