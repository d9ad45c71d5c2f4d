"""Images named by text files: a path and a label per line."""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_tf.data.dataset import is_image_dataset
from resnet_tf.data.image_folder import ImageFiles, natural_order, read_folder
from resnet_tf.errors import UserError, some

_PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "img")
_LABEL_COLUMNS = ("label", "class", "class_name", "class_id", "target", "category")
# Nine digits fit any machine; what is longer is no count of classes.
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_FORM = "a line is a path and a label, with the label as its last field"


@dataclass(frozen=True)
class _Row:
    """A line of a list: where it stands, the path as written, the label as written."""

    where: str
    path: str
    label: str


def read_list(
    train: str | os.PathLike[str],
    validation: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, ImageFiles]:
    """Read lists of images in UTF-8; no image is opened.

    A line holds a path, which may have spaces, then white space, then the label. Blank lines and lines that begin
    with # are comments. A file that ends in .csv, or whose first line is a header with a comma, is read as CSV: by
    the columns that its header names (path or file, image …; label or class, target …), without a header by the
    first and the last. A path that is not absolute starts from the folder of its list.

    Labels are integers or names, in all lists alike. Names are numbered in natural order ("2" before "10"). Integers
    run from 0 without gaps over the training list, and are their own names unless `class_names` gives others. Where
    all of those are numbers too, integers mean them, and not places among them.

    Args:
        train: list of the training images.
        validation: list of the validation images, or None.
        test: list of the test images, or None.
        class_names: the classes in the order of their labels, where they are settled already.

    Returns:
        Files by split: "train", and "validation" and "test" where lists of them were given.

    Raises:
        UserError: a list cannot be read, is empty, has a line that is no path and label, mixes names and integers,
            has integers with gaps or out of range, or has a class that the training list, or `class_names`, has not.
    """
    lists = {"train": train, "validation": validation, "test": test}
    rows = {split: _read(Path(path).expanduser()) for split, path in lists.items() if path is not None}
    numbered = _are_integers([row for part in rows.values() for row in part])
    names = tuple(class_names) if class_names else _class_names(rows["train"], numbered)
    # The names of a model that was trained on numbers are numbers, with gaps where it had no images.
    by_position = numbered and not all(_INTEGER.fullmatch(name) for name in names)
    index = {name: label for label, name in enumerate(map(str, range(len(names))) if by_position else names)}
    return {split: _files(part, index, numbered, names) for split, part in rows.items()}


def _files(rows: list[_Row], index: dict[str, int], numbered: bool, names: tuple[str, ...]) -> ImageFiles:
    labels = np.empty(len(rows), np.int32)
    for i, row in enumerate(rows):
        label = index.get(str(int(row.label)) if numbered else row.label)
        if label is None:
            known = list(index)
            in_a_row = known == list(map(str, range(len(known))))
            allowed = f"0 to {len(known) - 1}" if in_a_row else some(known)
            raise UserError(
                f"{row.where} has the label {row.label!r}, which is none of the classes ({allowed}); mend it"
            )
        labels[i] = label
    return ImageFiles(tuple(row.path for row in rows), labels, names)


def _are_integers(rows: list[_Row]) -> bool:
    numbers = [row for row in rows if _INTEGER.fullmatch(row.label)]
    names = [row for row in rows if not _INTEGER.fullmatch(row.label)]
    if numbers and names:
        raise UserError(
            f"{numbers[0].where} has the integer label {numbers[0].label}, {names[0].where} the name "
            f"{names[0].label!r}; label all images one way or the other"
        )
    return bool(numbers)


def _class_names(rows: list[_Row], numbered: bool) -> tuple[str, ...]:
    if not numbered:
        return tuple(natural_order({row.label for row in rows}))
    labels = sorted({int(row.label) for row in rows})
    if labels != list(range(len(labels))):
        raise UserError(
            f"the {len(labels)} integer labels of the training list run from {labels[0]} to {labels[-1]}; number the "
            f"classes 0 to {len(labels) - 1} without gaps, or label by name"
        )
    return tuple(map(str, labels))


def _read(path: Path) -> list[_Row]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(
            f"the list {path} cannot be read ({error.strerror}); give a text file of paths and labels"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list {path} is no text in UTF-8 ({error.reason}); save it in that encoding") from error
    is_csv = path.suffix.lower() == ".csv" or (bool(lines) and _columns(lines[0].split(",")) is not None)
    try:
        rows = list(_csv_rows(path, lines) if is_csv else _plain_rows(path, lines))
    except csv.Error as error:
        raise UserError(f"the list {path} is no proper CSV ({error}); write it again") from error
    if not rows:
        raise UserError(f"the list {path} names no image; {_FORM}")
    return rows


def _plain_rows(path: Path, lines: list[str]) -> Iterator[_Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.strip().rsplit(maxsplit=1)
        if len(fields) < 2:
            raise UserError(f"{path}:{number} has {line.strip()[:80]!r} and no more; {_FORM}")
        yield _Row(f"{path}:{number}", str(path.parent / fields[0]), fields[1])


def _csv_rows(path: Path, lines: list[str]) -> Iterator[_Row]:
    columns: tuple[int, int] | None = None
    # Comments become blank lines, which the reader passes over while it goes on counting.
    reader = csv.reader("" if line.startswith("#") else line for line in lines)
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
        yield _Row(where, str(path.parent / image), label)


def _columns(header: list[str]) -> tuple[int, int] | None:
    """Where path and label stand by a header's names, or None where it is no header."""
    names = [name.strip().lower() for name in header]
    paths = [i for i, name in enumerate(names) if name in _PATH_COLUMNS]
    labels = [i for i, name in enumerate(names) if name in _LABEL_COLUMNS]
    return (paths[0], labels[0]) if paths and labels else None


_FORMS = "folder:PATH and list:TRAIN.txt[,[VALID.txt][,TEST.txt]]"


def find_images(dataset: str, class_names: Sequence[str] | None = None) -> dict[str, ImageFiles]:
    """Find the images that folder:PATH or list:… stands for, by split, as `read_folder` and `read_list` do.

    Raises:
        UserError: the name has no such form, or what it names cannot be used.
    """
    kind, _, place = dataset.partition(":")
    if not is_image_dataset(dataset) or not place.strip():
        raise UserError(f"{dataset!r} names no images; the forms are {_FORMS}")
    if kind == "folder":
        return read_folder(place, class_names)
    lists = [path.strip() for path in place.split(",")]
    if len(lists) > 3 or not lists[0] or not lists[-1]:
        raise UserError(
            f"{dataset!r} names {len(lists)} lists, or an empty one; the form is {_FORMS.split(' and ')[1]}"
        )
    validation, test = (*lists[1:], "", "")[:2]
    return read_list(lists[0], validation or None, test or None, class_names)
