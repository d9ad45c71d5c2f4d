"""Read the files in which CIFAR is distributed, without executing anything in them."""

import hashlib
import math
import os
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np

from resnet_tf.data.dataset import Split
from resnet_tf.errors import UserError


class _Dtype:
    """Stands in for numpy.dtype: only a name, and only uint8 is taken up as one."""

    def __init__(self, code: object, *_: object) -> None:
        self.name = "uint8" if code in (b"u1", "u1") else "not uint8"

    def __setstate__(self, state: object) -> None:
        """Byte order and the like mean nothing for single bytes."""


class Array:
    """Stands in for numpy.ndarray: keeps what the pickle says, and allocates nothing on its word."""

    shape: tuple[int, ...] = ()
    dtype = "nothing"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Takes the state that numpy pickles: version, shape, dtype, column order, contents."""
        _, self.shape, dtype, self._by_column, self._content = state
        self.dtype = dtype.name
        if not isinstance(self.shape, tuple) or not all(type(n) is int and 0 <= n < 2**31 for n in self.shape):
            raise pickle.UnpicklingError("an array of no proper shape")
        if type(self._content) is not bytes or len(self._content) != math.prod(self.shape):
            raise pickle.UnpicklingError("an array whose bytes do not fill its shape")

    def pixels(self) -> np.ndarray:
        """The array, as a read-only view of the pickled bytes; for uint8 only."""
        return np.frombuffer(self._content, np.uint8).reshape(self.shape, order="F" if self._by_column else "C")


def _reconstruct(subtype: object, shape: object, code: object) -> Array:
    if (subtype, shape) != (Array, (0,)) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("an array built in an unusual way")
    return Array()


class ArrayUnpickler(pickle.Unpickler):
    """Admits the handful of names that an array needs, as stand-ins; refuses all others before anything is called."""

    def __init__(self, raw: bytes, where: str) -> None:
        super().__init__(BytesIO(raw), encoding="bytes")
        self._where = where
        self._budget = 2 * len(raw)

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in for a name; raises UserError for any that an array does not need."""
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            admitted = {"_reconstruct": _reconstruct, "ndarray": Array, "dtype": _Dtype}
            if name in admitted:
                return admitted[name]
        raise UserError(
            f"{self._where} is refused, and nothing of it was run: it asks for {f'{module}.{name}'[:80]!r}, which no "
            "CIFAR file needs; fetch the official archive again"
        )

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in old pickle protocols; bounded, since one text can be encoded many times."""
        self._budget -= len(text)
        if encoding not in ("latin1", b"latin1") or self._budget < 0:
            raise pickle.UnpicklingError("bytes written in an unusual way")
        return text.encode("latin1")


PIXELS = 3 * 32 * 32
IMAGES_PER_FILE = {f"data_batch_{k}": 10_000 for k in range(1, 6)} | {
    "test_batch": 10_000,
    "train": 50_000,
    "test": 10_000,
}

_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class CifarInfo:
    """What is known of one of the two data sets; the binary version's files have the same names with `.bin`."""

    title: str
    stem: str
    class_names: tuple[str, ...]
    label_key: str
    # Bytes before the pixels of a binary record; the last of them is the (fine) label.
    header: int
    train: tuple[str, ...]
    test: str
    python_folder: str
    binary_folder: str
    keras_name: str
    sha256: str
    md5: tuple[str, ...]

    def files(self, suffix: str) -> tuple[str, ...]:
        """Names of the training files and, last, of the test file."""
        return tuple(name + suffix for name in (*self.train, self.test))

    def archives(self) -> tuple[str, ...]:
        """The official names first, then those that Keras gives and gave to the same file."""
        names = (f"{self.stem}-python.tar.gz", f"{self.stem}-binary.tar.gz")
        return *names, f"{self.keras_name}_archive", f"{self.python_folder}.tar.gz"

    @property
    def again(self) -> str:
        """What to do about a file that cannot be used."""
        return f"fetch {self.stem}-python.tar.gz or {self.stem}-binary.tar.gz again"


