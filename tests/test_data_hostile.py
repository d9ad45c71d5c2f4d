"""Files that claim more than they hold, or that take more time or memory than their size: refused within 1 GB."""

import codecs
import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from resnet_tf.data.cifar import load_dataset
from resnet_tf.data.image_io import decode_image
from resnet_tf.data.image_size import stored_size
from resnet_tf.errors import UserError
from tests.test_images import encoded, picture

# Reads each file, prints what was said of it, and at last the most memory that the process had, in MB.
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
from resnet_tf.data.image_io import UnreadableImageError, read_image
from resnet_tf.data.image_list import read_list
from resnet_tf.data.cifar import load_dataset
from resnet_tf.errors import UserError
read = {"image": read_image, "list": read_list, "cifar": lambda path: load_dataset("cifar10", path)}[sys.argv[1]]
for path in sys.argv[2:]:
    try:
        print("accepted", getattr(read(path), "shape", ""), flush=True)
    except (UnreadableImageError, UserError) as error:
        print(error, flush=True)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""


def said_of(kind, folder, contents):
    """What a child says of each content, within 1 GB; a content may be a path."""
    paths = []
    for i, content in enumerate(contents):
        if isinstance(content, bytes):
            path = folder / f"{i}.file"
            path.write_bytes(content)
            content = path
        paths.append(os.fspath(content))
    child = subprocess.run(
        [sys.executable, "-c", CHILD, kind, *paths], capture_output=True, text=True, timeout=300, check=False
    )
    assert child.returncode == 0, child.stdout + child.stderr
    *said, memory = child.stdout.splitlines()
    assert int(memory) < 1024
    return said


def tiff(*entries, big=False, data=b""):
    """Little-endian, of (tag, type, value); the value None is where the data lie."""
    start = 16 + 8 + 20 * len(entries) + 8 if big else 8 + 2 + 12 * len(entries) + 4
    word = 8 if big else 4

    def number(value, size):
        return value.to_bytes(size, "little")

    directory = number(len(entries), 8 if big else 2)
    for tag, field_type, value in entries:
        directory += number(tag, 2) + number(field_type, 2) + number(1, word)
        directory += number(start if value is None else value, word)
    header = b"II+\0\x08\0\0\0" + number(16, 8) if big else b"II*\0" + number(8, 4)
    return header + directory + bytes(word) + data


def test_pictures_with_two_sizes_or_a_hidden_one_are_as_large_as_the_largest(tmp_path):
    jpeg = encoded(".jpg", picture())
    frame = jpeg.index(b"\xff\xc0")
    huge = jpeg[: frame + 5] + b"\x75\x30\x75\x30" + jpeg[frame + 9 : -2]
    rows = zlib.compress(bytes(2**20))
    # Width, height, bits, compression (deflate), color, strip, samples, rows, bytes.
    layout = [(258, 3, 8), (259, 3, 8), (262, 3, 2), (273, 4, None), (277, 3, 3), (278, 4, 30_000), (279, 4, len(rows))]
    size = [(256, 4, 30_000), (257, 4, 30_000)]
    jp2 = bytearray(encoded(".jp2", picture()))
    stream = jp2.index(b"\xff\x4f\xff\x51") + 8
    jp2[stream : stream + 8] = b"\0\0\x75\x30" * 2
    deep = [(256, 4, 11_000), (257, 4, 11_000), (258, 3, 64), *layout[1:2], (262, 3, 1), *layout[3:4], (277, 3, 1)]
    said = said_of(
        "image",
        tmp_path,
        [
            huge + jpeg[frame : frame + 19] + b"\xff\xd9",
            tiff((256, 4, 30_000), (256, 4, 1), (257, 4, 30_000), (257, 4, 1), *layout, data=rows),
            tiff(*size, *layout, big=True, data=rows),
            tiff(*deep, (278, 4, 11_000), (279, 4, len(rows)), (339, 3, 3), data=rows),
            bytes(jp2),
            b"P6\n#" + b"x" * 5000 + b"\r30000 30000\n#\n5 5\n255\n",
        ],
    )
    assert said == ["too large"] * 6


