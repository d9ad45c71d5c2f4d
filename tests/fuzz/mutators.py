"""Ways to damage a file: its bytes, or the structure of JSON, pickles, zip archives and tables."""

import contextlib
import copy
import io
import json
import pickletools
import struct
import warnings
import zipfile

INTERESTING = (b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b"\xff" * 4, b"\0" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x10")
TOKENS = (
    b"[" * 3000,
    b"{" * 50,
    b"1e999",
    b"NaN",
    b"-1",
    b"99999999999",
    b"\x1b[31m",
    b"\xff\xfe",
    b'"',
    b",",
    b"../",
    b"0",
)
VALUES = (
    *(None, True, False, 0, -1, 1, 2, 0.5, 1e300, float("nan"), float("inf"), 10**18, 10**400),
    *("", "x", "\x1b[2J", "\ud800", "../x", "NaN", [], {}, [[]], [None], {"a": 1}, ["x"] * 5, list(range(40))),
)


def damage(rng, data, other=b"", most=5):
    """Bytes with a few bits, numbers, stretches or ends changed; `other` is a sample to take pieces from."""
    data = bytearray(data)
    for _ in range(rng.randint(1, most)):
        place, kind = rng.randrange(len(data) + 1), rng.randrange(10)
        length = min(rng.choice((1, 2, 4, 8, 16, 64, 256)), len(data) - place)
        if kind == 0 and data:
            data[place - 1] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[place - 1] = rng.randrange(256)
        elif kind == 2:
            data[place : place + length] = b""
        elif kind == 3:
            data[place:place] = data[place : place + length] * rng.choice((1, 1, 2, 50))
        elif kind == 4:
            data[place:place] = rng.choice(INTERESTING + TOKENS)
        elif kind == 5:
            piece = rng.choice(INTERESTING)
            data[place : place + len(piece)] = piece
        elif kind == 6:
            number = rng.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**28, len(data), rng.getrandbits(31)))
            data[place : place + 4] = struct.pack(rng.choice("<>") + "I", number & 0xFFFFFFFF)
        elif kind == 7 and rng.random() < 0.3:
            data[place:] = b""
        elif kind == 8 and other:
            start = rng.randrange(len(other))
            data[place : place + length] = other[start : start + rng.choice((1, 4, 16, 64, 1024))]
        elif kind == 9:
            source = rng.randrange(len(data) + 1)
            data[place : place + length] = data[source : source + length]
    return bytes(data)


def damage_json(rng, data, other=b""):
    """JSON with values replaced, removed, renamed or nested; now and then its bytes."""
    value = None
    if rng.random() > 0.25:
        with contextlib.suppress(ValueError, RecursionError):  # it may be damaged already
            value = json.loads(data)
    if not isinstance(value, dict | list) or not value:
        return damage(rng, data, other)
    for _ in range(rng.randint(1, 3)):
        spots = list(_spots(value))
        holder, key = rng.choice(spots)
        kind = rng.randrange(6)
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3:
            del holder[key]
        elif kind == 4 and isinstance(holder, dict):
            holder[rng.choice(("", "x", "\x1b", key + "?", "recipe.x"))] = holder.pop(key)
        else:
            for _ in range(rng.choice((1, 5, 30, 300))):
                holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
        if not value:
            break
    text = json.dumps(value)
    return text.encode("utf-8", "surrogatepass")


def _spots(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list) and is_short(inner):
            yield from _spots(inner)


def is_short(value):
    """Whether a value is small enough to be walked."""
    return len(value) <= 200


def damage_pickle(rng, data, other=b""):
    """A pickle whose instructions are dropped, doubled, swapped or changed, so that it is one still; or its bytes."""
    if rng.random() < 0.3:
        return damage(rng, data, other)
    try:
        positions = [position for _, _, position in pickletools.genops(data)]
    except Exception:
        return damage(rng, data, other)
    parts = [data[start:end] for start, end in zip(positions, [*positions[1:], len(data)], strict=True)]
    for _ in range(rng.randint(1, 6)):
        i, j, kind = rng.randrange(len(parts)), rng.randrange(len(parts)), rng.randrange(7)
        if kind == 0:
            del parts[i : i + rng.choice((1, 1, 2, 5))]
        elif kind == 1:
            parts[i:i] = parts[j : j + rng.choice((1, 2, 4))] * rng.choice((1, 1, 3, 60))
        elif kind == 2:
            parts[i], parts[j] = parts[j], parts[i]
        elif kind == 3:
            parts[i:i] = [
                rng.choice((b"(", b"t", b"l", b"d", b"}", b"]", b")", b"N", b"K\0", b"2", b"0", b"R", b"b", b"Q"))
            ]
        elif kind == 4:
            index = struct.pack("<I", rng.choice((0, 1, 2**20, 2**28, 2**31 - 1)))
            parts[i:i] = [rng.choice((b"r", b"j")) + index]
        elif kind == 5:
            parts[i:i] = [b"2\x86", b"2l", b"q\x01h\x01h\x01\x86"][: rng.randint(1, 3)] * rng.choice((1, 5, 40))
        else:
            parts[i] = damage(rng, parts[i], most=1)
        parts = parts or [b"."]
    return b"".join(parts)


def damage_zip(rng, data, other=b"", inner=None):
    """A zip archive whose entries are damaged (by `inner`, by name) and written anew, or whose bytes are."""
    if rng.random() < 0.25:
        return damage(rng, data, other)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    for _ in range(rng.randint(1, 2)):
        i, kind = rng.randrange(len(entries)), rng.randrange(12)
        name, content = entries[i]
        if kind == 0 and len(entries) > 1:
            del entries[i]
        elif kind == 1:
            entries.append((name, damage(rng, content)))
        elif kind == 2:
            entries[i] = rng.choice((name.upper(), name + "x", "../" + name, entries[0][0])), content
        elif kind == 3:
            entries[i] = name, content + bytes(rng.choice((1, 1000, 3_000_000)))
        else:
            entries[i] = name, next((f for end, f in (inner or {}).items() if name.endswith(end)), damage)(rng, content)
    made = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.15 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(made, "w", method) as archive:
        warnings.simplefilter("ignore")  # names twice
        for name, content in entries:
            archive.writestr(name or "x", content)
    return made.getvalue()


def damage_table(rng, data, other=b""):
    """A text of lines and fields with some of them changed, moved or doubled; or its bytes."""
    if rng.random() < 0.3:
        return damage(rng, data, other)
    lines = data.split(b"\n")
    for _ in range(rng.randint(1, 4)):
        i, j, kind = rng.randrange(len(lines)), rng.randrange(len(lines)), rng.randrange(6)
        if kind == 0:
            lines[i], lines[j] = lines[j], lines[i]
        elif kind == 1:
            lines[i:i] = [lines[j]] * rng.choice((1, 2, 100))
        elif kind == 2 and len(lines) > 1:
            del lines[i]
        else:
            fields = lines[i].split(b",")
            k = rng.randrange(len(fields))
            fields[k] = rng.choice(
                (*TOKENS, b"", b"x" * 140_000, b"1_0", b"-0", b"0x1", b"1" * 30, b" ", b"\0", b"nan")
            )
            lines[i] = b",".join(fields if kind < 5 else [*fields, b"1"])
    return b"\n".join(lines)
