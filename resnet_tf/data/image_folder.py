"""Image files by class, from a folder per class, or from lists with a path and a label per line."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_tf.data.dataset import is_image_dataset
from resnet_tf.data.image_io import SUFFIXES
from resnet_tf.errors import UserError, some

_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}

# What the header of a CSV file may call its columns, in any case of letters; other columns are left alone.
_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img"),
    "label": ("label", "class", "class_name", "class_id", "target", "category"),
}
# Nine digits fit any machine; what is longer is no count of classes.
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_LIST_FORM = "list:TRAIN.txt[,[VALID.txt][,TEST.txt]]"
_LINE_FORM = "a line is a path and a label, with the label as its last field"


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

    Where a `train` folder itself holds folders, there are splits (`_SPLITS`). Otherwise the folders are the classes,
    and all images are in "train". A class has the images at any depth of its folder, in order of their paths.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give one with a folder of images per class, or list:FILE")
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
        known = f"the {len(class_names)} classes ({some(class_names)})"
        raise UserError(f"{folder} has {some(unknown)}, which is not among {known}; rename or remove it")
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


class _Line(NamedTuple):
    """A line of a list: where it stands, the path as it is opened, the label as written."""

    where: str
    path: str
    label: str


def find_images(name: str, class_names: Sequence[str] | None = None) -> dict[str, ImageFiles]:
    """Find the images of "folder:PATH" or "list:…" by split, as `read_folder` and `read_list` do."""
    kind, _, place = name.partition(":")
    if not is_image_dataset(name) or not place.strip():
        raise UserError(f"{name!r} names no images; expected folder:PATH or {_LIST_FORM}")
    if kind == "folder":
        return read_folder(place, class_names)
    lists = [path.strip() for path in place.split(",")]
    if len(lists) > 3 or not lists[0] or not lists[-1]:
        raise UserError(f"{name!r} names {len(lists)} lists, or an empty one; expected {_LIST_FORM}")
    validation, test = (*lists[1:], "", "")[:2]
    return read_list(lists[0], validation or None, test or None, class_names)


def read_list(
    train: str | os.PathLike[str],
    validation: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, ImageFiles]:
    """Read lists of images in UTF-8, by split; no image is opened.

    A line is a path, from the list's folder, white space, and the label; lines that begin with # are comments. A file
    that ends in .csv, or whose first line is a header, is read as CSV: by the columns of `_COLUMNS`, without a header
    by the first and the last. Labels are names, or integers from 0 without gaps, in all lists alike.
    """
    lists = {"train": train, "validation": validation, "test": test}
    lines = {split: _read(Path(path).expanduser()) for split, path in lists.items() if path is not None}
    numbered = _are_integers([line for of_split in lines.values() for line in of_split])
    names = tuple(class_names) if class_names else _names_of(lines["train"], numbered)
    # The names of a model that was trained on numbers are numbers, with gaps where it had no images.
    by_position = numbered and not all(_INTEGER.fullmatch(name) for name in names)
    index = {name: label for label, name in enumerate(map(str, range(len(names))) if by_position else names)}
    return {split: _labelled(of_split, index, numbered, names) for split, of_split in lines.items()}


def _labelled(lines: list[_Line], index: dict[str, int], numbered: bool, names: tuple[str, ...]) -> ImageFiles:
    labels = np.empty(len(lines), np.int32)
    for i, line in enumerate(lines):
        label = index.get(str(int(line.label)) if numbered else line.label)
        if label is None:
            known = list(index)
            no_gaps = known == list(map(str, range(len(known))))
            allowed = f"0 to {len(known) - 1}" if no_gaps else some(known)
            raise UserError(f"{line.where}: invalid label {line.label!r}; expected one of the classes ({allowed})")
        labels[i] = label
    return ImageFiles(tuple(line.path for line in lines), labels, names)


def _are_integers(lines: list[_Line]) -> bool:
    numbers = [line for line in lines if _INTEGER.fullmatch(line.label)]
    names = [line for line in lines if not _INTEGER.fullmatch(line.label)]
    if numbers and names:
        raise UserError(
            f"{numbers[0].where} has the integer label {numbers[0].label}, {names[0].where} the name "
            f"{names[0].label!r}; label all images one way or the other"
        )
    return bool(numbers)


def _names_of(lines: list[_Line], numbered: bool) -> tuple[str, ...]:
    if not numbered:
        return tuple(natural_order({line.label for line in lines}))
    labels = sorted({int(line.label) for line in lines})
    if labels != list(range(len(labels))):
        found = f"{len(labels)} integer labels from {labels[0]} to {labels[-1]}"
        raise UserError(f"the training list has {found}; number them 0 to {len(labels) - 1} without gaps, or use names")
    return tuple(map(str, labels))


def _read(path: Path) -> list[_Line]:
    try:
        text = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"the list {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is not UTF-8 text ({error.reason}); save it in that encoding") from error
    is_csv = path.suffix.lower() == ".csv" or _columns(text[0].split(",")) is not None
    try:
        lines = list(_csv_lines(path, text) if is_csv else _plain_lines(path, text))
    except csv.Error as error:
        raise UserError(f"the list {path} is not valid CSV ({error}); write it again") from error
    if not lines:
        raise UserError(f"the list {path} names no image; {_LINE_FORM}")
    return lines


def _plain_lines(path: Path, text: list[str]) -> Iterator[_Line]:
    for number, line in enumerate(text, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.strip().rsplit(maxsplit=1)
        if len(fields) < 2:
            raise UserError(f"{path}:{number} has {line.strip()[:80]!r} and no more; {_LINE_FORM}")
        yield _Line(f"{path}:{number}", str(path.parent / fields[0]), fields[1])


def _csv_lines(path: Path, text: list[str]) -> Iterator[_Line]:
    columns: tuple[int, int] | None = None
    # Comments become blank lines, which the reader passes over while it goes on counting.
    reader = csv.reader("" if line.startswith("#") else line for line in text)
    for fields in reader:
        if not any(field.strip() for field in fields):
            continue
        if columns is None:
            columns = _columns(fields)
            if columns is not None:
                continue
            columns = (0, -1)
        where = f"{path}:{reader.line_num}"
        image, label = (fields[i].strip() if i < len(fields) else "" for i in columns)
        if len(fields) < 2 or not image or not label:
            raise UserError(f"{where} lacks a path or a label; each line of this CSV file has both")
        yield _Line(where, str(path.parent / image), label)


def _columns(header: list[str]) -> tuple[int, int] | None:
    """Where path and label stand by a header's names, or None where it is no header."""
    names = [name.strip().lower() for name in header]
    path, label = (next((i for i, name in enumerate(names) if name in _COLUMNS[key]), None) for key in _COLUMNS)
    return None if path is None or label is None else (path, label)
