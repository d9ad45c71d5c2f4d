"""Save and restore the training state."""

import contextlib
import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.files import replacing, sha256_of, write_text
from resnet_tf.training.logs import StepLog
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.state import MetricTotals, Peers

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


Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class TrainState:
    """Everything beside the variables that the future of a run depends on.

    Attributes:
        step: updates done.
        rows: of the metrics.
        best: iteration and validation accuracy of the best model so far, or None.
        schedule: the schedule's own state.
        since: sums since the last evaluation.
        seconds: that the training has taken.
        rolled_back: how often it went back to a checkpoint.
    """

    step: int
    rows: list[dict[str, Any]]
    best: dict[str, Any] | None
    schedule: dict[str, Any]
    since: MetricTotals
    seconds: float
    rolled_back: int


def run_variables(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, average: keras.Model | None
) -> dict[str, keras.Variable]:
    """The variables of a run by their keys in a checkpoint."""
    variables = {f"model/{v.path}": v for v in model.variables}
    variables |= {f"optimizer/{v.path}": v for v in optimizer.variables}
    if average is not None:
        variables |= {f"average/{v.path}": v for v in average.variables}
    return variables


class CheckpointManager:
    """Writes what a run makes; where the disk refuses, it says so, and the training goes on.

    Attributes:
        saved_step: updates done at the last checkpoint, -1 where there is none.
        log: of the iterations, from `open_log` on.
    """

    log: StepLog

    def __init__(self, folder: RunDir, log: Callable[[str], None]) -> None:
        """Keep a run in a claimed folder; `log` gets lines for the user."""
        self.saved_step = -1
        self._path, self._checkpoints = folder.path, folder.checkpoints
        self._say = log

    def open_log(self, step: int) -> None:
        """Take up the log of the iterations after `step` updates.

        Raises:
            UserError: it is shorter than that, or cannot be opened.
        """
        try:
            self.log = StepLog(self._path / "iterations.bin", step)
        except OSError as error:
            raise UserError(f"{error}; start anew with --overwrite") from error

    def save(self, variables: Mapping[str, keras.Variable], state: TrainState) -> None:
        """Write a checkpoint, and the log as far as it goes; where the disk refuses, the next one tries again."""

        def write() -> None:
            self.log.flush()
            arrays = {key: np.asarray(variable) for key, variable in variables.items()}
            save(self._checkpoints, state.step, arrays, dataclasses.asdict(state))
            self.saved_step = state.step

        self.try_write(f"the checkpoint of iteration {state.step}", write)

    def read(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest whole checkpoint; None where the folder holds none at all.

        Raises:
            UserError: no checkpoint is whole.
        """
        found = load_newest(self._checkpoints)
        if found is None:
            return None
        arrays, state, damaged = found
        for path in damaged:
            self._say(f"checkpoint {path.name} is damaged; going back to iteration {state['step']}")
            # Aside, so that it does not count among the two that are kept.
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
        return arrays, state

    def load(self, variables: Mapping[str, keras.Variable]) -> TrainState | None:
        """Give the variables the values of the newest whole checkpoint; None where there is none at all.

        Raises:
            UserError: no checkpoint is whole, or it is one of other variables.
        """
        found = self.read()
        if found is None:
            return None
        arrays, state = found
        if variables.keys() != arrays.keys():
            raise UserError(
                f"the checkpoints in {self._checkpoints} belong to another network or optimizer; "
                "start anew with --overwrite, or give another --run-dir"
            )
        for key, variable in variables.items():
            variable.assign(arrays[key])
        self.saved_step = state["step"]
        return TrainState(**{**state, "since": MetricTotals(**state["since"])})

    @property
    def saved(self) -> str:
        """Where the last checkpoint is, in words."""
        return f"the last checkpoint is of iteration {self.saved_step}" if self.saved_step >= 0 else "no checkpoint"

    def try_write(self, what: str, write: Callable[[], None]) -> bool:
        """Whether the disk took what `write` writes."""
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            self._say(f"could not write {what}: {reason}; the previous one is untouched, training goes on")
            return False
        return True


_ERROR = "error"


class ChiefCheckpointManager(CheckpointManager):
    """The keeper of the worker that writes; hands what it loads to the others."""

    def __init__(self, folder: RunDir, log: Callable[[str], None], peers: Peers) -> None:
        """Keep a run in a claimed folder."""
        super().__init__(folder, log)
        self._peers = peers

    def read(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Read the newest whole checkpoint; all workers do so at the same moment.

        Raises:
            UserError: no checkpoint is whole.
        """
        try:
            found = super().read()
        except UserError as error:
            self._peers.from_chief(_packed({}, {_ERROR: str(error)}))
            raise
        self._peers.from_chief(b"" if found is None else _packed(*found))
        return found


class FollowerCheckpointManager(CheckpointManager):
    """The keeper of a worker that writes nothing."""

    def __init__(self, folder: RunDir, log: Callable[[str], None], peers: Peers) -> None:
        """Keep nothing; `folder` is a throwaway one."""
        super().__init__(folder, log)
        self._peers = peers

    def open_log(self, step: int) -> None:
        """Take up a log that is never written."""
        self.log = StepLog(self._path / "iterations.bin", 0)

    def save(self, variables: Mapping[str, keras.Variable], state: TrainState) -> None:
        """Note that the chief saves at this step."""
        self.saved_step = state.step

    def read(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Take what the chief has read.

        Raises:
            UserError: the chief found no checkpoint whole.
        """
        payload = self._peers.from_chief(b"")
        if not payload:
            return None
        arrays, state = read_archive(io.BytesIO(payload))
        if _ERROR in state:
            raise UserError(state[_ERROR])
        return arrays, state


def make_checkpoint_manager(folder: RunDir, log: Callable[[str], None], peers: Peers) -> CheckpointManager:
    """The keeper of this worker."""
    if peers.workers == 1:
        return CheckpointManager(folder, log)
    return (ChiefCheckpointManager if peers.is_chief else FollowerCheckpointManager)(folder, log, peers)


def _packed(arrays: Arrays, state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    write_archive(file, arrays, state)
    return file.getvalue()