KINDS = {
    "cifar10": CifarInfo(
        title="CIFAR-10",
        stem="cifar-10",
        class_names=tuple(_CIFAR10_NAMES.split()),
        label_key="labels",
        header=1,
        train=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test="test_batch",
        python_folder="cifar-10-batches-py",
        binary_folder="cifar-10-batches-bin",
        keras_name="cifar-10-batches-py-target",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        md5=(
            "c99cafc152244af753f735de768cd75f",
            "d4bba439e000b95fd0a9bffe97cbabec",
            "54ebc095f3ab1f0389bbae665268c751",
            "634d18415352ddfa80567beed471001a",
            "482c414d41f54cd18b22e5b47cb7c3cb",
            "40351d587109b95175f43aff81a1287e",
        ),
    ),
    "cifar100": CifarInfo(
        title="CIFAR-100",
        stem="cifar-100",
        class_names=tuple(_CIFAR100_NAMES.split()),
        label_key="fine_labels",
        header=2,
        train=("train",),
        test="test",
        python_folder="cifar-100-python",
        binary_folder="cifar-100-binary",
        keras_name="cifar-100-python-target",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        md5=("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
}


@dataclass(frozen=True)
class CifarFile:
    """One file, decoded."""

    split: Split
    md5: str


def read_folder(kind: CifarInfo, folder: Path, suffix: str) -> list[CifarFile]:
    """Decode the official files of a folder; `suffix` is "" for the Python and ".bin" for the binary version.

    Raises UserError for a file that is missing, too large, damaged or foreign; OSError where the disk fails.
    """
    parts = {}
    for name in kind.files(suffix):
        path = folder / name
        if path.is_file():
            _check_size(kind, name, path.stat().st_size, str(path))
            parts[name] = _decode(kind, name, path.read_bytes(), str(path))
    return _complete(kind, parts, str(folder))


def read_archive(kind: CifarInfo, path: Path) -> list[CifarFile]:
    """Decode the official files of a tar archive in memory, member by member.

    Raises UserError for an archive or a member that is missing, too large, damaged or foreign.
    """
    wanted = kind.files("") + kind.files(".bin")
    parts = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name, where = os.path.basename(member.name), f"{member.name!r} in {path}"
                if name in wanted and not member.isdir():
                    parts[name] = _decode(kind, name, _read_member(kind, archive, member, where), where)
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError) as error:
        raise UserError(f"{path} is no readable tar archive, or is cut short ({short(error)}); {kind.again}") from error
    return _complete(kind, parts, str(path))


def _read_member(kind: CifarInfo, archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None:
        raise UserError(f"{where} is a link or device, not a plain file; {kind.again}")
    _check_size(kind, os.path.basename(member.name), member.size, where)
    return stream.read()


def _check_size(kind: CifarInfo, name: str, size: int, where: str) -> None:
    """Refuses what cannot be the official file before any of it is in memory."""
    if size == 0:
        raise UserError(f"{where} is empty; {kind.again}")
    count = _images_in(name)
    # A pickle written anew by Python 3 spends two bytes on every second pixel, and file names take some 40 an image.
    limit = count * (kind.header + PIXELS) if name.endswith(".bin") else count * (2 * PIXELS + 256) + 65_536
    if size > limit:
        raise UserError(
            f"{where} has {size:,} bytes, more than the {limit:,} that {kind.title}'s file can have; {kind.again}"
        )


def short(error: Exception) -> str:
    """Say in one short line what an exception says."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def _complete(kind: CifarInfo, parts: dict[str, CifarFile], where: str) -> list[CifarFile]:
    suffix = max(("", ".bin"), key=lambda suffix: sum(name in parts for name in kind.files(suffix)))
    missing = [name for name in kind.files(suffix) if name not in parts]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)} of {kind.title}; {kind.again}")
    return [parts[name] for name in kind.files(suffix)]


def _images_in(name: str) -> int:
    return IMAGES_PER_FILE[name.removesuffix(".bin")]


def _decode(kind: CifarInfo, name: str, raw: bytes, where: str) -> CifarFile:
    decode = _decode_binary if name.endswith(".bin") else _decode_pickle
    rows, labels = decode(kind, _images_in(name), raw, where)
    if labels.min() < 0 or labels.max() >= len(kind.class_names):
        raise UserError(
            f"{where} has labels from {labels.min()} to {labels.max()}, but {kind.title}'s run from 0 to "
            f"{len(kind.class_names) - 1}; {kind.again}"
        )
    # Files hold all red, then all green, then all blue values of an image.
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return CifarFile(Split(images, labels.astype(np.int32)), hashlib.md5(raw, usedforsecurity=False).hexdigest())


def _decode_binary(kind: CifarInfo, count: int, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    record = kind.header + PIXELS
    if len(raw) != count * record:
        raise UserError(
            f"{where} has {len(raw):,} bytes instead of {count * record:,}: cut short, or not {kind.title}; "
            f"{kind.again}"
        )
    records = np.frombuffer(raw, np.uint8).reshape(count, record)
    return records[:, kind.header :], records[:, kind.header - 1]


def _decode_pickle(kind: CifarInfo, count: int, raw: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = ArrayUnpickler(raw, where).load()
    except UserError:
        raise
    # A damaged pickle can raise nearly anything: EOFError, UnpicklingError, TypeError, KeyError, MemoryError ...
    except Exception as error:
        raise UserError(
            f"{where} is damaged, cut short, or no {kind.title} file ({short(error)}); {kind.again}"
        ) from error
    labels, data = _entry(content, kind.label_key), _entry(content, "data")
    if not isinstance(data, Array) or data.shape != (count, PIXELS) or data.dtype != "uint8":
        found = f"{data.shape!r:.60} {data.dtype}" if isinstance(data, Array) else f"a {type(data).__name__}"
        raise UserError(f"{where} holds {found} as 'data' instead of ({count}, {PIXELS}) uint8; {kind.again}")
    if not isinstance(labels, list) or len(labels) != count or not all(_is_label(label) for label in labels):
        raise UserError(f"{where} does not hold {count} whole numbers below 256 as {kind.label_key!r}; {kind.again}")
    return data.pixels(), np.array(labels)


def _is_label(value: object) -> bool:
    return type(value) is int and abs(value) < 256


def _entry(content: object, key: str) -> Any:
    """A value of the pickled dict, whose keys are bytes when Python 2 wrote it."""
    return content.get(key.encode(), content.get(key)) if isinstance(content, dict) else None
