"""The folder of a run: one process at a time, one setting for its whole life."""

import json
import os
import platform
import time
from pathlib import Path
from typing import IO, Any

from resnet_tf.errors import UserError
from resnet_tf.files import write_json

SETTINGS = "settings.json"
REPORT = "report.json"
_WRITTEN = (REPORT, "checkpoints/*", "tensorboard/*", "*.keras", "*.json", "*.bin", "metrics.*", "curves.*", "log.txt")


class RunFolder:
    """Where a run keeps its recipe, log, checkpoints, models and report."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is created before `claim`."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock: IO[str] | None = None

    def claim(self) -> None:
        """Make the folder and take its lock, which the system releases when the process ends.

        Raises:
            UserError: another process has it, or the folder cannot be made or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"run folder {self.path} cannot be written ({error.strerror}); give another --run-dir"
            ) from error
        if not _try_lock(lock):
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise UserError(f"run folder {self.path} is in use by {owner}; wait for it or give another --run-dir")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        self._lock = lock
        for leftover in self.path.rglob(".new-*"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def settings(self) -> dict[str, Any] | None:
        """The settings that the run was started with, or None for a new run.

        Raises:
            UserError: the file is damaged, or the folder holds other things than a run.
        """
        self.check_ours()
        path = self.path / SETTINGS
        return _read_json(path) if path.exists() else None

    def check_ours(self) -> None:
        """Look at the folder without touching it.

        Raises:
            UserError: it holds other things than a run.
        """
        if (self.path / SETTINGS).exists():
            return
        try:
            foreign = [p.name for p in self.path.iterdir() if p.name != "lock" and not p.name.startswith(".new-")]
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(
                f"run folder {self.path} cannot be read ({error.strerror}); give another --run-dir"
            ) from error
        if foreign:
            raise UserError(
                f"run folder {self.path} holds files that are no run of ours ({sorted(foreign)[0]}, …); "
                "give an empty or a new --run-dir"
            )

    def start(self, settings: dict[str, Any]) -> None:
        """Write the settings of a new run."""
        write_json(self.path / SETTINGS, settings)

    def report(self) -> dict[str, Any] | None:
        """The report of a finished run, or None."""
        path = self.path / REPORT
        return _read_json(path) if path.exists() else None

    def empty(self) -> None:
        """Remove what runs write here, settings last, so that an interrupted removal is still a run.

        Raises:
            UserError: the folder holds other things than a run.
        """
        self.check_ours()
        for pattern in _WRITTEN:
            for path in self.path.glob(pattern):
                if path.name != SETTINGS:
                    path.unlink()
        (self.path / SETTINGS).unlink(missing_ok=True)

    def log(self, line: str) -> None:
        """Append a line to log.txt, as far as the disk allows."""
        try:
            with open(self.path / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError:
            return  # the same line goes to the terminal; a full disk must not end the training


def difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The first few settings in which two runs differ, in words; None where they agree."""
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if not keys:
        return None
    return "; ".join(f"{key} is {_short(old.get(key))} there, {_short(new.get(key))} here" for key in keys[:4])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); start anew with --overwrite, or give another --run-dir"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{path} is not the JSON object that a run writes; start anew with --overwrite, or give another --run-dir"
        )
    return value


def _try_lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
