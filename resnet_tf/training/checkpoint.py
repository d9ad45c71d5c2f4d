"""Save and restore the training state."""

import contextlib
import dataclasses
import functools
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from resnet_tf.errors import UserError, short
from resnet_tf.files import COUNT, MAX_JSON, Between, misfit, parse_json, replacing, sha256_of, write_text
from resnet_tf.models.layers import renumbered
from resnet_tf.training.distribute import Distribution
from resnet_tf.training.logs import RECORD, History, StepLog, check_history
from resnet_tf.training.run_dir import RunDir

_STATE = "state.json"
_NONE, _UNREADABLE = -1, -2  # in place of the step of a checkpoint
_ANEW = "start anew with overwrite=True, or give another run_dir=…"

_TOTALS = {**dict.fromkeys(("loss", "l2", "accuracy", "seconds"), float), "updates": COUNT}
# What `TrainState.as_json` makes, but for the evaluations.
_SHAPE = {
    **dict.fromkeys(("step", "rolled_back"), COUNT),
    "seconds": Between(0, 1e12),
    "best": ({"iteration": COUNT, "validation_accuracy": Between(0, 1)}, None),
    "since": _TOTALS,
    "schedule": {
        **dict.fromkeys(("factor", "loss_sum", "error_sum"), float),
        **dict.fromkeys(("checks_without_gain", "count"), COUNT),
        "warm": bool,
        "best": float | None,
    },
}

Arrays = dict[str, np.ndarray]
Check = Callable[[Arrays, dict[str, Any]], None]


