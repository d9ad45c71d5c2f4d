"""Image files by class from lists with a path and a label per line, in the forms that data sets come in."""

import csv
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_tf.data.dataset import is_image_dataset
from resnet_tf.data.image_folder import ImageFiles, is_left_out, natural_order, read_folder
from resnet_tf.data.image_io import SUFFIXES
from resnet_tf.errors import UserError, some

# What the header of a list may call its columns, in any case of letters, the surest first; others are left alone.
_COLUMNS = {
    "path": "path filepath file_path filename file_name file image_path image_name image img_path img "
    "image_id img_id id_code id name",
    "label": "label labels class class_name class_id classid target category category_name category_id diagnosis "
    "breed species",
}
_LIST_FORM = "list:TRAIN.txt[,[VALID.txt][,TEST.txt]]"
# Nine digits fit any machine; what is longer is no count of classes. Some tools write whole numbers as 3.000000.
_INTEGER = re.compile(r"(-?[0-9]{1,9})(?:\.0+)?")
_ONE, _ZERO = re.compile(r"1(\.0*)?"), re.compile(r"0?(\.0*)?")
_LINE_FORMS = (
    "a list has a line per image, PATH LABEL, LABEL PATH or INDEX LABEL PATH, separated by white space, tab, comma or "
    f"semicolon, or a header that names the columns: one of {_COLUMNS['path'].replace(' ', ', ')}; and one of "
    f"{_COLUMNS['label'].replace(' ', ', ')}, or a column of 0 and 1 for each class"
)
_MAX_LIST, _MAX_LINE = 2**28, 2**16  # bytes, characters
_MAX_DEPTH = 3  # of folders below a list, where images are looked for by name


class _Line(NamedTuple):
    """A line of a list: the list, the number of the line, the path as it is opened, the label as written."""

    source: Path
    number: int
    path: str
    label: str

    @property
    def where(self) -> str:
        return f"{self.source}:{self.number}"


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
    """Read lists of images, by split; no image is opened.

    The forms of a list are those of `_LINE_FORMS`, in UTF-8, UTF-16 with its mark or Latin-1; lines that begin with #
    are comments. Paths are relative to the list's folder, with / or \\; where the files are not there, they are looked
    for below it by their names, with or without suffix. Labels are names, or integers from 0 or 1 without gaps, in all
    lists alike.
    """
    lists = {"train": train, "validation": validation, "test": test}
    lines = {split: _read(Path(path).expanduser()) for split, path in lists.items() if path is not None}
    every = [line for of_split in lines.values() for line in of_split]
    numbered = _are_integers(every)
    names = tuple(class_names) if class_names else _names_of(lines["train"], numbered)
    keys = names
    # The names of a model that was trained on numbers are numbers, with gaps where it had no images.
    if numbered and not all(_INTEGER.fullmatch(name) for name in names):
        numbers = {_integer(line.label) for line in every}
        first = int(min(numbers) > 0 and max(numbers) == len(names))
        keys = tuple(map(str, range(first, first + len(names))))
    index = {name: label for label, name in enumerate(keys)}
    return {split: _labelled(of_split, index, numbered, names) for split, of_split in lines.items()}


def _labelled(lines: list[_Line], index: dict[str, int], numbered: bool, names: tuple[str, ...]) -> ImageFiles:
    labels = np.empty(len(lines), np.int32)
    for i, line in enumerate(lines):
        label = index.get(str(_integer(line.label)) if numbered else line.label)
        if label is None:
            known = list(index)
            no_gaps = known == list(map(str, range(len(known))))
            allowed = f"0 to {len(known) - 1}" if no_gaps else some(known)
            raise UserError(f"{line.where}: invalid label {line.label!r}; expected one of the classes ({allowed})")
        labels[i] = label
    return ImageFiles(tuple(line.path for line in lines), labels, names)


def _integer(label: str) -> int:
    return int(label.partition(".")[0])


def _are_integers(lines: list[_Line]) -> bool:
    names = [line for line in lines if not _INTEGER.fullmatch(line.label)]
    numbers = [line for line in lines if names and re.fullmatch("-?[0-9]{1,9}", line.label)]
    if numbers and names:
        raise UserError(
            f"{numbers[0].where} has the integer label {numbers[0].label}, {names[0].where} the name "
            f"{names[0].label!r}; label all images one way or the other"
        )
    return not names


def _names_of(lines: list[_Line], numbered: bool) -> tuple[str, ...]:
    if not numbered:
        return tuple(natural_order({line.label for line in lines}))
    labels = sorted({_integer(line.label) for line in lines})
    if labels[0] not in (0, 1) or labels != list(range(labels[0], labels[0] + len(labels))):
        found = f"{len(labels)} integer labels from {labels[0]} to {labels[-1]}"
        raise UserError(f"the training list has {found}; number them 0 to {len(labels) - 1} without gaps, or use names")
    return tuple(map(str, labels))


