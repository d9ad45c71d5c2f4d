"""What a run is at one moment, and how it gets to the disk and back."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.training import checkpoint
from resnet_tf.training.contracts import Sums
from resnet_tf.training.history import IterationLog
from resnet_tf.training.run_folder import RunFolder

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass
class State:
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
    since: Sums
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


class Keeper:
    """Writes what a run makes; where the disk refuses, it says so, and the training goes on.

    Attributes:
        saved_step: updates done at the last checkpoint, -1 where there is none.
        log: of the iterations, from `open_log` on.
    """

    log: IterationLog

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Keep a run in a claimed folder; `say` gets lines for the user."""
        self.saved_step = -1
        self._path, self._checkpoints = folder.path, folder.checkpoints
        self._say = say

    def open_log(self, step: int) -> None:
        """Take up the log of the iterations after `step` updates.

        Raises:
            UserError: it is shorter than that, or cannot be opened.
        """
        try:
            self.log = IterationLog(self._path / "iterations.bin", step)
        except OSError as error:
            raise UserError(f"{error}; start anew with --overwrite") from error

    def save(self, variables: Mapping[str, keras.Variable], state: State) -> None:
        """Write a checkpoint, and the log as far as it goes; where the disk refuses, the next one tries again."""

        def write() -> None:
            self.log.flush()
            arrays = {key: np.asarray(variable) for key, variable in variables.items()}
            checkpoint.save(self._checkpoints, state.step, arrays, dataclasses.asdict(state))
            self.saved_step = state.step

        self.guarded(f"the checkpoint of iteration {state.step}", write)

    def read(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The newest whole checkpoint; None where the folder holds none at all.

        Raises:
            UserError: no checkpoint is whole.
        """
        found = checkpoint.load_newest(self._checkpoints)
        if found is None:
            return None
        arrays, state, damaged = found
        for path in damaged:
            self._say(f"checkpoint {path.name} is damaged; going back to iteration {state['step']}")
            # Aside, so that it does not count among the two that are kept.
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
        return arrays, state

    def load(self, variables: Mapping[str, keras.Variable]) -> State | None:
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
        return State(**{**state, "since": Sums(**state["since"])})

    @property
    def saved(self) -> str:
        """Where the last checkpoint is, in words."""
        return f"the last checkpoint is of iteration {self.saved_step}" if self.saved_step >= 0 else "no checkpoint"

    def guarded(self, what: str, write: Callable[[], None]) -> bool:
        """Whether the disk took what `write` writes."""
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            self._say(f"could not write {what}: {reason}; the previous one is untouched, training goes on")
            return False
        return True
