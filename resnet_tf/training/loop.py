"""The training loop: steps, evaluations, checkpoints, and nothing that depends on when it was stopped."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.training import checkpoint
from resnet_tf.training.history import IterationLog, write_rows
from resnet_tf.training.run_folder import RunFolder
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.signals import StopRequest
from resnet_tf.training.steps import TrainStep

BLOCK = 25  # iterations between two looks at the results, so that the device need not wait for the host
Validate = Callable[[], tuple[float, float]]


class BatchSource(Protocol):
    """What the loop asks of the data."""

    steps_per_epoch: int
    batch_size: int

    def iterate(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches of the steps start … stop - 1, in order."""
        ...


class Reporter(Protocol):
    """Where the loop's progress goes."""

    def progress(self, step: int, results: np.ndarray, learning_rate: float) -> None:
        """Results (n, 3) of the updates before `step`."""
        ...

    def evaluated(self, row: dict[str, Any]) -> None:
        """A new row of the metrics."""
        ...

    def say(self, line: str) -> None:
        """A line for the terminal and the log."""
        ...


class Stopped(Exception):  # noqa: N818
    """A signal asked for a stop, and the run is saved.

    Attributes:
        signal: the signal's number.
        step: updates done.
    """

    def __init__(self, signal: int, step: int) -> None:
        """Note the signal and the updates done."""
        super().__init__(f"stopped by signal {signal} after {step} iterations")
        self.signal = signal
        self.step = step


