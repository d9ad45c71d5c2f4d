"""The loop with a network of three weights and a step in plain Python, so that it can be stopped everywhere."""

import errno
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

from resnet_tf.errors import UserError
from resnet_tf.process import StopRequest
from resnet_tf.recipes import get_recipe, override
from resnet_tf.training import checkpoint
from resnet_tf.training.callbacks import StopTraining
from resnet_tf.training.logs import read_iterations
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.trainer import Diverged, Stopped, Trainer

ITERATIONS = 10
TIMES = ("images_per_second", "evaluation_seconds", "seconds")


class TrainLoader:
    """Four batches an epoch; the images are the step's own number."""

    steps_per_epoch = 4
    batch_size = 3

    def iterate(self, start, stop):
        for step in range(start, stop):
            yield np.full(3, step, np.float32), np.zeros(3, np.int32)


class Logger:
    def __init__(self):
        self.lines, self.history, self.steps = [], [], []

    def progress(self, step, results, learning_rate):
        self.steps.append(step)

    def evaluated(self, metrics):
        self.history.append(metrics)

    def log(self, line):
        self.lines.append(line)


def one_layer(name):
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(1, name=name)(inputs))


def every(evaluate, checkpoint):
    return {"evaluate_every": evaluate, "checkpoint_every": checkpoint}


class Run:
    """What a process has of a run: everything is built anew, only the folder stays."""

    def __init__(self, path, *, hooks=None, intervals=None, rollbacks=0, validate=True, **changes):
        keras.utils.set_random_seed(0)
        self.model, self.ema_model = one_layer("only"), one_layer("only")
        self.optimizer = keras.optimizers.SGD(0.1, momentum=0.9, name="sgd")
        self.optimizer.build(self.model.trainable_variables)
        self.hooks, self.logger, self.learning_rates, self.best = hooks or {}, Logger(), [], []
        self.averages = []
        recipe = override(get_recipe("he2015"), iterations=ITERATIONS, **changes)
        self.schedule = Schedule(recipe, recipe.length(12))
        self.training = Trainer(
            model=self.model,
            optimizer=self.optimizer,
            step_functions=(self.step, self.step),
            schedule=self.schedule,
            loader=TrainLoader(),
            evaluate=self.validation if validate else None,
            save_best=lambda best: self.best.append(dict(best)),
            run_dir=RunDir(path),
            **(every(3, 2) if intervals is None else intervals),
            logger=self.logger,
            rollbacks=rollbacks,
            ema_model=self.ema_model,
        )

    def step(self, images, labels, learning_rate):
        """Not commutative and dependent on data, rate and momentum, so that a wrong order or a lost slot shows."""
        done = int(images[0])
        self.learning_rates.append(float(learning_rate))
        self.averages.append((done, self.ema_model.get_weights()[0].tobytes()))
        self.optimizer.learning_rate = float(learning_rate)
        self.optimizer.apply([v * 0.5 + np.float32(done + 1) / 7 for v in self.model.trainable_variables])
        for average, variable in zip(self.ema_model.variables, self.model.variables, strict=True):
            average.assign(0.75 * average + 0.25 * variable)
        weights = float(np.sum(self.model.get_weights()[0]))
        result = np.array([2 + done / 10 + weights / 1_000, 0.25, 1 / (done + 2)], np.float32)
        hook = self.hooks.get(done)
        return result if hook is None else hook(self, result)

    def validation(self):
        weights = float(np.sum(self.model.get_weights()[0]))
        return 1.0 + weights, {3: 0.5, 4: 0.5, 6: 0.4, 8: 0.6, 9: 0.6, 10: 0.55}[int(self.optimizer.iterations)]

    def go(self):
        resumed = self.training.resume()
        self.training.fit()
        return resumed

    def all_variables(self):
        return [*self.model.variables, *self.optimizer.variables, *self.ema_model.variables]

    def outcome(self):
        """All that a finished run has, without the times."""
        log = read_iterations(self.training.run_dir.path / "iterations.bin")
        history = [{key: value for key, value in row.items() if key not in TIMES} for row in self.training.history]
        variables = [v.numpy().tobytes() for v in self.all_variables()]
        return variables, log.tobytes(), history, self.training.best, self.schedule.state


def folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def stop_here(run, result):
    signal.raise_signal(signal.SIGTERM)
    return result


def nan_here(run, result):
    return np.array([np.nan, 0, 0], np.float32)