def avif_stream(width, height):
    """The stream of an AVIF of 10 x 10 pixels, with another size in its sequence header, and the box beside it."""
    avif = encoded(".avif", np.full((10, 10, 3), 90, np.uint8))
    config = avif.index(b"av1C") - 4
    stream = avif[avif.rindex(b"mdat") + 4 :]
    assert stream[:3] == b"\x12\0\x0a"  # a temporal delimiter, and a sequence header of as many bytes as follow
    end = 4 + stream[3]
    bits = "".join(f"{byte:08b}" for byte in stream[4:end])
    assert bits[3:5] == "11"  # a still picture, with the short header
    assert bits[10:26] == "00110011" + 2 * "1001"  # four bits each for the 9 before 10
    bits = bits[:10] + 2 * "1111" + f"{width - 1:016b}{height - 1:016b}" + bits[26:].rstrip("0")
    bits += "0" * (-len(bits) % 8)
    header = int(bits, 2).to_bytes(len(bits) // 8)
    return stream[:3] + bytes([len(header)]) + header + stream[end:], avif[config : config + 12]


def box(name, *content):
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + name + data


def avif_of(stream, config, cuts=(), inside=False):
    """An AVIF of 10 x 10 pixels by its boxes; its stream lies in pieces, in the last box or beside the others."""
    ends = [*cuts, len(stream)]
    pieces = list(zip([0, *cuts], ends, strict=True))

    def meta(start):
        extents = b"".join(struct.pack(">II", start + first, last - first) for first, last in pieces)
        size = box(b"ispe", bytes(4), struct.pack(">II", 10, 10))
        properties = box(b"ipco", size, box(b"pixi", bytes(4), b"\3\x08\x08\x08"), config)
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), b"\0\1"),
            box(b"iloc", b"\1\0\0\0\x44\0\0\1\0\1\0", bytes([inside, 0, 0, 0, len(pieces)]), extents),
            box(b"iinf", bytes(4), b"\0\1", box(b"infe", b"\2\0\0\0\0\1\0\0av01\0")),
            box(b"iprp", properties, box(b"ipma", bytes(4), struct.pack(">IHB", 1, 1, 3), b"\1\2\x83")),
            box(b"idat", stream) if inside else b"",
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    return head + meta(0 if inside else len(head + meta(0)) + 8) + box(b"mdat", b"" if inside else stream)


@pytest.mark.parametrize("how", [{}, {"cuts": (1, 5, 9)}, {"inside": True}, {"inside": True, "cuts": (7,)}])
def test_an_avif_is_as_large_as_its_stream(tmp_path, how):
    assert decode_image(avif_of(*avif_stream(10, 10), **how)).shape == (10, 10, 3)
    assert said_of("image", tmp_path, [avif_of(*avif_stream(16384, 16384), **how)]) == ["too large"]


def test_an_avif_without_end_is_damaged():
    """Items whose places take no bytes, numbers of bits without end, boxes of a name without number."""
    whole = avif_of(*avif_stream(10, 10))
    none = box(b"iloc", b"\1\0\0\0\0\0\xff\xff", b"\0\1\0\0\0\0\xff\xff" * 50_000)
    assert stored_size(whole) == (10, 10)
    assert [stored_size(whole + more) for more in (none, b"iloc" * 10**6, b"ispe" * 10**6)] == [None] * 3
    assert stored_size(avif_of(b"\x12\0" * 10**6, b"")) is None
    assert stored_size(avif_of(b"\x0a" + b"\xff" * 10**6, b"")) == (2**16, 2**16)