class Diverged(UserError):  # noqa: N818
    """The loss became infinite or NaN."""


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often the loop looks up from its steps.

    Attributes:
        evaluate: iterations between evaluations; None means once an epoch.
        checkpoint_iterations: iterations between checkpoints, or None.
        checkpoint_seconds: seconds between checkpoints, or None.
    """

    evaluate: int | None = None
    checkpoint_iterations: int | None = None
    checkpoint_seconds: float | None = 300.0


class Training:
    """One run: a model that goes from its first to its last update in a run folder.

    Everything that the future depends on is in the variables or in `_state`, and goes into
    each checkpoint; so a run that is stopped anywhere and resumed ends with the same bits.
    """

    def __init__(
        self,
        *,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        step: TrainStep,
        schedule: Schedule,
        batches: BatchSource,
        validate: Validate | None,
        save_best: Callable[[dict[str, Any]], None],
        folder: RunFolder,
        intervals: Intervals,
        reporter: Reporter,
        rollbacks: int = 0,
    ) -> None:
        """Wire a run; `resume` and `run` do the work.

        Args:
            model: stock model; what is saved.
            optimizer: built over its trainable variables.
            step: compiled update.
            schedule: learning rates of the whole run.
            batches: data by step.
            validate: returns loss and accuracy on the validation part; None where there is none.
            save_best: writes the model that has the best validation accuracy so far; may raise OSError.
            folder: claimed run folder.
            intervals: when to evaluate and to save.
            reporter: where progress goes.
            rollbacks: how often a diverged run goes back to its last checkpoint with half the learning rate.
        """
        self.model = model
        self.optimizer = optimizer
        self.step_function = step
        self.schedule = schedule
        self.batches = batches
        self.validate = validate
        self.save_best = save_best
        self.folder = folder
        self.intervals = intervals
        self.reporter = reporter
        self.rollbacks = rollbacks
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._since = _Since()
        self._rolled_back = 0
        self._seconds = 0.0
        self._log: IterationLog | None = None
        self._saved_step = -1
        self._saved_at = time.monotonic()

    @property
    def iterations(self) -> int:
        """Updates of the whole run."""
        return self.schedule.iterations

    def resume(self) -> bool:
        """Take up the newest whole checkpoint of the folder, if there is one.

        Returns:
            Whether there was one.

        Raises:
            UserError: no checkpoint is whole, or it belongs to another network.
        """
        found = checkpoint.load_newest(self.folder.checkpoints)
        if found is None:
            return False
        arrays, state, damaged = found
        for path in damaged:
            self.reporter.say(f"checkpoint {path.name} is damaged; going back to iteration {state['step']}")
        self._assign(arrays)
        self.step, self.rows, self.best = state["step"], state["rows"], state["best"]
        self.schedule.state = state["schedule"]
        self._since = _Since(**state["since"])
        self._seconds, self._rolled_back = state["seconds"], state["rolled_back"]
        self._saved_step = self.step
        return True

    def run(self) -> None:
        """Train to the last update, from wherever the run is.

        Raises:
            Stopped: a signal came; the run is saved.
            Diverged: the loss is not finite, and there is no rollback left.
            UserError: the log of the iterations is shorter than the checkpoint says.
        """
        with StopRequest() as stop:
            while self.step < self.iterations:
                try:
                    self._open_log()
                    self._run_until_stop(stop)
                except Diverged as error:
                    if self._rolled_back >= self.rollbacks:
                        raise
                    self._roll_back(str(error))

    def _run_until_stop(self, stop: StopRequest) -> None:
        evaluate_every = self.intervals.evaluate or self.batches.steps_per_epoch
        pending: list[Any] = []
        started = time.monotonic()
        batches = self.batches.iterate(self.step, self.iterations)
        try:
            for images, labels in batches:
                rate = self.schedule.learning_rate(self.step)
                pending.append(self.step_function(images, labels, np.float32(rate)))
                self.step += 1
                evaluate = self.step % evaluate_every == 0 or self.step == self.iterations
                save = self._checkpoint_due()
                if not (evaluate or save or stop.signal or self.schedule.needs_batches or len(pending) == BLOCK):
                    continue
                self._take(np.stack([np.asarray(result) for result in pending]), rate)
                pending.clear()
                if evaluate or save or stop.signal:
                    self._count_time(started)
                    self._check_variables()
                    if evaluate:
                        self._evaluate()
                    if save or stop.signal or (evaluate and self.intervals.checkpoint_iterations is None):
                        self._save()
                    started = time.monotonic()
                if stop.signal and self.step < self.iterations:
                    raise Stopped(stop.signal, self.step)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _take(self, results: np.ndarray, rate: float) -> None:
        """Take in the results (n, 3) of the last n updates."""
        finite = np.isfinite(results[:, 0])
        if not finite.all():
            first = int(np.argmin(finite))
            raise self._diverged(f"the loss is {results[first, 0]}", self.step - len(results) + first)
        assert self._log is not None
        self._log.append(results)
        self._since.add(results)
        if self.schedule.needs_batches:
            for loss, _, accuracy in results.tolist():
                self.schedule.observe_batch(loss, 1.0 - accuracy)
        self.reporter.progress(self.step, results, rate)

    def _check_variables(self) -> None:
        """A finite loss can come before the update that breaks the weights: look before they are saved."""
        if not all(np.isfinite(np.asarray(v)).all() for v in self.model.variables):
            raise self._diverged("a variable of the model is not finite", self.step - 1)

    def _diverged(self, what: str, update: int) -> Diverged:
        last = f"the last checkpoint is of iteration {self._saved_step}" if self._saved_step >= 0 else "no checkpoint"
        return Diverged(
            f"{what} at iteration {update}, learning rate {self.schedule.learning_rate(update):g} ({last}); "
            "use a lower --learning-rate, a --warmup or --on-nan rollback"
        )

    def _evaluate(self) -> None:
        began = time.monotonic()
        row: dict[str, Any] = {
            "iteration": self.step,
            "epoch": round(self.step / self.batches.steps_per_epoch, 4),
            "learning_rate": self.schedule.learning_rate(self.step - 1),
            **self._since.means(),
            "validation_loss": None,
            "validation_accuracy": None,
            "images_per_second": round(self._since.updates * self.batches.batch_size / self._since.seconds, 1),
        }
        if self.validate is not None:
            row["validation_loss"], row["validation_accuracy"] = self.validate()
            self.schedule.observe_validation(row["validation_accuracy"])
        took = time.monotonic() - began
        self._seconds += took
        row["evaluation_seconds"] = round(took, 3)
        row["seconds"] = round(self._seconds, 1)
        self.rows.append(row)
        self._since = _Since()
        accuracy = row["validation_accuracy"]
        if accuracy is not None and (self.best is None or accuracy > self.best["validation_accuracy"]):
            best = {"iteration": self.step, "validation_accuracy": accuracy}
            if self._guarded("best.keras", lambda: self.save_best(best)):
                self.best = best
        self._guarded("metrics.csv", lambda: write_rows(self.folder.path, self.rows))
        self.reporter.evaluated(row)

    def _checkpoint_due(self) -> bool:
        every, seconds = self.intervals.checkpoint_iterations, self.intervals.checkpoint_seconds
        if every is not None:
            return self.step % every == 0 or self.step == self.iterations
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _save(self) -> None:
        """Write a checkpoint; where the disk refuses, say so and go on: the next one tries again."""
        assert self._log is not None
        self._saved_at = time.monotonic()
        state = {
            "step": self.step,
            "rows": self.rows,
            "best": self.best,
            "schedule": self.schedule.state,
            "since": dataclasses.asdict(self._since),
            "seconds": self._seconds,
            "rolled_back": self._rolled_back,
        }
        log = self._log

        def write() -> None:
            log.flush()
            checkpoint.save(self.folder.checkpoints, self.step, self._arrays(), state)
            self._saved_step = self.step

        self._guarded(f"the checkpoint of iteration {self.step}", write)

    def _guarded(self, what: str, write: Callable[[], None]) -> bool:
        """Whether the disk took it."""
        try:
            write()
        except OSError as error:
            reason = error.strerror or str(error)
            self.reporter.say(f"could not write {what}: {reason}; the previous one is untouched, training goes on")
            return False
        return True

    def _roll_back(self, why: str) -> None:
        self.reporter.say(why)
        rolled_back = self._rolled_back + 1
        if not self.resume():
            raise Diverged(f"{why}; there is no checkpoint to roll back to")
        self.schedule.state["factor"] *= 0.5 ** (rolled_back - self._rolled_back)
        self._rolled_back = rolled_back
        self.reporter.say(
            f"rolled back to iteration {self.step} with the learning rate times {self.schedule.state['factor']:g}"
        )

    def _open_log(self) -> None:
        try:
            self._log = IterationLog(self.folder.path / "iterations.bin", self.step)
        except OSError as error:
            raise UserError(f"{error}; start anew with --overwrite") from error

    def _count_time(self, started: float) -> None:
        took = time.monotonic() - started
        self._since.seconds += took
        self._seconds += took

    def _arrays(self) -> dict[str, np.ndarray]:
        return {key: np.asarray(variable) for key, variable in self._variables().items()}

    def _variables(self) -> dict[str, keras.Variable]:
        model = {f"model/{v.path}": v for v in self.model.variables}
        return model | {f"optimizer/{v.path}": v for v in self.optimizer.variables}

    def _assign(self, arrays: dict[str, np.ndarray]) -> None:
        variables = self._variables()
        if variables.keys() != arrays.keys():
            raise UserError(
                f"the checkpoints in {self.folder.checkpoints} belong to another network or optimizer; "
                "start anew with --overwrite, or give another --run-dir"
            )
        for key, variable in variables.items():
            variable.assign(arrays[key])


@dataclasses.dataclass
class _Since:
    """Sums over the updates since the last evaluation."""

    loss: float = 0.0
    l2: float = 0.0
    accuracy: float = 0.0
    updates: int = 0
    seconds: float = 0.0

    def add(self, results: np.ndarray) -> None:
        # One by one, so that the sums do not depend on where the blocks end.
        for loss, l2, accuracy in results.tolist():
            self.loss += loss
            self.l2 += l2
            self.accuracy += accuracy
        self.updates += len(results)

    def means(self) -> dict[str, float]:
        return {
            "train_loss": self.loss / self.updates,
            "train_l2": self.l2 / self.updates,
            "train_accuracy": self.accuracy / self.updates,
        }
