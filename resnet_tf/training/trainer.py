"""The training loop: steps, evaluations, checkpoints, and nothing that depends on when it was stopped."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from resnet_tf.data.loader import TrainLoader
from resnet_tf.data.tf_batches import DeviceCachedLoader, PrefetchToDevice
from resnet_tf.errors import UserError
from resnet_tf.models.layers import by_path, describe_trainable, unfreeze
from resnet_tf.process import StopRequest
from resnet_tf.training.checkpoint import CheckpointManager, MetricTotals, TrainState
from resnet_tf.training.distribute import DecisionSync, Distribution, Evaluator
from resnet_tf.training.logs import COLUMNS, History, TrainLogger, write_history
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.step import StepFunctions, group_batches, run_group


class Stopped(KeyboardInterrupt):
    """Ctrl-C or another signal, `signal`, asked for a stop after `step` steps, and the run is saved."""

    def __init__(self, signal: int, step: int) -> None:
        super().__init__(f"stopped by signal {signal} after {step} iterations")
        self.signal, self.step = signal, step


class Diverged(UserError):  # noqa: N818
    """The loss became infinite or NaN."""


@dataclass(eq=False)
class UnfreezeAt:
    """Switches a training to the whole network at step `step`, and takes its functions from `make_functions` anew."""

    model: keras.Model
    step: int
    make_functions: Callable[[], StepFunctions]
    log: Callable[[str], None]
    frozen: Sequence[keras.layers.Layer]
    train_bn: bool

    def __post_init__(self) -> None:
        self._is_unfrozen = False
        self._functions: dict[bool, StepFunctions] = {}

    def functions(self, step: int) -> StepFunctions:
        """One step and several in one call, as they are at step `step`."""
        if (step >= self.step) != self._is_unfrozen:
            self._is_unfrozen = not self._is_unfrozen
            if self._is_unfrozen:
                unfreeze(self.frozen, self.train_bn)
            else:  # a rollback to before the switch
                for layer in self.frozen:
                    layer.trainable = False
            self.log(describe_trainable(self.model, self.frozen))
        if self._is_unfrozen not in self._functions:
            self._functions[self._is_unfrozen] = self.make_functions()
        return self._functions[self._is_unfrozen]


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains a model from its first to its last step in a run directory.

    Everything that the future depends on is in the variables or in `TrainState`, and goes into
    each checkpoint; so a run that is stopped anywhere and resumed ends with the same bits.
    """

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    step_functions: StepFunctions
    steps_per_execution: int = 1
    schedule: Schedule
    loader: TrainLoader | PrefetchToDevice | DeviceCachedLoader
    evaluate: Evaluator | None  # on the validation images, where there are any
    evaluate_train: Evaluator | None = None  # on the training images in inference mode
    save_best: Callable[[dict[str, Any]], None]  # gets `best`; may raise OSError
    run_dir: RunDir
    evaluate_every: int | None = None  # steps; None is once an epoch
    checkpoint_every: int | None = None  # steps; None is by the clock and at each evaluation
    checkpoint_seconds: float | None = 300.0  # where `checkpoint_every` is None; None is no clock
    logger: TrainLogger
    rollbacks: int = 0  # how often a diverged run goes back to its last checkpoint with half the learning rate
    patience: int = 0  # evaluations without a gain of validation accuracy that end the run; 0 is never
    on_evaluation: Callable[[History], None] | None = None  # what it raises ends the run, which is saved by then
    unfreeze: UnfreezeAt | None = None  # gives the step functions in place of `step_functions`
    ema_model: keras.Model | None = None
    distribution: Distribution = field(default_factory=Distribution)

    def __post_init__(self) -> None:
        self.step = 0
        self.history: History = []
        self.best: dict[str, Any] | None = None
        self._totals, self._rollbacks_done, self._seconds = MetricTotals(), 0, 0.0
        self._checkpoints = CheckpointManager(self.run_dir, self.logger.log, self.distribution)
        self._decisions = DecisionSync(self.distribution)
        self._saved_at = time.monotonic()

    @property
    def iterations(self) -> int:
        """Steps of the whole run, unless it ends early."""
        return self.schedule.iterations

    @property
    def should_stop_early(self) -> bool:
        """Whether the validation accuracy has not risen for `patience` evaluations since everything trains."""
        start = self.schedule.unfreeze_at or 0
        accuracies = [metrics["validation_accuracy"] for metrics in self.history if metrics["iteration"] > start]
        if not self.patience or len(accuracies) <= self.patience or accuracies[-1] is None:
            return False
        return max(accuracies[-self.patience :]) <= max(accuracies[: -self.patience])

    @property
    def ended(self) -> bool:
        """Whether there is no step left to make."""
        return self.step >= self.iterations or self.should_stop_early

    def resume(self) -> bool:
        """Take up the newest whole checkpoint of the run directory; return whether there was one."""
        state = self._checkpoints.load(self._variables())
        if state is None:
            return False
        self.step, self.history, self.best = state.step, state.history, state.best
        self.schedule.state = state.schedule
        self._totals, self._seconds, self._rollbacks_done = state.totals, state.seconds, state.rollbacks
        return True

    def fit(self) -> None:
        """Train to the last step; raises Stopped on a signal, once the run is saved, and Diverged."""
        with StopRequest() as stop:
            while not self.ended:
                try:
                    self._checkpoints.open_step_log(self.step)
                    self._fit_from_here(stop)
                except Diverged as error:
                    if self._rollbacks_done >= self.rollbacks:
                        raise
                    self._roll_back(str(error))

    def _fit_from_here(self, stop: StopRequest) -> None:
        pending: list[Any] = []
        flushed = self.step
        started = time.monotonic()
        batches = self.loader.iterate(self.step, self.iterations)
        try:
            for group in group_batches(batches, self.step, self.steps_per_execution, self._is_boundary):
                if self.unfreeze is not None:
                    self.step_functions = self.unfreeze.functions(self.step)
                learning_rates = [self.schedule.learning_rate(self.step + k) for k in range(len(group))]
                pending.append(run_group(self.step_functions, group, np.asarray(learning_rates, np.float32)))
                self.step += len(group)
                evaluate, by_count = self._evaluation_due(self.step), self._checkpoint_due(self.step)
                by_clock = self._clock_due()
                known_to_all = evaluate or by_count or self.schedule.needs_batches
                if not self._decisions.due(self.step - flushed, known_to_all, bool(stop.signal) or by_clock):
                    continue
                signal, save = self._decisions.sync_decisions(self.step - flushed, stop.signal, by_count or by_clock)
                self.flush_metrics(np.concatenate([np.asarray(results) for results in pending]), learning_rates[-1])
                pending.clear()
                flushed = self.step
                if evaluate or save:
                    self._count_time(started)
                    self.evaluate_and_save(evaluate, save, learning_rates[-1])
                    if self.should_stop_early:
                        self.logger.log(f"ending early: no better validation in {self.patience} evaluations")
                        return
                    started = time.monotonic()
                # One that came meanwhile waits for the next decision where others must hear of it first.
                signal = signal or (stop.signal if self._decisions.alone else None)
                if signal and self.step < self.iterations:
                    if self._checkpoints.saved_step < self.step:
                        self._count_time(started)
                        self.evaluate_and_save(False, True, learning_rates[-1])
                    raise Stopped(signal, self.step)
                self._decisions.restart_clock()
        finally:
            batches.close()  # type: ignore[union-attr]

    def flush_metrics(self, results: np.ndarray, learning_rate: float) -> None:
        """Take in the results (n, 3) of the last n steps."""
        finite = np.isfinite(results[:, 0])
        if not finite.all():
            first = int(np.argmin(finite))
            raise self._diverged(f"the loss is {results[first, 0]}", self.step - len(results) + first)
        self._checkpoints.log_steps(results)
        self._totals.add(results)
        if self.schedule.needs_batches:
            for loss, _, accuracy in results.tolist():
                self.schedule.observe_batch(loss, 1.0 - accuracy)
        self.logger.progress(self.step, results, learning_rate)

    def evaluate_and_save(self, evaluate: bool, save: bool, learning_rate: float) -> None:
        """Do what is due between two steps; `learning_rate` was that of the one before."""
        # A finite loss can come before the step that breaks the weights: look before they are saved.
        if not all(np.isfinite(np.asarray(v)).all() for v in self.model.variables):
            raise self._diverged("a variable of the model is not finite", self.step - 1)
        if evaluate:
            self._evaluate(learning_rate)
        if save or (evaluate and (self.checkpoint_every is None or self.should_stop_early)):
            self._save()
        if evaluate and self.on_evaluation is not None:
            began = time.monotonic()
            try:
                self.on_evaluation(self.history)
            except Exception:  # it ends the run here, due or not
                if self._checkpoints.saved_step < self.step:
                    self._save()
                raise
            self._seconds += time.monotonic() - began

    def _evaluate(self, learning_rate: float) -> None:
        began = time.monotonic()
        metrics: dict[str, Any] = dict.fromkeys(COLUMNS) | {
            "iteration": self.step,
            "epoch": round(self.step / self.loader.steps_per_epoch, 4),
            "learning_rate": learning_rate,
            **self._totals.means(),
            "images_per_second": round(self._totals.steps * self.loader.batch_size / self._totals.seconds, 1),
        }
        if self.evaluate is not None:
            metrics["validation_loss"], metrics["validation_accuracy"] = self.evaluate()
            self.schedule.observe_validation(metrics["validation_accuracy"])
        if self.evaluate_train is not None:
            metrics["train_eval_loss"], metrics["train_eval_accuracy"] = self.evaluate_train()
        took = time.monotonic() - began
        self._seconds += took
        metrics |= {"evaluation_seconds": round(took, 3), "seconds": round(self._seconds, 1)}
        self.history.append(metrics)
        self._totals = MetricTotals()
        accuracy = metrics["validation_accuracy"]
        if accuracy is not None and (self.best is None or accuracy > self.best["validation_accuracy"]):
            best = {"iteration": self.step, "validation_accuracy": accuracy}
            if self._checkpoints.try_write("best.keras", lambda: self.save_best(best)):
                self.best = best
        self._checkpoints.try_write("metrics.csv", lambda: write_history(self.run_dir.path, self.history))
        self.logger.evaluated(metrics)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        progress = self._totals, self._seconds, self._rollbacks_done
        state = TrainState(self.step, self.history, self.best, self.schedule.state, *progress)
        self._checkpoints.save(self._variables(), state)

    def _roll_back(self, why: str) -> None:
        self.logger.log(why)
        rollbacks, best = self._rollbacks_done + 1, self.best
        if not self.resume():
            raise Diverged(f"{why}; there is no checkpoint to roll back to")
        self.schedule.state["factor"] *= 0.5 ** (rollbacks - self._rollbacks_done)
        self._rollbacks_done = rollbacks
        self.best = best  # best.keras is on the disk, whatever came after it
        factor = self.schedule.state["factor"]
        self.logger.log(f"rolled back to iteration {self.step} with the learning rate times {factor:g}")

    def _diverged(self, what: str, step: int) -> Diverged:
        saved, learning_rate = self._checkpoints.describe_saved(), self.schedule.learning_rate(step)
        return Diverged(
            f"{what} at iteration {step}, learning rate {learning_rate:g} ({saved}); "
            "use a lower learning_rate=…, a warmup=… or on_nan='rollback'"
        )

    def _evaluation_due(self, step: int) -> bool:
        return step % (self.evaluate_every or self.loader.steps_per_epoch) == 0 or step == self.iterations

    def _checkpoint_due(self, step: int) -> bool:
        return self.checkpoint_every is not None and (step % self.checkpoint_every == 0 or step == self.iterations)

    def _clock_due(self) -> bool:
        seconds = None if self.checkpoint_every is not None else self.checkpoint_seconds
        return seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _is_boundary(self, step: int) -> bool:
        """Whether no call may reach over this number of steps done."""
        unfreezing = self.unfreeze is not None and step == self.unfreeze.step
        return unfreezing or self._evaluation_due(step) or self._checkpoint_due(step) or self.schedule.needs_batches

    def _count_time(self, started: float) -> None:
        took = time.monotonic() - started
        self._totals.seconds += took
        self._seconds += took

    def _variables(self) -> dict[str, keras.Variable]:
        owners = {"model": self.model, "optimizer": self.optimizer, "average": self.ema_model}
        named = {key: by_path(owner.variables) for key, owner in owners.items() if owner is not None}
        return {f"{key}/{path}": v for key, variables in named.items() for path, v in variables.items()}
