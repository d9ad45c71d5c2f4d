"""Image files by class, from a folder per class."""

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

# What folders of a split are called, with anything before: Train, training_set, seg_test, valid, val2017, Test Images.
_SPLIT = re.compile(
    r"(?P<prefix>(?:.*?[\W_])??)"
    r"(?:(?P<train>train(?:ing)?)|(?P<validation>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?|eval(?:uation)?))"
    r"[\W_]*(?:data|images?|imgs?|pictures|photos|split|folder)?[\W_]*(?:sets?)?[\W_]*(?:(?:19|20)\d\d)?",
    re.IGNORECASE,
)
# What systems and tools leave in folders.
_LEFT_OUT = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Paths of N image files with their classes, int32 (N,), and what the classes are called."""

    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: ArrayLike) -> "ImageFiles":
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

    Where a folder named like `train` (`_SPLIT`) itself holds folders, there are splits. Otherwise the folders are the
    classes, and all images are in "train". A class has the images at any depth of its folder, in order of their paths.
    A single folder around all that is passed over.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give one with a folder of images per class, or list:FILE")
    splits = _splits(root, class_names or ())
    names = tuple(class_names or _class_names(splits["train"]))
    found = {split: _read_split(folder, names) for split, folder in splits.items()}
    if not any(len(files) for files in found.values()):
        raise UserError(f"{root} holds no images in its class folders; image files end in {', '.join(SUFFIXES)}")
    return found


def _splits(root: Path, class_names: Sequence[str]) -> dict[str, Path]:
    folders = _folders(root)
    if not folders:
        raise UserError(f"{root} holds no class folders; put the images of each class into a folder named after it")
    named = {name: (match["prefix"], str(match.lastgroup)) for name in folders if (match := _SPLIT.fullmatch(name))}
    trains = [named[name][0] for name in named if named[name][1] == "train" and _folders(root / name)]
    # A bullet_train is a class; beside a bullet_test it is a split.
    prefixes = [
        prefix for prefix in trains if not prefix or len({kind for p, kind in named.values() if p == prefix}) > 1
    ]
    if not prefixes:
        if len(folders) == 1 and not named and folders[0] not in class_names and _folders(root / folders[0]):
            return _splits(root / folders[0], class_names)
        if len(named) == len(folders) and not trains:
            raise UserError(f"{root} holds {' and '.join(named)} but no train/ with class folders; add it")
        return {"train": root}
    splits: dict[str, Path] = {}
    for name, (prefix, split) in named.items():
        if prefix != min(prefixes):
            continue
        if split in splits:
            raise UserError(f"{root} holds both {splits[split].name}/ and {name}/; keep one for the {split} images")
        inner = _folders(root / name)
        twice = len(inner) == 1 and (match := _SPLIT.fullmatch(inner[0])) and match.lastgroup == split
        splits[split] = root / name / inner[0] if twice and _folders(root / name / inner[0]) else root / name
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
    unknown = [name for name in others if next(image_files(folder / name), None) is not None]
    if unknown:
        known = f"the {len(class_names)} classes ({some(class_names)})"
        raise UserError(f"{folder} has {some(unknown)}, which is not among {known}; rename or remove it")
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        members = sorted(image_files(folder / name)) if (folder / name).is_dir() else []
        paths += members
        labels += [label] * len(members)
    return ImageFiles(tuple(paths), np.array(labels, np.int32), class_names)


def image_files(folder: Path) -> Iterator[str]:
    """Image files at any depth; links are followed, but to no folder that was seen before or lies around this one."""
    seen = {_identity(parent) for parent in folder.resolve().parents}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        identity = _identity(here)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not is_left_out(name))
        for name in names:
            if not is_left_out(name) and name.lower().endswith(SUFFIXES):
                yield os.path.join(here, name)


def _folders(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError as error:
        _refuse(error)
    # A link in a circle is no folder to os.path, and an error to os.scandir.
    return natural_order(name for name in names if not is_left_out(name) and os.path.isdir(folder / name))


def is_left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_OUT


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions") from error
