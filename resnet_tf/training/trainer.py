"""The training loop: steps, evaluations, checkpoints, and nothing that depends on when it was stopped."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from resnet_tf.training.checkpoint import TrainState, make_checkpoint_manager, run_variables
from resnet_tf.training.distribute import DecisionSync, Distribution
from resnet_tf.training.logs import write_rows
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.runtime import StopRequest
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.state import Diverged, Intervals, Loader, Logger, MetricTotals, Peers, Stopped, Validate
from resnet_tf.training.step import StepRunner, Switch, TrainStep


class Trainer:
    """One run: a model that goes from its first to its last update in a run folder.

    Everything that the future depends on is in the variables or in `TrainState`, and goes into
    each checkpoint; so a run that is stopped anywhere and resumed ends with the same bits.
    """

    def __init__(
        self,
        *,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        step: TrainStep,
        schedule: Schedule,
        batches: Loader,
        validate: Validate | None,
        save_best: Callable[[dict[str, Any]], None],
        folder: RunDir,
        intervals: Intervals,
        reporter: Logger,
        rollbacks: int = 0,
        patience: int = 0,
        steps: TrainStep | None = None,
        steps_per_call: int = 1,
        evaluate_train: Validate | None = None,
        on_evaluation: Callable[[list[dict[str, Any]]], None] | None = None,
        switch: Switch | None = None,
        average: keras.Model | None = None,
        peers: Peers | None = None,
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
            peers: the processes that share the run; None where there is one.
        """
        peers = peers or Distribution()
        self.model = model
        self.optimizer = optimizer
        self.updates = StepRunner(step, steps, steps_per_call, switch)
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
        self.average = average
        self.step = 0
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._since = MetricTotals()
        self._rolled_back = 0
        self._seconds = 0.0
        self._keeper = make_checkpoint_manager(folder, reporter.log, peers)
        self._agreement = DecisionSync(peers)
        self._saved_at = time.monotonic()

    @property
    def iterations(self) -> int:
        """Updates of the whole run, unless it ends early."""
        return self.schedule.iterations

    @property
    def exhausted(self) -> bool:
        """Whether the validation accuracy has not risen for as many evaluations as it may.

        Where the training has two phases, that of the second: the first has its end.
        """
        start = self.schedule.switch_at or 0
        accuracies = [row["validation_accuracy"] for row in self.rows if row["iteration"] > start]
        if not self.patience or len(accuracies) <= self.patience or accuracies[-1] is None:
            return False
        return max(accuracies[-self.patience :]) <= max(accuracies[: -self.patience])

    @property
    def ended(self) -> bool:
        """Whether there is no update left to make."""
        return self.step >= self.iterations or self.exhausted

    def resume(self) -> bool:
        """Take up the newest whole checkpoint of the folder, if there is one.

        Returns:
            Whether there was one.

        Raises:
            UserError: no checkpoint is whole, or it belongs to another network.
        """
        state = self._keeper.load(self._variables())
        if state is None:
            return False
        self.step, self.rows, self.best = state.step, state.rows, state.best
        self.schedule.state = state.schedule
        self._since, self._seconds, self._rolled_back = state.since, state.seconds, state.rolled_back
        return True

    def run(self) -> None:
        """Train to the last update, from wherever the run is.

        Raises:
            Stopped: a signal came; the run is saved.
            Diverged: the loss is not finite, and there is no rollback left.
            UserError: the log of the iterations is shorter than the checkpoint says.
        """
        with StopRequest() as stop:
            while not self.ended:
                try:
                    self._keeper.open_log(self.step)
                    self._run_until_stop(stop)
                except Diverged as error:
                    if self._rolled_back >= self.rollbacks:
                        raise
                    self._roll_back(str(error))

    def _run_until_stop(self, stop: StopRequest) -> None:
        pending: list[Any] = []
        looked = self.step
        started = time.monotonic()
        batches = self.batches.iterate(self.step, self.iterations)
        try:
            for group in self.updates.groups(batches, self.step, self._is_boundary):
                rates = [self.schedule.learning_rate(self.step + k) for k in range(len(group))]
                pending.append(self.updates.run(self.step, group, np.asarray(rates, np.float32)))
                self.step += len(group)
                evaluate, by_count = self._evaluation_due(self.step), self._checkpoint_due()
                certain = evaluate or by_count or self.schedule.needs_batches
                by_clock = self._clock_due()
                if not self._agreement.due(self.step - looked, certain, bool(stop.signal) or by_clock):
                    continue
                signal, save = self._agreement.reach(self.step - looked, stop.signal, by_count or by_clock)
                self._take(np.concatenate([np.asarray(results) for results in pending]), rates[-1])
                pending.clear()
                looked = self.step
                if evaluate or save:
                    self._count_time(started)
                    self._pause(evaluate, save, rates[-1])
                    if self.exhausted:
                        self.reporter.log(f"ending early: no better validation in {self.patience} evaluations")
                        return
                    started = time.monotonic()
                # One that came during the pause waits for the next look where others must hear of it first.
                signal = signal or (stop.signal if self._agreement.alone else None)
                if signal and self.step < self.iterations:
                    if self._keeper.saved_step < self.step:
                        self._count_time(started)
                        self._pause(False, True, rates[-1])
                    raise Stopped(signal, self.step)
                self._agreement.go_on()
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _evaluation_due(self, step: int) -> bool:
        return step % (self.intervals.evaluate or self.batches.steps_per_epoch) == 0 or step == self.iterations

    def _is_boundary(self, step: int) -> bool:
        """Whether the loop must look up after `step` updates, so that no call may reach over them."""
        every = self.intervals.checkpoint_iterations
        saving = every is not None and step % every == 0
        return self._evaluation_due(step) or saving or self.schedule.needs_batches

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
        self._keeper.log.append(results)
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
        rate = self.schedule.learning_rate(update)
        return Diverged(
            f"{what} at iteration {update}, learning rate {rate:g} ({self._keeper.saved}); "
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
        self._since = MetricTotals()
        accuracy = row["validation_accuracy"]
        if accuracy is not None and (self.best is None or accuracy > self.best["validation_accuracy"]):
            best = {"iteration": self.step, "validation_accuracy": accuracy}
            if self._keeper.try_write("best.keras", lambda: self.save_best(best)):
                self.best = best
        self._keeper.try_write("metrics.csv", lambda: write_rows(self.folder.path, self.rows))
        self.reporter.evaluated(row)

    def _checkpoint_due(self) -> bool:
        every = self.intervals.checkpoint_iterations
        return every is not None and (self.step % every == 0 or self.step == self.iterations)

    def _clock_due(self) -> bool:
        seconds = None if self.intervals.checkpoint_iterations is not None else self.intervals.checkpoint_seconds
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        state = TrainState(
            self.step, self.rows, self.best, self.schedule.state, self._since, self._seconds, self._rolled_back
        )
        self._keeper.save(self._variables(), state)

    def _roll_back(self, why: str) -> None:
        self.reporter.log(why)
        rolled_back, best = self._rolled_back + 1, self.best
        if not self.resume():
            raise Diverged(f"{why}; there is no checkpoint to roll back to")
        self.schedule.state["factor"] *= 0.5 ** (rolled_back - self._rolled_back)
        self._rolled_back = rolled_back
        self.best = best  # best.keras is on the disk, whatever came after it
        self.reporter.log(
            f"rolled back to iteration {self.step} with the learning rate times {self.schedule.state['factor']:g}"
        )

    def _count_time(self, started: float) -> None:
        took = time.monotonic() - started
        self._since.seconds += took
        self._seconds += took

    def _variables(self) -> dict[str, keras.Variable]:
        return run_variables(self.model, self.optimizer, self.average)
