"""Write files atomically, refuse outputs that would destroy something, and read JSON that is what it must be."""

import contextlib
import hashlib
import itertools
import json
import os
import reprlib
import shutil
import stat
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resnet_tf.errors import UserError

MAX_JSON = 32 * 2**20  # bytes; two confusion matrices of 1000 classes take 24 MB
_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_RUN = "settings.json"
# What a run writes beside its settings: no output of anything else, and what is removed before it starts anew.
RUN_FILES = (
    *("report.json", "command.txt", "log.txt", "iterations.bin", "metrics.csv", "metrics.jsonl", "curves.png"),
    *("curves.pdf", "final.keras", "final.json", "best.keras", "best.json", "report.html", "per_class.csv"),
    *("confusion.png", "examples.png", "calibration.png"),
)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to the disk and rename it over `path`.

    The temporary name keeps the suffix (Keras chooses the format by it) and starts with a dot. On failure the
    temporary file is removed and `path` is as it was. A link stays one; a device, a pipe or a stream of the process is
    written into.
    """
    if _is_special(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, path.name)
            _copy_into(Path(folder, path.name), path)
        return
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".new-{path.name}")
    try:
        yield temporary
        if path.exists():
            shutil.copymode(path, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, which is briefly missing when one is replaced by another."""
    temporary, old = path.with_name(f".new-{path.name}"), path.with_name(f".old-{path.name}")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_special(path: Path) -> bool:
    if str(path.absolute()) in _STREAMS:
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def _copy_into(source: Path, target: Path) -> None:
    handle = _STREAMS.get(str(target.absolute()))
    if handle is not None:  # by its name it would be opened anew, and cut off where it is a file
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    with open(source, "rb") as read, open(target if handle is None else os.dup(handle), "wb") as written:
        shutil.copyfileobj(read, written)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut, on systems that can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_outputs(
    outputs: Mapping[str, str | os.PathLike[str] | None], inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse outputs, by their argument, that cannot be written or would destroy something; None is no output.

    Raises:
        UserError: a folder does not exist, or an output is a folder, an input, part of a run, or named twice.
    """
    seen: dict[str, str] = {}
    there: dict[tuple[int, int], str] = {}
    for argument, path in outputs.items():
        if not path:
            continue
        shown, file = f"{argument}={str(path)!r}", Path(path)
        if not file.absolute().parent.is_dir():
            raise UserError(f"{shown}: the folder does not exist; make it or give another file", argument=argument)
        if file.is_dir():
            raise UserError(f"{shown} is a folder; give a file", argument=argument)
        real = Path(os.path.realpath(file))
        if file.name in (*RUN_FILES, _RUN, "lock", "study.db") and (real.parent / _RUN).is_file():
            raise UserError(f"{shown} belongs to the run in {file.parent}; give another file", argument=argument)
        if _is_special(file):
            continue
        if str(real) in seen:
            raise UserError(f"{shown} is {seen[str(real)]} as well; give each its own file", argument=argument)
        seen[str(real)] = argument
        if file.exists():
            there[_identity(file)] = shown
    for path in inputs if there else ():
        try:
            shown = there.get(_identity(Path(path)), "")
        except (OSError, ValueError):  # whoever reads it will say so
            continue
        if shown:
            raise UserError(f"{shown} is an input; give another file")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8); names of files that are not text are written as escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file; keys keep their order."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file by what `write(temporary_path)` makes."""
    with replacing(path) as temporary:
        write(temporary)


def read_text(path: Path, limit: int = MAX_JSON) -> str:
    """The text (UTF-8) of a regular file of at most `limit` bytes; OSError or ValueError for anything else."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or a device would be read for ever
        raise ValueError("it is no regular file")
    if status.st_size > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return path.read_text(encoding="utf-8")


class Between(NamedTuple):
    """The shape of a finite number from `low` to `high`."""

    low: float
    high: float


# Of JSON: a type, range or `Between` for numbers, a frozenset of texts, [shape] or tuple[shape, ...] for a list of any
# length, {key: shape} for an object, which may have other keys, and a union or (shape, shape) for either; a key that
# ends in "?" may be missing.
COUNT = range(2**53)
_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def read_json(path: Path, shape: Any, advice: str) -> dict[str, Any]:
    """Read a JSON object of this shape; UserError, with what to do, where the file is missing, damaged or other."""
    try:
        value = parse_json(read_text(path))
        _check_depth(value)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not the JSON object that is written there; {advice}")
    if (found := misfit(value, shape)) is not None:
        raise UserError(f"{path} {found}; {advice}")
    return value


def parse_json(text: str | bytes) -> Any:
    """JSON that we wrote; ValueError also for whole numbers that arithmetic with fractions could not represent."""

    def whole(digits: str) -> int:
        if len(digits) > 100:
            raise ValueError(f"it has a number of {len(digits)} digits")
        return int(digits)

    return json.loads(text, parse_int=whole)


def _check_depth(value: Any) -> None:
    """Refuse what is nested deeper than anything that is written: to write or to compare it may fail."""
    level = [value]
    for _ in range(20):
        parts = (part for part in level if isinstance(part, list | dict))
        level = [item for part in parts for item in (part.values() if isinstance(part, dict) else part)]
    if level:
        raise ValueError("it is nested too deeply")


def misfit(value: Any, shape: Any, name: str = "") -> str | None:
    """What is wrong with a value of JSON, in words that follow the file's name; None where it has the shape."""
    if isinstance(shape, types.UnionType):
        shape = typing.get_args(shape)
    if type(shape) is tuple:
        reasons = [misfit(value, part, name) for part in shape]
        return None if None in reasons else reasons[0]
    parts: Iterable[tuple[Any, Any, str]]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"has no object as {name}"
        lacking = sorted(key for key in shape if not key.endswith("?") and key not in value)
        if lacking:
            return f"lacks {', '.join(lacking)}{f' in {name}' if name else ''}"
        parts = ((value[key], inner, key) for k, inner in shape.items() if (key := k.rstrip("?")) in value)
        return next(filter(None, itertools.starmap(misfit, parts)), None)
    if isinstance(shape, list) or typing.get_origin(shape) is tuple:
        if not isinstance(value, list):
            return f"has no list as {name}"
        parts = ((item, (typing.get_args(shape) or shape)[0], name) for item in value)
        return next(filter(None, itertools.starmap(misfit, parts)), None)
    number = type(value) in (int, float)
    if isinstance(shape, range):
        fits, wanted = type(value) is int and value in shape, f"a whole number from {shape[0]} to {shape[-1]}"
    elif isinstance(shape, Between):
        fits, wanted = number and shape.low <= value <= shape.high, f"a number from {shape.low:g} to {shape.high:g}"
    elif isinstance(shape, frozenset):
        fits, wanted = isinstance(value, str) and value in shape, f"one of {', '.join(sorted(shape))}"
    else:
        # Runs of old versions have 4.0 for 4.
        fits = type(value) is (shape or type(None)) or (
            number and (shape is float or (shape is int and value % 1 == 0))
        )
        wanted = _KINDS.get(shape, "null")
    return None if fits else f"has {reprlib.repr(value)} as {name}, not {wanted}"