def _read(path: Path) -> list[_Line]:
    try:
        status = path.stat()
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_LIST:
            raise UserError(
                f"the list {path} cannot be read (no file, or of more than {_MAX_LIST} bytes); name another"
            )
        with path.open("rb") as file:
            wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")
        try:
            lines = _parse(path, "utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError:
            lines = _parse(path, "latin-1")
    except OSError as error:
        raise UserError(f"the list {path} cannot be read ({error.strerror})") from error
    except csv.Error as error:
        raise UserError(f"the list {path} is not valid CSV ({error}); write it again") from error
    if not lines:
        raise UserError(f"the list {path} names no image; {_LINE_FORMS}")
    return _located(path, lines)


def _parse(path: Path, encoding: str) -> list[_Line]:
    with path.open(encoding=encoding) as file:
        rows = _text(path, iter(lambda: file.readline(_MAX_LINE), ""))
        head: list[str] = []
        while sum(map(bool, head)) < 2 and (row := next(rows, None)) is not None:
            head.append(row)
        samples = [row for row in head if row]
        separator = _separator(path.suffix.lower(), samples)
        reader = csv.reader(itertools.chain(head, rows), delimiter=separator or ",")
        fields = ((reader.line_num, row) for row in reader)
        if separator is None:
            fields = ((number, [row]) for number, row in enumerate(itertools.chain(head, rows), start=1))
        return list(_lines(path, fields, samples))


def _text(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """Lines of which comments and those of white space are empty, and go on counting."""
    for number, line in enumerate(lines, start=1):
        if len(line) == _MAX_LINE or "\0" in line:
            raise UserError(f"{path}:{number} is not text (UTF-8, UTF-16 or Latin-1); {_LINE_FORMS}")
        yield "" if line.startswith("#") or not line.strip() else line.rstrip("\n")


def _separator(suffix: str, samples: list[str]) -> str | None:
    """What separates the fields of the first lines, or None where it is white space."""
    for separator in "\t;,":
        rows = [fields for line in samples if len(fields := line.split(separator)) > 1]
        if any(_columns(fields) or _is_image(fields[0]) or _is_image(fields[-1]) for fields in rows):
            return separator
    return max(",;\t", key=samples[0].count) if samples and suffix in (".csv", ".tsv", ".lst") else None


def _is_image(field: str) -> bool:
    return field.strip(' "').lower().endswith(SUFFIXES)


def _columns(header: list[str]) -> tuple[int, list[int]] | None:
    """Where path and label stand by a header's names (several where each is a class), or None where it is no header."""
    names = [name.strip(' "').lower() for name in header]
    path, label = (next((names.index(n) for n in known.split() if n in names), None) for known in _COLUMNS.values())
    if path is None or (label is None and len(names) < 3):
        return None
    return path, [i for i in range(len(names)) if i != path] if label is None else [label]


def _lines(path: Path, rows: Iterable[tuple[int, list[str]]], samples: list[str]) -> Iterator[_Line]:
    header: list[str] = []
    columns: tuple[int, list[int]] | None = None
    for number, fields in rows:
        if not any(map(str.strip, fields)):
            continue
        fields = [field.strip() for field in (fields if len(fields) > 1 else _plain(fields[0].strip()))]
        where = f"{path}:{number}"
        if columns is None:
            columns = _columns(fields)
            if columns is not None:
                header = fields
                continue
            if not any(map(_is_image, fields)) and any(map(_is_image, re.split(r"[\s,;]+", samples[-1]))):
                raise UserError(f"{where} has {samples[0][:80]!r}, which is no known header; {_LINE_FORMS}")
            columns = (0, [-1])
            if _is_image(fields[-1]) and not _is_image(fields[0]):
                columns = (-1, [1 if len(fields) > 2 and _INTEGER.fullmatch(fields[0]) else 0])
        image, *labels = (fields[i] if i < len(fields) else "" for i in (columns[0], *columns[1]))
        if len(labels) > 1:
            hot = [i for i, label in zip(columns[1], labels, strict=True) if _ONE.fullmatch(label)]
            if len(hot) != 1 or not all(_ONE.fullmatch(label) or _ZERO.fullmatch(label) for label in labels):
                raise UserError(f"{where} does not have a 1 in one column and 0 in the others; {_LINE_FORMS}")
            labels = [header[hot[0]]]
        if len(fields) < 2:
            raise UserError(f"{where} has {fields[0][:80]!r} and no more; {_LINE_FORMS}")
        if not image or not labels[0]:
            raise UserError(f"{where} lacks a path or a label; {_LINE_FORMS}")
        file = path.parent / image
        if "\\" in image and not os.path.lexists(file):
            file = path.parent / image.replace("\\", "/")
        yield _Line(path, number, str(file), labels[0])


def _plain(line: str) -> list[str]:
    fields = line.rsplit(maxsplit=1)
    return line.split(maxsplit=1) if _is_image(fields[-1]) and not _is_image(fields[0]) else fields


def _located(path: Path, lines: list[_Line]) -> list[_Line]:
    """The lines, with files that are not where the list says found by their names below its folder."""
    if os.path.lexists(lines[0].path):
        return lines
    root = os.fspath(path.parent)
    known: dict[str, list[str]] = {}
    for here, folders, names in os.walk(root):
        if here[len(root) :].count(os.sep) >= _MAX_DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not is_left_out(name)]
        for name in filter(_is_image, names):
            for key in {name, os.path.splitext(name)[0]}:
                known.setdefault(key, []).append(os.path.join(here, name))
    return [line if os.path.lexists(line.path) else _find(line, root, known) for line in lines]


def _find(line: _Line, root: str, known: dict[str, list[str]]) -> _Line:
    wanted = os.sep + os.path.relpath(line.path, root)
    found = [
        file
        for file in known.get(os.path.basename(line.path), ())
        if wanted in (file[-len(wanted) :], os.path.splitext(file)[0][-len(wanted) :])
    ]
    if len(found) > 1:
        # train.csv is about train_images/.
        found = [file for file in found if line.source.stem.lower() in file[len(root) :].lower()] or found
    if len(found) > 1:
        raise UserError(f"{line.where} may mean {some(sorted(found))}; write the path from the list's folder")
    return line._replace(path=found[0]) if found else line