def save(folder: Path, step: int, arrays: Arrays, state: dict[str, Any]) -> None:
    """Write the checkpoint of `step`, variables by key and a JSON-able rest, and remove all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.npz"
    with replacing(path) as temporary:
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        np.savez(temporary, **{**arrays, _STATE: text})  # type: ignore[arg-type]
        write_text(path.with_suffix(".sha256"), sha256_of(temporary) + "\n")
    for old in _checkpoints(folder)[:-2]:
        with contextlib.suppress(OSError):
            old.with_suffix(".sha256").unlink(missing_ok=True)
            old.unlink()


def load_newest(folder: Path, check: Check | None = None) -> tuple[Arrays, dict[str, Any], list[Path]] | None:
    """Variables and state of the newest whole checkpoint, and newer, damaged files; None where the folder has none.

    One that `check` raises for is damaged, too.
    """
    damaged: list[Path] = []
    reason = ""
    for path in reversed(_checkpoints(folder)):
        try:
            arrays, state = _load(path)
            if check is not None:
                check(arrays, state)
            return arrays, state, damaged
        except Exception as error:  # readers of damaged files raise whatever they stumble over
            damaged.append(path)
            reason = reason or short(error)
    if damaged:
        raise UserError(f"no checkpoint in {folder} is whole ({damaged[0].name}: {reason}); {_ANEW}")
    return None


def _load(path: Path) -> tuple[Arrays, dict[str, Any]]:
    if path.with_suffix(".sha256").read_text(encoding="ascii").strip() != sha256_of(path):
        raise ValueError("it does not have the checksum beside it")
    with zipfile.ZipFile(path) as entries:
        # What is not compressed cannot be larger than the file, whatever it says.
        if sum(entry.file_size for entry in entries.infolist()) > path.stat().st_size:
            raise ValueError("it is compressed, as no checkpoint is")
        if entries.getinfo(f"{_STATE}.npy").file_size > MAX_JSON:
            raise ValueError("its state is too long")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    state = parse_json(arrays.pop(_STATE).tobytes())
    if not isinstance(state, dict) or state.get("step") != int(path.stem.removeprefix("step-")):
        raise ValueError("its state is of another iteration")
    return arrays, state


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.npz") if re.fullmatch(r"step-\d{9,}\.npz", p.name))


@dataclasses.dataclass
class MetricTotals:
    """Sums over the steps since the last evaluation."""

    loss: float = 0.0
    l2: float = 0.0
    accuracy: float = 0.0
    steps: int = 0
    seconds: float = 0.0

    def add(self, results: np.ndarray) -> None:
        """Add the results (n, 3) of n steps, one by one: the sums must not depend on where the blocks end."""
        for loss, l2, accuracy in results.tolist():
            self.loss += loss
            self.l2 += l2
            self.accuracy += accuracy
        self.steps += len(results)

    def means(self) -> dict[str, float]:
        """Means over the steps, by the names of the columns of the history."""
        sums = {"train_loss": self.loss, "train_l2": self.l2, "train_accuracy": self.accuracy}
        return {name: total / self.steps for name, total in sums.items()}


_NAMES_ON_DISK = {"history": "rows", "totals": "since", "rollbacks": "rolled_back"}


@dataclasses.dataclass
class TrainState:
    """Everything beside the variables that the future of a run depends on."""

    step: int = 0
    history: History = dataclasses.field(default_factory=list)
    best: dict[str, Any] | None = None  # iteration and validation accuracy of the best model so far
    schedule: dict[str, Any] = dataclasses.field(default_factory=dict)
    totals: MetricTotals = dataclasses.field(default_factory=MetricTotals)
    seconds: float = 0.0  # that the training has taken
    rollbacks: int = 0  # how often it went back to a checkpoint

    def as_json(self) -> dict[str, Any]:
        """The state as it is on the disk, where some fields keep their first names."""
        state = {_NAMES_ON_DISK.get(name, name): value for name, value in dataclasses.asdict(self).items()}
        state["since"]["updates"] = state["since"].pop("steps")
        return state

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> "TrainState":
        fields = {field.name: state[_NAMES_ON_DISK.get(field.name, field.name)] for field in dataclasses.fields(cls)}
        totals = {"steps" if key == "updates" else key: state["since"][key] for key in _TOTALS}
        return cls(**{**fields, "totals": MetricTotals(**totals)})


class CheckpointManager:
    """Writes what a run makes, going on where the disk refuses; writes nothing where the run directory is read-only."""

    def __init__(self, run_dir: RunDir, log: Callable[[str], None], distribution: Distribution) -> None:
        self.saved_step = _NONE
        self._run_dir, self._log, self._distribution = run_dir, log, distribution
        self._step_log: StepLog | None = None

    def open_step_log(self, step: int) -> None:
        if self._run_dir.read_only:
            return
        try:
            self._step_log = StepLog(self._run_dir.path / "iterations.bin", step)
        except OSError as error:
            raise UserError(f"{error}; start anew with overwrite=True") from error

    def log_steps(self, results: np.ndarray) -> None:
        """Log the results (n, 3) of some steps; each checkpoint brings the log to the disk."""
        if self._step_log is not None:
            self._step_log.append(results)

    def save(self, variables: Mapping[str, keras.Variable], state: TrainState) -> None:
        """Write a checkpoint and the log of the steps; where the disk refuses, the next one tries again."""

        def write() -> None:
            assert self._step_log is not None
            self._step_log.flush()
            arrays = {key: np.asarray(variable) for key, variable in variables.items()}
            save(self._run_dir.checkpoints, state.step, arrays, state.as_json())

        if self.try_write(f"the checkpoint of iteration {state.step}", write):
            self.saved_step = state.step

    def load(self, variables: Mapping[str, keras.Variable]) -> TrainState | None:
        """Give the variables the values of the newest whole checkpoint; None where there is none at all.

        All workers call this at the same moment. Raises UserError where none is whole, it is of other variables, or
        the workers do not find the same one.
        """
        found = self._read(functools.partial(self._check, variables))
        if found is None:
            return None
        arrays, state, damaged = found
        for path in damaged:
            self._log(f"checkpoint {path.name} is damaged; going back to iteration {state['step']}")
            if not self._run_dir.read_only:
                # Aside, so that it does not count among the two that are kept.
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(".damaged"))
        arrays = renumbered(arrays, list(variables))
        for key, variable in variables.items():
            variable.assign(arrays[key])
        self.saved_step = state["step"]
        return TrainState.from_json(state)

    def _check(self, variables: Mapping[str, keras.Variable], arrays: Arrays, state: dict[str, Any]) -> None:
        """Raise ValueError for a checkpoint that this run cannot go on from."""
        expected = {key: (tuple(variable.shape), variable.dtype) for key, variable in variables.items()}
        found = renumbered(arrays, list(variables))
        if {key: (array.shape, array.dtype.name) for key, array in found.items()} != expected:
            raise ValueError("it belongs to another network or optimizer")
        if (fault := misfit(state, _SHAPE, "state")) is not None:
            raise ValueError(f"its state {fault}")
        check_history(state.get("rows"))
        log = self._run_dir.path / "iterations.bin"
        if state["step"] * RECORD.itemsize > (log.stat().st_size if log.is_file() else 0):
            raise ValueError(f"{log.name} holds fewer than the {state['step']} records that it counts on")

    def _read(self, check: Check) -> tuple[Arrays, dict[str, Any], list[Path]] | None:
        """What `load_newest` returns, once it is known that all workers have read the same step."""
        self._distribution.gather([0.0])  # the chief has made the folder ready, and its last checkpoint is there
        found, failure = None, None
        try:
            found = load_newest(self._run_dir.checkpoints, check)
        except UserError as error:
            failure = error
        step = _UNREADABLE if failure else _NONE if found is None else found[1]["step"]
        steps = self._distribution.gather([step])[:, 0].astype(int).tolist()
        if failure is not None:
            raise failure
        if len(set(steps)) > 1:
            words = {_NONE: "no checkpoint", _UNREADABLE: "none that is whole"}
            seen = ", ".join(f"worker {k}: {words.get(s, f'iteration {s}')}" for k, s in enumerate(steps))
            raise UserError(
                f"the workers find different checkpoints in {self._run_dir.checkpoints} ({seen}); "
                "give a run_dir=… that all of them share"
            )
        return found

    def describe_saved(self) -> str:
        """Where the last checkpoint is, in words."""
        return f"the last checkpoint is of iteration {self.saved_step}" if self.saved_step >= 0 else "no checkpoint"

    def try_write(self, what: str, write: Callable[[], None]) -> bool:
        """Whether the disk took what `write` writes; on other workers than the chief, as if it had."""
        if self._run_dir.read_only:
            return True
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            self._log(f"could not write {what}: {reason}; the previous one is untouched, training goes on")
            return False
        return True
