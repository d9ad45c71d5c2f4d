"""Checkpoints that are whole or not there.

A checkpoint is one NumPy archive (`step-000012345.npz`) with every variable and, as JSON text,
everything else that the future depends on; its SHA-256 lies beside it. It appears under its name
only after it and its checksum are on the disk. Nothing in it is executed on loading.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.files import replacing, sha256_of, write_text

KEEP = 2
_NAME = re.compile(r"step-(\d{9,})\.npz")
_STATE = "state.json"


def save(folder: Path, step: int, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` and remove all but the newest two.

    Args:
        folder: made if missing.
        step: updates done.
        arrays: variables by key.
        state: JSON-able rest.

    Returns:
        The checkpoint's path.

    Raises:
        OSError: the disk is full, read-only or gone; earlier checkpoints are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.npz"
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            write_archive(file, arrays, state)
        write_text(_checksum_path(path), sha256_of(temporary) + "\n")
    for old in sorted(_checkpoints(folder))[:-KEEP]:
        with contextlib.suppress(OSError):
            _checksum_path(old).unlink(missing_ok=True)
            old.unlink()
    return path


def load_newest(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any], list[Path]] | None:
    """Read the newest whole checkpoint.

    Returns:
        Variables by key, state, and the newer files that were damaged and passed over; None
        where the folder holds no checkpoint at all.

    Raises:
        UserError: there are checkpoints, but not one of them is whole.
    """
    damaged: list[Path] = []
    for path in sorted(_checkpoints(folder), reverse=True):
        try:
            return *_load(path), damaged
        except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile):
            damaged.append(path)
    if damaged:
        raise UserError(f"no checkpoint in {folder} is whole; start anew with --overwrite, or give another --run-dir")
    return None


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if _checksum_path(path).read_text(encoding="ascii").strip() != sha256_of(path):
        raise ValueError(f"{path} does not have the checksum beside it")
    return read_archive(path)


def write_archive(file: BinaryIO, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Write arrays by key and a JSON-able state as one NumPy archive."""
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    np.savez(file, **{**arrays, _STATE: text})  # type: ignore[arg-type]


def read_archive(file: Path | BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by key, and the state, of what `write_archive` wrote."""
    with np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    return arrays, json.loads(arrays.pop(_STATE).tobytes())


def _checkpoints(folder: Path) -> Iterable[Path]:
    return (p for p in folder.glob("step-*.npz") if _NAME.fullmatch(p.name))


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")