def saved_steps(path):
    return sorted(int(p.stem.removeprefix("step-")) for p in (path / "checkpoints").glob("*.npz"))


@pytest.fixture(autouse=True)
def hang_ups_end_a_process():
    """As in a terminal; under nohup they are ignored, and so they would stay in the runs and processes below."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch):
    """Waiting for the disk is tested elsewhere."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def on_replace(monkeypatch):
    """Makes a function of its name run before a file of a run takes its place."""
    replace = os.replace

    def before_each(call):
        def replacing(source, target):
            call(target.name)
            replace(source, target)

        monkeypatch.setattr(os, "replace", replacing)

    return before_each


def step_of(name):
    """The step of a checkpoint by the name of its file, None for other files."""
    return int(name[len("step-") : -len(".npz")]) if name.startswith("step-") and name.endswith(".npz") else None


@pytest.fixture
def all_saves(on_replace):
    """The steps of all checkpoints, also of those that are removed again."""
    steps = []
    on_replace(lambda name: steps.append(step_of(name)) if step_of(name) else None)
    return steps


def test_a_whole_run(tmp_path, all_saves):
    run = Run(tmp_path)
    assert not run.go()
    assert run.training.step == int(run.optimizer.iterations) == ITERATIONS
    assert run.learning_rates == pytest.approx([0.1] * 5 + [0.01] * 3 + [0.001] * 2)
    assert all_saves == [2, 4, 6, 8, 10]
    history = run.training.history
    assert history == run.logger.history
    assert [row["iteration"] for row in history] == [3, 6, 9, 10]
    assert [row["epoch"] for row in history] == [0.75, 1.5, 2.25, 2.5]
    assert [row["learning_rate"] for row in history] == [0.1, 0.01, 0.001, 0.001]
    assert [row["train_accuracy"] for row in history] == pytest.approx(
        [np.mean([1 / (i + 2) for i in part]) for part in (range(3), range(3, 6), range(6, 9), [9])]
    )
    log = read_iterations(tmp_path / "iterations.bin")
    assert log["accuracy"].tolist() == pytest.approx([1 / (i + 2) for i in range(10)])
    assert [row["train_loss"] for row in history] == pytest.approx(
        [log["loss"][part].mean() for part in (slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10))]
    )
    assert {row["train_l2"] for row in history} == {0.25}
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize("error", [StopTraining, RuntimeError])
def test_a_callback_that_ends_the_run_leaves_a_checkpoint(tmp_path, error):
    def end(history):
        if len(history) == 2:
            raise error

    run = Run(tmp_path, intervals=every(3, 4))
    run.training.on_evaluation = end
    with pytest.raises(error):
        run.go()
    assert saved_steps(tmp_path) == [4, 6]
    again = Run(tmp_path, intervals=every(3, 4))
    assert again.training.resume()
    assert (again.training.step, again.training.history) == (6, run.training.history)


def test_the_best_is_saved_when_it_gets_better(tmp_path):
    run = Run(tmp_path)
    run.go()
    assert [row["validation_accuracy"] for row in run.training.history] == [0.5, 0.4, 0.6, 0.55]
    assert run.best == [{"iteration": 3, "validation_accuracy": 0.5}, {"iteration": 9, "validation_accuracy": 0.6}]
    assert run.training.best == run.best[-1]


def test_without_validation_its_fields_are_empty_and_there_is_no_best(tmp_path):
    run = Run(tmp_path, validate=False, validation_size=0)
    run.go()
    assert {row["validation_loss"] for row in run.training.history} == {None}
    assert {row["validation_accuracy"] for row in run.training.history} == {None}
    assert (run.best, run.training.best) == ([], None)


def test_an_evaluation_an_epoch_and_a_checkpoint_an_evaluation_are_the_default(tmp_path, all_saves):
    run = Run(tmp_path, intervals={})
    run.go()
    assert [row["iteration"] for row in run.training.history] == [4, 8, 10]
    assert all_saves == [4, 8, 10]


