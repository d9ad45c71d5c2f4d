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
from typing import Any, NamedTuple

import numpy as np

from resnet_tf.data.dataset import Split
from resnet_tf.errors import UserError


class _Dtype:
    """Stands in for numpy.dtype; of all dtypes only uint8 is told apart."""

    def __init__(self, code: object, *_: object) -> None:
        self.name = "uint8" if code in (b"u1", "u1") else "not uint8"

    def __setstate__(self, state: object) -> None:
        pass  # byte order and the like mean nothing for single bytes


class Array:
    """Stands in for numpy.ndarray: keeps the state that numpy pickles, and allocates nothing on its word."""

    shape: tuple[int, ...] = ()
    dtype = "nothing"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, self._by_column, self._content = state
        self.dtype = dtype.name
        if not isinstance(self.shape, tuple) or not all(type(n) is int and 0 <= n < 2**31 for n in self.shape):
            raise pickle.UnpicklingError("an array of no proper shape")
        if type(self._content) is not bytes or len(self._content) != math.prod(self.shape):
            raise pickle.UnpicklingError("an array whose bytes do not fill its shape")

    def pixels(self) -> np.ndarray:
        return np.frombuffer(self._content, np.uint8).reshape(self.shape, order="F" if self._by_column else "C")


def _reconstruct(subtype: object, shape: object, code: object) -> Array:
    if (subtype, shape) != (Array, (0,)) or code not in (b"b", "b"):
        raise pickle.UnpicklingError("an array built in an unusual way")
    return Array()


class ArrayUnpickler(pickle.Unpickler):
    """Admits the few names that an array needs, as stand-ins; refuses all others before anything is called."""

    def __init__(self, raw: bytes, where: str) -> None:
        super().__init__(BytesIO(raw), encoding="bytes")
        self._where = where
        self._budget = 2 * len(raw)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            admitted = {"_reconstruct": _reconstruct, "ndarray": Array, "dtype": _Dtype}
            if name in admitted:
                return admitted[name]
        raise UserError(
            f"{self._where} asks for {f'{module}.{name}'[:80]!r}, which no CIFAR file needs; nothing of it was run, "
            "fetch the official archive again"
        )

    def _encode(self, text: str, encoding: str) -> bytes:
        """How Python 3 writes bytes in old pickle protocols; bounded, since one text can be encoded many times."""
        self._budget -= len(text)
        if encoding not in ("latin1", b"latin1") or self._budget < 0:
            raise pickle.UnpicklingError("bytes written in an unusual way")
        return text.encode("latin1")


PIXELS = 3 * 32 * 32
_TRAIN_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
IMAGES_PER_FILE = dict.fromkeys((*_TRAIN_BATCHES, "test_batch", "test"), 10_000) | {"train": 50_000}

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
    class_names: tuple[str, ...]
    label_key: str
    header: int  # bytes before the pixels of a binary record; the last of them is the (fine) label
    train: tuple[str, ...]
    test: str
    python_folder: str
    binary_folder: str
    sha256: str
    md5: tuple[str, ...]

    def files(self, suffix: str) -> tuple[str, ...]:
        return tuple(name + suffix for name in (*self.train, self.test))

    def archives(self) -> tuple[str, ...]:
        """The official names (Python, binary) first, then those that Keras gives and gave to the same file."""
        official = tuple(f"{self.title.lower()}-{version}.tar.gz" for version in ("python", "binary"))
        return *official, f"{self.keras_name}_archive", f"{self.python_folder}.tar.gz"

    @property
    def keras_name(self) -> str:
        return f"{self.python_folder}-target"

    @property
    def advice(self) -> str:
        return f"fetch {self.archives()[0]} or {self.archives()[1]} again"


KINDS = {
    "cifar10": CifarInfo(
        title="CIFAR-10",
        class_names=tuple(_CIFAR10_NAMES.split()),
        label_key="labels",
        header=1,
        train=_TRAIN_BATCHES,
        test="test_batch",
        python_folder="cifar-10-batches-py",
        binary_folder="cifar-10-batches-bin",
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
        class_names=tuple(_CIFAR100_NAMES.split()),
        label_key="fine_labels",
        header=2,
        train=("train",),
        test="test",
        python_folder="cifar-100-python",
        binary_folder="cifar-100-binary",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        md5=("16019d7e3df5f24257cddd939b257f8d", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    ),
}


class CifarFile(NamedTuple):
    """One file, decoded."""

    split: Split
    md5: str


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
        with tarfile.open(path) as archive:
            for member in archive:
                name, where = os.path.basename(member.name), f"{member.name!r} in {path}"
                if name not in wanted or member.isdir():
                    continue
                stream = archive.extractfile(member) if member.isreg() else None
                if stream is None:
                    raise UserError(f"{where} is a link or device, not a plain file; {info.advice}")
                _check_size(info, name, member.size, where)
                files[name] = _decode(info, name, stream.read(), where)
    except (tarfile.TarError, EOFError, zlib.error, LZMAError, OSError) as error:
        raise UserError(f"{path} is no tar archive, or is cut short ({short(error)}); {info.advice}") from error
    return _complete(info, files, str(path))


def _check_size(info: CifarInfo, name: str, size: int, where: str) -> None:
    """Refuse what cannot be the official file before any of it is in memory."""
    if size == 0:
        raise UserError(f"{where} is empty; {info.advice}")
    count = IMAGES_PER_FILE[name.removesuffix(".bin")]
    # A pickle written anew by Python 3 spends two bytes on every second pixel, and file names take some 40 an image.
    limit = count * (info.header + PIXELS) if name.endswith(".bin") else count * (2 * PIXELS + 256) + 65_536
    if size > limit:
        raise UserError(f"{where} has {size:,} bytes, {info.title}'s at most {limit:,}; {info.advice}")


def short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


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
        content = ArrayUnpickler(raw, where).load()
    except UserError:
        raise
    # A damaged pickle can raise nearly anything: EOFError, UnpicklingError, TypeError, KeyError, MemoryError ...
    except Exception as error:
        raise UserError(f"{where} is cut short or no {info.title} file ({short(error)}); {info.advice}") from error
    labels, data = _entry(content, info.label_key), _entry(content, "data")
    if not isinstance(data, Array) or data.shape != (count, PIXELS) or data.dtype != "uint8":
        found = f"{data.shape!r:.60} {data.dtype}" if isinstance(data, Array) else f"a {type(data).__name__}"
        raise UserError(f"{where} holds {found} as 'data' instead of ({count}, {PIXELS}) uint8; {info.advice}")
    # bool is a subclass of int, and no label.
    if not isinstance(labels, list) or len(labels) != count or any(type(n) is not int or abs(n) > 255 for n in labels):
        raise UserError(f"{where} does not hold {count} whole numbers below 256 as {info.label_key!r}; {info.advice}")
    return data.pixels(), np.array(labels)


def _entry(content: object, key: str) -> Any:
    """A value of the pickled dict, whose keys are bytes when Python 2 wrote it."""
    return content.get(key.encode(), content.get(key)) if isinstance(content, dict) else None