def test_a_chunk_longer_than_its_file_takes_no_memory(tmp_path):
    png = encoded(".png", picture())
    claims = [png[:33] + length + png[37:] for length in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff")]
    assert said_of("image", tmp_path, claims) == ["damaged or truncated"] * 2


def test_formats_whose_size_is_not_looked_at_are_not_decoded(tmp_path):
    contents = [
        b"PF\n30000 30000\n-1\n" + bytes(100),
        b"P7\nWIDTH 30000\nHEIGHT 30000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(100),
        np.array([0x59A66A95, 30000, 30000, 24, 2**31 - 1, 1, 0, 0], ">u4").tobytes(),
    ]
    assert said_of("image", tmp_path, contents) == ["no image"] * 4


def test_time_of_a_jpeg_does_not_grow_faster_than_its_size(tmp_path):
    picture_module = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    picture_module.fromarray(np.zeros((4000, 4000, 3), np.uint8)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    said = said_of(
        "image",
        tmp_path,
        [
            b"\xff\xd8" + b"\xff" * 10_000_000,
            b"\xff\xd8" + (b"\xff" * 10**6 + b"\0") * 5,
            whole[:-2] + scan * 5000 + b"\xff\xd9",
        ],
    )
    assert said == ["truncated", "truncated", "too many scans"]


def test_lists_that_never_end(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    long = b"x" * 10**8
    said = said_of("list", tmp_path, [tmp_path / "pipe", Path("/dev/zero"), b"\0" * 10**8, long])
    assert ["no file" in line for line in said] == [True, True, False, False]
    assert all("is not text" in line for line in said[2:])


SHARED_TUPLE = b")" + b"q\x00h\x00\x86" * 60


def long(place):
    """A text of sixteen million characters, put into the memo alone."""
    return b"X" + (2**24).to_bytes(4, "little") + b"a" * 2**24 + b"q" + bytes([place]) + b"0"


def cifar_folder(folder, batch):
    """A folder of which the first file is read."""
    folder.mkdir()
    (folder / "test_batch").write_bytes(batch)
    for k in range(1, 6):
        os.link(folder / "test_batch", folder / f"data_batch_{k}")
    return folder


def test_pickles_that_take_time_or_memory_on_their_word(tmp_path):
    pickles = {
        "a shared tuple as key": b"\x80\x02}" + SHARED_TUPLE + b"K\x01s.",
        "a shared tuple as key of several": b"\x80\x02}(" + SHARED_TUPLE + b"K\x01u.",
        "a shared tuple in a dict of pairs": b"\x80\x02(" + SHARED_TUPLE + b"K\x01d.",
        "a shared tuple in a set": b"\x80\x04\x8f(" + SHARED_TUPLE + b"\x90.",
        "a shared tuple as labels": b"\x80\x02}(U\x06labels" + SHARED_TUPLE + b"U\x04data" + SHARED_TUPLE + b"u.",
        "a high memo index": b"\x80\x02]r\x00\x00\x00\x10.",
        "many dictionaries": b"\x80\x02" + b"}" * 40_000_000,
        "many marks": b"\x80\x02" + b"(" * 40_000_000,
        "a frame of more": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
        "bytes of more": b"\x80\x05\x96" + b"\xff" * 4 + bytes(4) + b".",
        "a long text as many keys": b"\x80\x02}" + long(0) + long(1) + b"h\x00Nsh\x01Ns" * 150_000 + b".",
        "a long text as many names": b"\x80\x04" + long(0) + b"h\x00h\x00\x93" * 100_000 + b".",
        "a long text encoded often": b"\x80\x02"
        + long(0)
        + b"c_codecs\nencode\nq\x02h\x00U\x06latin1\x86q\x03"
        + b"h\x02h\x03R" * 100_000
        + b".",
        "a wide text": b"\x80\x02X" + (2**20).to_bytes(4, "little") + "😀".encode() + b"a" * (2**20 - 4) + b".",
    }
    folders = [cifar_folder(tmp_path / str(i), content) for i, content in enumerate(pickles.values())]
    for name, said in zip(pickles, said_of("cifar", tmp_path, folders), strict=True):
        assert "data_batch_1 is cut short or no CIFAR-10 file" in said or "as 'data' instead of" in said, (name, said)


def test_a_pickle_changes_no_object_of_ours(tmp_path):
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    for i, what in enumerate((b"cnumpy.core.multiarray\n_reconstruct\n", b"c_codecs\nencode\n", dtype)):
        raw = b"\x80\x02" + what + b"N}U\x05chunkK\x01s\x86b."
        with pytest.raises(UserError, match="as 'data' instead of"):
            load_dataset("cifar10", cifar_folder(tmp_path / str(i), raw))
    from resnet_tf import pickles
    from resnet_tf.data import cifar

    ours = [*vars(cifar).values(), *vars(pickles).values(), *cifar._CALLS.values(), np.dtype, codecs.encode]
    assert not any(hasattr(found, "chunk") for found in ours)


def member(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_archives_that_claim_anything(tmp_path):
    zeros = gzip.compress(bytes(2**20))
    negative = bytearray(member("data_batch_1", 5))
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + 8 * 32 + sum(negative[156:512]))
    sparse = tarfile.TarInfo("data_batch_1")
    sparse.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "data_batch_1"}
    sparse.size = 2**20
    archives = {
        "a long header": gzip.compress(member("x", 2**31, tarfile.XHDTYPE)) + zeros * 2048,
        "a long name": gzip.compress(member("x", 2**31, tarfile.GNUTYPE_LONGNAME)) + zeros * 2048,
        "a member that is passed over": gzip.compress(member("film", 2**40)) + zeros * 4096,
        "a sparse member": gzip.compress(sparse.tobuf(tarfile.PAX_FORMAT))
        + gzip.compress(b"9999999\n" + b"1\n" * 2**19) * 64,
        "header upon header": gzip.compress(member("x", 0, tarfile.XHDTYPE) * 5000),
        "many members": gzip.compress(member("x", 0) * 2048) * 512,
        "a negative size": gzip.compress(bytes(negative)),
        "a search that grows with the square": gzip.compress(member("x", 2**20, tarfile.XHDTYPE) + b"1" * 2**20),
    }
    for name, said in zip(archives, said_of("cifar", tmp_path, archives.values()), strict=True):
        assert "cut short" in said or "not a plain file" in said, (name, said)