def test_checkpoints_by_the_clock(tmp_path, monkeypatch, all_saves):
    now = [0.0]

    def monotonic():
        now[0] += 1e-3
        return now[0]

    def minute(run, result):
        now[0] += 60
        return result

    monkeypatch.setattr("time.monotonic", monotonic)
    hooks = dict.fromkeys(range(ITERATIONS), minute)
    run = Run(tmp_path, hooks=hooks, intervals={"evaluate_every": 100, "checkpoint_seconds": 180})
    run.go()
    assert all_saves == [3, 6, 9, 10]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "plateau", "patience": 1},
        {"schedule": "plateau", "monitor": "minibatch-loss", "patience": 1},
        {"warmup": "error"},
    ],
    ids=["piecewise", "plateau", "minibatch", "warm-up"],
)
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 9])
def test_stopped_anywhere_it_ends_alike(tmp_path, monkeypatch, changes, stop):
    monkeypatch.setattr("resnet_tf.training.schedule.CHECK_EVERY", 3)
    whole = Run(folder(tmp_path / "whole"), **changes)
    whole.go()
    parts = Run(folder(tmp_path / "parts"), hooks={stop - 1: stop_here}, **changes)
    with pytest.raises(Stopped) as stopped:
        parts.go()
    assert (stopped.value.signal, stopped.value.step) == (signal.SIGTERM, stop)
    again = Run(tmp_path / "parts", **changes)
    assert again.go()
    assert parts.learning_rates + again.learning_rates == whole.learning_rates
    assert again.outcome() == whole.outcome()
    if changes:
        assert len(set(whole.learning_rates)) > 1


@pytest.mark.parametrize("killed", range(1, ITERATIONS))
def test_killed_anywhere_it_ends_alike(tmp_path, killed):
    """A kill leaves whatever the last checkpoint, the log and the metrics are; nothing may count twice."""

    class Killed(BaseException):
        pass

    def die(run, result):
        raise Killed

    whole = Run(folder(tmp_path / "whole"))
    whole.go()
    parts = Run(folder(tmp_path / "parts"), hooks={killed: die}, intervals=every(4, 3))
    with pytest.raises(Killed):
        parts.go()
    again = Run(tmp_path / "parts")
    assert again.go() == (killed >= 3)
    assert again.learning_rates == whole.learning_rates[killed // 3 * 3 :]
    if killed < 3:
        assert again.outcome() == whole.outcome()
    else:
        assert again.outcome()[:2] == whole.outcome()[:2]


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    Run(tmp_path).go()
    again = Run(tmp_path)
    assert again.go()
    assert (again.learning_rates, again.training.step) == ([], ITERATIONS)
    assert [row["iteration"] for row in again.training.history] == [3, 6, 9, 10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    def stop(run, result):
        signal.raise_signal(number)
        return result

    before = signal.getsignal(number)
    run = Run(tmp_path, hooks={4: stop}, intervals=every(100, 100))
    with pytest.raises(Stopped, match="after 5 iterations") as stopped:
        run.go()
    assert stopped.value.signal == number
    assert saved_steps(tmp_path) == [5]
    assert len(read_iterations(tmp_path / "iterations.bin")) == 5
    assert signal.getsignal(number) is before


def test_a_signal_during_an_evaluation_or_a_save(tmp_path, on_replace):
    run = Run(tmp_path, intervals=every(3, 100))
    run.logger.evaluated = lambda row: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped):
        run.go()
    assert saved_steps(tmp_path) == [3]
    again = Run(tmp_path, intervals=every(100, 7))
    on_replace(lambda name: signal.raise_signal(signal.SIGTERM) if step_of(name) else None)
    with pytest.raises(Stopped):
        again.go()
    assert saved_steps(tmp_path) == [3, 7]


def test_a_signal_in_the_last_step_does_not_stop_the_run(tmp_path):
    run = Run(tmp_path, hooks={ITERATIONS - 1: stop_here})
    run.go()
    assert run.training.step == ITERATIONS


def test_off_the_main_thread_a_run_takes_no_signals(tmp_path):
    run, before = Run(tmp_path), [signal.getsignal(number) for number in StopRequest.SIGNALS]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run.go).result()
    assert run.training.step == ITERATIONS
    assert [signal.getsignal(number) for number in StopRequest.SIGNALS] == before


