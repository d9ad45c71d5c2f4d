"""The training loop: steps, evaluations, checkpoints, and nothing that depends on when it was stopped."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.training import checkpoint
from resnet_tf.training.contracts import BatchSource, Diverged, Intervals, Reporter, Stopped, Sums, Switch, Validate
from resnet_tf.training.history import IterationLog, write_rows
from resnet_tf.training.run_folder import RunFolder
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.signals import StopRequest
from resnet_tf.training.steps import TrainStep

BLOCK = 25  # iterations between two looks at the results, so that the device need not wait for the host


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
        patience: int = 0,
        steps: TrainStep | None = None,
        steps_per_call: int = 1,
        evaluate_train: Validate | None = None,
        on_evaluation: Callable[[list[dict[str, Any]]], None] | None = None,
        switch: Switch | None = None,
        average: keras.Model | None = None,
    ) -> None:
        """Wire a run; `resume` and `run` do the work.

        Args:
            model: stock model.
            optimizer: built over its trainable variables.
            step: compiled update.
            schedule: learning rates of the whole run.
            batches: data by step.
            validate: returns loss and accuracy on the validation part; None where there is none.
            save_best: writes the model that has the best validation accuracy so far; may raise OSError.
            folder: claimed run folder.
            intervals: when to evaluate and to save.
            reporter: where progress goes.
            patience: evaluations without a gain of validation accuracy after which the run ends; 0 for never.
            steps: several updates in one call; needed where `steps_per_call` is above 1.
            steps_per_call: updates in one call.
            rollbacks: how often a diverged run goes back to its last checkpoint with half the learning rate.
            evaluate_train: returns loss and accuracy on the training part in inference mode; None leaves it out.
            on_evaluation: gets all rows after each evaluation, when they and the checkpoint are on the disk;
                what it raises ends the run.
            switch: gives other updates than `step` and `steps` on either side of its iteration.
            average: the model that holds the moving averages of the weights, where the steps move one.
        """
        self.model = model
        self.optimizer = optimizer
        self.step_function = step
        self.steps_function = steps or step
        self.steps_per_call = steps_per_call
        self.schedule = schedule
        self.batches = batches
        self.validate = validate
        self.save_best = save_best
        self.folder = folder
        self.intervals = intervals
        self.reporter = reporter
        self.rollbacks = rollbacks
        self.patience = patience
        self.evaluate_train = evaluate_train
        self.on_evaluation = on_evaluation
        self.switch = switch
        self.average = average
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._since = Sums()
        self._rolled_back = 0
        self._seconds = 0.0
        self._log: IterationLog | None = None
        self._saved_step = -1
        self._saved_at = time.monotonic()

    @property
    def iterations(self) -> int:
        """Updates of the whole run, unless it ends early."""
        return self.schedule.iterations

    @property
    def exhausted(self) -> bool:
        """Whether the validation accuracy has not risen for as many evaluations as it may."""
        accuracies = [row["validation_accuracy"] for row in self.rows]
        if not self.patience or len(accuracies) <= self.patience or accuracies[-1] is None:
            return False
        return max(accuracies[-self.patience :]) <= max(accuracies[: -self.patience])

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
            # Aside, so that it does not count among the two that are kept.
            with contextlib.suppress(OSError):
                path.rename(path.with_suffix(".damaged"))
        self._assign(arrays)
        self.step, self.rows, self.best = state["step"], state["rows"], state["best"]
        self.schedule.state = state["schedule"]
        self._since = Sums(**state["since"])
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
            while self.step < self.iterations and not self.exhausted:
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
        looked = self.step
        started = time.monotonic()
        batches = self.batches.iterate(self.step, self.iterations)
        try:
            for group in self._groups(batches, evaluate_every):
                rates = [self.schedule.learning_rate(self.step + k) for k in range(len(group))]
                pending.append(self._update(group, np.asarray(rates, np.float32)))
                self.step += len(group)
                evaluate = self.step % evaluate_every == 0 or self.step == self.iterations
                save = self._checkpoint_due()
                full = self.step - looked >= BLOCK
                if not (evaluate or save or stop.signal or self.schedule.needs_batches or full):
                    continue
                self._take(np.concatenate([np.asarray(results) for results in pending]), rates[-1])
                pending.clear()
                looked = self.step
                if evaluate or save:
                    self._count_time(started)
                    self._pause(evaluate, save, rates[-1])
                    if self.exhausted:
                        self.reporter.say(f"ending early: no better validation in {self.patience} evaluations")
                        return
                    started = time.monotonic()
                if stop.signal and self.step < self.iterations:
                    if self._saved_step < self.step:
                        self._count_time(started)
                        self._pause(False, True, rates[-1])
                    raise Stopped(stop.signal, self.step)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _groups(
        self, batches: Iterator[tuple[np.ndarray, np.ndarray]], evaluate_every: int
    ) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
        """Batches of one call each; a group never reaches over an evaluation or a checkpoint."""
        group = []
        for batch in batches:
            group.append(batch)
            ahead = self.step + len(group)
            every = self.intervals.checkpoint_iterations
            boundary = ahead % evaluate_every == 0 or ahead == self.iterations or (every and ahead % every == 0)
            boundary = boundary or (self.switch is not None and ahead == self.switch.at)
            if boundary or len(group) == self.steps_per_call or self.schedule.needs_batches:
                yield group
                group = []

    def _update(self, group: list[tuple[np.ndarray, np.ndarray]], rates: np.ndarray) -> Any:
        """Results (n, 3) of n updates."""
        if self.switch is not None:
            self.step_function, self.steps_function = self.switch.functions(self.step)
        if len(group) == 1:
            return self.step_function(*group[0], rates[0])[None]
        images, labels = (np.stack(part) for part in zip(*group, strict=True))
        return self.steps_function(images, labels, rates)

    def _pause(self, evaluate: bool, save: bool, rate: float) -> None:
        """What happens between two updates; `rate` was the learning rate of the one before."""
        self._check_variables()
        if evaluate:
            self._evaluate(rate)
        if save or (evaluate and (self.intervals.checkpoint_iterations is None or self.exhausted)):
            self._save()
        if evaluate and self.on_evaluation is not None:
            began = time.monotonic()
            self.on_evaluation(self.rows)
            self._seconds += time.monotonic() - began

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

    def _evaluate(self, rate: float) -> None:
        began = time.monotonic()
        row: dict[str, Any] = {
            "iteration": self.step,
            "epoch": round(self.step / self.batches.steps_per_epoch, 4),
            "learning_rate": rate,
            **self._since.means(),
            "validation_loss": None,
            "validation_accuracy": None,
            "train_eval_loss": None,
            "train_eval_accuracy": None,
            "images_per_second": round(self._since.updates * self.batches.batch_size / self._since.seconds, 1),
        }
        if self.validate is not None:
            row["validation_loss"], row["validation_accuracy"] = self.validate()
            self.schedule.observe_validation(row["validation_accuracy"])
        if self.evaluate_train is not None:
            row["train_eval_loss"], row["train_eval_accuracy"] = self.evaluate_train()
        took = time.monotonic() - began
        self._seconds += took
        row["evaluation_seconds"] = round(took, 3)
        row["seconds"] = round(self._seconds, 1)
        self.rows.append(row)
        self._since = Sums()
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
        rolled_back, best = self._rolled_back + 1, self.best
        if not self.resume():
            raise Diverged(f"{why}; there is no checkpoint to roll back to")
        self.schedule.state["factor"] *= 0.5 ** (rolled_back - self._rolled_back)
        self._rolled_back = rolled_back
        self.best = best  # best.keras is on the disk, whatever came after it
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
        variables = {f"model/{v.path}": v for v in self.model.variables}
        variables |= {f"optimizer/{v.path}": v for v in self.optimizer.variables}
        if self.average is not None:
            variables |= {f"average/{v.path}": v for v in self.average.variables}
        return variables

    def _assign(self, arrays: dict[str, np.ndarray]) -> None:
        variables = self._variables()
        if variables.keys() != arrays.keys():
            raise UserError(
                f"the checkpoints in {self.folder.checkpoints} belong to another network or optimizer; "
                "start anew with --overwrite, or give another --run-dir"
            )
        for key, variable in variables.items():
            variable.assign(arrays[key])
