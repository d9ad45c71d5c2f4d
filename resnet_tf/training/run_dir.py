"""The run directory: one process at a time, one set of settings for its whole life."""

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


class RunDir:
    """Where a run keeps its recipe, log, checkpoints, models and report."""

    def __init__(self, path: Path) -> None:
        """Name the folder; nothing is created before `lock`."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._lock: IO[str] | None = None

    def lock(self) -> None:
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
        self.check()
        path = self.path / SETTINGS
        return _read_json(path) if path.exists() else None

    def check(self) -> None:
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

    def create(self, settings: dict[str, Any]) -> None:
        """Write the settings of a new run."""
        write_json(self.path / SETTINGS, settings)

    def report(self) -> dict[str, Any] | None:
        """The report of a finished run, or None."""
        path = self.path / REPORT
        return _read_json(path) if path.exists() else None

    def clear(self) -> None:
        """Remove what runs write here, settings last, so that an interrupted removal is still a run.

        Raises:
            UserError: the folder holds other things than a run.
        """
        self.check()
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


# Settings that came later, with what runs had before: where a setting has that value, it is not written down.
LATER: dict[str, Any] = {
    "augment": None,
    "augment_sha256": None,
    "input_size": None,
    "on_bad_image": "stop",
    "weights": None,
    "freeze": "none",
    "unfreeze_at": None,
    "unfreeze_learning_rate": None,
    "train_bn": False,
    "sync_bn": False,
    "recipe.optimizer": "sgd",
    "recipe.clip_norm": None,
    "recipe.label_smoothing": 0.0,
    "recipe.class_weights": "none",
    "recipe.early_stopping": 0,
    "recipe.accumulate": 1,
    "recipe.ema": None,
}

Settings = dict[str, Any]
Channels = tuple[float, ...]

_OR_ANEW = "or --overwrite to start anew"


def check_flags(folder: RunDir, known: Settings, asked: Settings) -> None:
    """Find out whether flags are those of the run in a folder.

    Args:
        folder: of the run.
        known: the run's settings.
        asked: those that the flags decide.

    Raises:
        UserError: some differ.
    """
    known, asked = LATER | known, LATER | asked
    differs = difference({key: known.get(key) for key in asked}, asked)
    if differs:
        raise UserError(
            f"run folder {folder.path} belongs to a run of other settings: {differs}; "
            f"give another --run-dir, {_OR_ANEW}"
        )


def check_files(folder: RunDir, known: Settings, here: Settings) -> None:
    """Find out whether the files that a run was started on are what they were.

    Args:
        folder: of the run.
        known: the run's settings.
        here: those of the same flags and of what the files hold now.

    Raises:
        UserError: the weights or the data are others.
    """
    if known.get("weights.sha256") != here.get("weights.sha256"):
        raise UserError(
            f"run folder {folder.path} was started from other weights than {here.get('weights')} holds now; "
            f"give another --run-dir, {_OR_ANEW}"
        )
    if known["data.fingerprint"] != here["data.fingerprint"]:
        raise UserError(
            f"run folder {folder.path} was started on other data ({known['data.source']}, here "
            f"{here['data.source']}); give that --data-dir, another --run-dir, {_OR_ANEW}"
        )


def saved_statistics(known: Settings) -> tuple[Channels, Channels] | None:
    """Mean and standard deviation that a run's images are normalized with; None where it did not write them down.

    To take them again is a pass over all images.
    """
    if "data.mean" not in known or "data.std" not in known:
        return None
    return tuple(known["data.mean"]), tuple(known["data.std"])