def test_a_second_signal_ends_the_process_at_once(python):
    result = python(
        "import signal\n"
        "from resnet_tf.process import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print(stop.signal == signal.SIGTERM, flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "True\n")


def test_hang_ups_of_a_closing_terminal(python):
    program = (
        "import signal, sys\n"
        "from resnet_tf.process import StopRequest\n"
        "if sys.argv[1] == 'nohup': signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with StopRequest() as stop:\n"
        "    for _ in range(2): signal.raise_signal(signal.SIGHUP)\n"
        "    print(stop.signal == signal.SIGHUP)\n"
    )
    for how, printed in (("", "True\n"), ("nohup", "False\n")):
        result = python(program, how)
        assert (result.returncode, result.stdout) == (0, printed)


def assert_checkpoints_finite(path):
    for file in (path / "checkpoints").glob("*.npz"):
        with np.load(file) as archive:
            assert all(np.isfinite(archive[key]).all() for key in archive.files)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverging_loss_stops_the_run(tmp_path, value):
    def diverge(run, result):
        for variable in run.model.variables:
            variable.assign(variable * value)
        return np.array([value, 0, 0], np.float32)

    run = Run(tmp_path, hooks={6: diverge})
    with pytest.raises(Diverged, match=rf"the loss is {value} at iteration 6, learning rate 0.01 .*of iteration 6\)"):
        run.go()
    assert saved_steps(tmp_path) == [4, 6]
    assert_checkpoints_finite(tmp_path)
    assert np.isfinite(read_iterations(tmp_path / "iterations.bin")["loss"]).all()
    assert [row["iteration"] for row in run.training.history] == [3, 6]
    again = Run(tmp_path)  # with the cause fixed, it goes on
    assert again.go()
    assert again.training.step == ITERATIONS


def test_the_first_bad_iteration_of_a_block_is_named(tmp_path):
    run = Run(tmp_path, hooks={4: nan_here, 6: nan_here}, intervals=every(100, 100))
    with pytest.raises(Diverged, match=r"at iteration 4, learning rate 0.1 \(no checkpoint\)"):
        run.go()
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize("which", [0, 1])
def test_weights_that_broke_under_a_finite_loss_are_not_saved(tmp_path, which):
    def poison(run, result):
        run.model.variables[which].assign(run.model.variables[which] * np.nan)
        return result

    run = Run(tmp_path, hooks={5: poison})
    with pytest.raises(Diverged, match="a variable of the model is not finite at iteration 5"):
        run.go()
    assert saved_steps(tmp_path) == [2, 4]
    assert [row["iteration"] for row in run.training.history] == [3]
    assert_checkpoints_finite(tmp_path)


def failing(times, step=6):
    left = [times]

    def hook(run, result):
        left[0] -= 1
        return nan_here(run, result) if left[0] >= 0 else result

    return {step: hook}


def test_a_rollback_halves_the_learning_rate(tmp_path):
    run = Run(tmp_path, hooks=failing(1, 7), rollbacks=3)
    run.go()
    assert run.learning_rates == pytest.approx([0.1] * 5 + [0.01] * 3 + [0.005] * 2 + [0.0005] * 2)
    assert any("rolled back to iteration 6 with the learning rate times 0.5" in line for line in run.logger.lines)
    assert len(read_iterations(tmp_path / "iterations.bin")) == ITERATIONS
    assert [row["iteration"] for row in run.training.history] == [3, 6, 9, 10]


def test_a_rollback_takes_the_average_along(tmp_path):
    run = Run(tmp_path, hooks=failing(1), rollbacks=3)
    run.go()
    before, again = (value for step, value in run.averages if step == 6)
    assert before == again


def test_every_rollback_halves_again_and_the_fourth_gives_up(tmp_path):
    run = Run(folder(tmp_path / "three"), hooks=failing(3), rollbacks=3)
    run.go()
    assert run.learning_rates[-1] == pytest.approx(0.001 / 8)
    run = Run(folder(tmp_path / "four"), hooks=failing(4), rollbacks=3)
    with pytest.raises(Diverged, match=r"the loss is nan at iteration 6, learning rate 0\.00125"):
        run.go()
    assert saved_steps(tmp_path / "four") == [4, 6]


def test_rollbacks_are_counted_across_a_stop(tmp_path):
    hooks = failing(2, 5) | {8: stop_here}
    run = Run(tmp_path, hooks=hooks, rollbacks=3)
    with pytest.raises(Stopped):
        run.go()
    again = Run(tmp_path, hooks=failing(9, 9), rollbacks=3)
    with pytest.raises(Diverged):
        again.go()
    assert again.learning_rates == pytest.approx([0.001 / 4, 0.001 / 8])


def test_there_is_nothing_to_roll_back_to(tmp_path):
    run = Run(tmp_path, hooks={1: nan_here}, rollbacks=3, intervals=every(3, 4))
    with pytest.raises(Diverged, match="there is no checkpoint to roll back to"):
        run.go()


def test_a_full_disk_does_not_end_the_training(tmp_path, on_replace):
    whole = Run(folder(tmp_path / "whole"))
    whole.go()

    def full(name):
        if step_of(name) in (4, 6, 8):
            raise OSError(errno.ENOSPC, "No space left on device")

    on_replace(full)
    run = Run(folder(tmp_path / "full"), hooks={8: stop_here})
    with pytest.raises(Stopped):
        run.go()
    said = [line for line in run.logger.lines if "could not write the checkpoint" in line]
    assert [f"iteration {step}: No space left on device" in line for step, line in zip((4, 6, 8), said, strict=True)]
    assert saved_steps(tmp_path / "full") == [2, 9]
    again = Run(tmp_path / "full")
    again.go()
    assert again.outcome() == whole.outcome()


def test_a_disk_that_refuses_everything_but_the_checkpoints(tmp_path, on_replace):
    def refuse(best):
        raise OSError(errno.EROFS, "Read-only file system")

    whole = Run(folder(tmp_path / "whole"))
    whole.go()
    run = Run(folder(tmp_path / "full"))
    run.training.save_best = refuse
    on_replace(lambda name: refuse(name) if name.startswith("metrics") else None)
    run.go()
    assert any("could not write best.keras: Read-only file system" in line for line in run.logger.lines)
    assert any("could not write metrics.csv: Read-only file system" in line for line in run.logger.lines)
    assert run.outcome()[:3] == whole.outcome()[:3]


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path):
    whole = Run(folder(tmp_path / "whole"))
    whole.go()
    run = Run(folder(tmp_path / "damaged"), hooks={8: stop_here})
    with pytest.raises(Stopped):
        run.go()
    (tmp_path / "damaged" / "checkpoints" / "step-000000009.npz").write_bytes(b"PK")
    again = Run(tmp_path / "damaged")
    assert again.go()
    assert again.logger.lines == ["checkpoint step-000000009.npz is damaged; going back to iteration 8"]
    assert again.outcome() == whole.outcome()


