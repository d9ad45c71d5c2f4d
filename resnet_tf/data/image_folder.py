"""Image files by class, as folders hold them."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_tf.data.image_io import SUFFIXES
from resnet_tf.errors import UserError, some

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Paths of N image files with their classes, int32 (N,), and what the classes are called."""

    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: ArrayLike) -> "ImageFiles":
        """The files at `indices`, in that order; the classes stay as they are."""
        chosen = np.asarray(indices, np.int64)
        return ImageFiles(tuple(self.paths[i] for i in chosen.tolist()), self.labels[chosen], self.class_names)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names by code point, but runs of digits as numbers: "2" before "10", "img9" before "img10"."""
    return sorted(names, key=_natural_key)


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    # Text and digits alternate, so that numbers only meet numbers: the longer is the larger, zeros in front aside.
    # The name itself settles "1" and "01".
    pieces = re.split(r"([0-9]+)", name)
    numbers = [piece.lstrip("0") for piece in pieces]
    return [(len(numbers[i]), numbers[i]) if i % 2 else (0, pieces[i]) for i in range(len(pieces))], name


def read_folder(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> dict[str, ImageFiles]:
    """Find the images under a folder, by split; none is opened.

    Where a `train` folder itself holds folders, there are splits (`train`, `val`, `valid` or `validation`, `test`, in
    any case of letters). Otherwise the folders are the classes, and all images are in "train". A class has the images
    at any depth of its folder, in order of their paths; names with a leading dot are left alone. The classes are
    `class_names`, or those of "train" in natural order.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder; give one that holds a folder of images per class, or a list with list:FILE"
        )
    splits = _splits(root)
    names = tuple(class_names or _class_names(splits["train"]))
    found = {split: _read_split(folder, names) for split, folder in splits.items()}
    if not any(len(files) for files in found.values()):
        raise UserError(f"{root} holds no images in its class folders; image files end in {', '.join(SUFFIXES)}")
    return found


def _splits(root: Path) -> dict[str, Path]:
    folders = _folders(root)
    if not folders:
        raise UserError(f"{root} holds no class folders; put the images of each class into a folder named after it")
    named = [name for name in folders if name.lower() in _SPLITS]
    if not any(_SPLITS[name.lower()] == "train" and _folders(root / name) for name in named):
        if len(named) == len(folders):
            raise UserError(f"{root} holds {' and '.join(named)} but no train/ with class folders; add it")
        return {"train": root}
    splits: dict[str, Path] = {}
    for name in named:
        split = _SPLITS[name.lower()]
        if split in splits:
            raise UserError(f"{root} holds both {splits[split].name}/ and {name}/; keep one for the {split} images")
        splits[split] = root / name
    return splits


def _class_names(folder: Path) -> list[str]:
    names = _folders(folder)
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the class folder {os.fsencode(name)!r} in {folder} is not in UTF-8; rename it") from error
    return names


def _read_split(folder: Path, class_names: tuple[str, ...]) -> ImageFiles:
    others = (name for name in _folders(folder) if name not in class_names)
    unknown = [name for name in others if next(_images(folder / name), None) is not None]
    if unknown:
        raise UserError(
            f"{folder} has {some(unknown)}, which is not among the {len(class_names)} classes ({some(class_names)}); "
            "rename or remove it"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        members = sorted(_images(folder / name)) if (folder / name).is_dir() else []
        paths += members
        labels += [label] * len(members)
    return ImageFiles(tuple(paths), np.array(labels, np.int32), class_names)


def _images(folder: Path) -> Iterator[str]:
    """Image files at any depth; links are followed, but to no folder that was seen before or lies around this one."""
    seen = {_identity(parent) for parent in folder.resolve().parents}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        identity = _identity(here)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield os.path.join(here, name)


def _folders(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        _refuse(error)
    # A link in a circle is no folder to os.path, and an error to os.scandir.
    return natural_order(name for name in names if not name.startswith(".") and os.path.isdir(folder / name))


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from error
