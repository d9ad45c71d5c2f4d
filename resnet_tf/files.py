"""Write files atomically (the old or the new one, never half of each), and compute digests."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success flush it to the disk and rename it over `path`.

    The temporary name keeps the suffix (Keras chooses the format by it) and starts with a dot. On failure the
    temporary file is removed and `path` is as it was.
    """
    temporary = path.with_name(f".new-{path.name}")
    try:
        yield temporary
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


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut, on systems that can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