def test_a_log_that_is_gone(tmp_path):
    run = Run(tmp_path, hooks={4: stop_here})
    with pytest.raises(Stopped):
        run.go()
    (tmp_path / "iterations.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"iterations\.bin holds fewer than the 5 records.*overwrite=True"):
        Run(tmp_path).go()


def test_checkpoints_of_another_network(tmp_path):
    Run(tmp_path).go()
    other = Run(tmp_path)
    other.training.model = one_layer("other")
    with pytest.raises(UserError, match=r"belongs to another network or optimizer.*overwrite=True.*run_dir=…"):
        other.training.resume()


def test_a_schedule_with_feedback_sees_each_result_before_the_next_rate(tmp_path, monkeypatch):
    monkeypatch.setattr("resnet_tf.training.schedule.CHECK_EVERY", 3)
    run = Run(tmp_path, intervals=every(3, 100), warmup="error")
    run.go()
    # The error is below 80 % in the second window of three: (1 - 1/2 … 1/4) is 64 % on average in the first.
    # The row of an evaluation at that very moment has the rate of the update before it.
    assert run.learning_rates == pytest.approx([0.01] * 3 + [0.1] * 2 + [0.01] * 3 + [0.001] * 2)
    assert [row["learning_rate"] for row in run.training.history] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_the_state_of_a_checkpoint_is_json(tmp_path):
    Run(tmp_path).go()
    state = checkpoint.load_newest(tmp_path / "checkpoints")[1]
    assert json.loads(json.dumps(state)) == state
    assert state["step"] == ITERATIONS


def test_it_ends_after_so_many_evaluations_without_a_gain(tmp_path):
    """Validation at 3, 6, 9 and 10: 0.5, 0.4, 0.6, 0.55."""
    ends = {}
    for patience in (0, 1, 2):
        run = Run(folder(tmp_path / str(patience)))
        run.training.patience = patience
        run.go()
        ends[patience] = run.training.step
        assert run.training.ended
    assert ends == {0: 10, 1: 6, 2: 10}
    # The first of two phases has its end: 0.4 at 6 is the first that counts.
    run = Run(folder(tmp_path / "phases"))
    run.training.patience, run.schedule.unfreeze_at = 1, 3
    run.go()
    assert run.training.step == 10
    # Started again, it is where it was.
    again = Run(tmp_path / "1")
    again.training.patience = 1
    assert again.go()
    assert (again.training.step, again.learning_rates) == (6, [])
    assert len(read_iterations(tmp_path / "1" / "iterations.bin")) == 6
