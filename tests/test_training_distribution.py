"""Replicas, workers and what they agree on; what needs several devices runs in processes of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet_tf import runtime
from resnet_tf.cli import launch
from resnet_tf.errors import UserError
from resnet_tf.process import PEER_TIMEOUT, WORKERS_HERE, read_cluster_spec
from resnet_tf.recipes import Recipe
from resnet_tf.training import checkpoint
from resnet_tf.training.checkpoint import CheckpointManager, TrainState
from resnet_tf.training.distribute import BLOCK, DecisionSync, Distribution, make_distribution
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.step import disable_optimizer_all_reduce
from tests.distributed.harness import alone, farthest, first_loss, together

TINY = ("--device", "cpu", "--precision", "float32", "--threads", "1", "--model", "resnet8_v2", "--batch-size", "32")


@pytest.fixture(scope="module")
def twins(python):
    result = python("import runpy; runpy.run_module('tests.distributed.twins', run_name='__main__')")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_synchronized_replicas_train_as_one_device_does(twins):
    assert twins["replicas"] == 2
    assert twins["sync"] <= 1e-5
    for recipe in ("nesterov, clipped, averaged", "adamw, accumulated"):
        assert twins[recipe] <= 2e-6, recipe
    assert twins["float16"] <= 1e-3


def test_replicas_with_statistics_of_their_own(twins):
    assert twins["first"][0] == pytest.approx(np.mean(twins["halves"]), abs=1e-6)
    assert twins["agree"]
    assert twins["several"] == 0.0
    assert twins["forward"] <= 1e-6


def test_synchronized_statistics_bear_a_large_mean(twins):
    """Mean 100, deviation 0.14: in float32, E[x²] - E[x]² has an error as large as the variance."""
    errors = twins["large_mean"]
    assert errors["mean"] < 1e-6
    assert errors["variance"] < 1e-5
    assert max(errors["output"], errors["x"], errors["gamma"], errors["beta"]) < 2e-3


def test_two_workers_do_what_two_mirrored_replicas_do(tmp_path, small_folder):
    flags = (*TINY, *small_folder, "--validation-size", "51", "--learning-rate", "0.01")
    flags = (*flags, "--iterations", "6", "--eval-every", "6")
    mirrored = alone(tmp_path / "mirrored", *flags, "--strategy", "mirrored", "--replicas", "2")
    workers = together(2, tmp_path / "workers", *flags)
    assert farthest(mirrored, workers) <= 1e-5
    assert first_loss(mirrored) == pytest.approx(first_loss(workers), abs=1e-6)
    one, two = (json.loads((folder / "report.json").read_text()) for folder in (mirrored, workers))
    assert one["validation_images"] == 51  # an odd number, of which every worker and replica has its share
    assert two["training"]["last_validation_accuracy"] == one["training"]["last_validation_accuracy"]
    assert two["test"]["images"] == one["test"]["images"]
    settings = json.loads((workers / "settings.json").read_text())
    assert not {"strategy", "replicas", "sync_bn"} & settings.keys()


def cluster(monkeypatch, **config):
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    return read_cluster_spec()


def test_a_cluster_has_the_chief_first(monkeypatch):
    jobs = {"chief": ["a:1"], "worker": ["b:2", "c:3"]}
    assert cluster(monkeypatch, cluster=jobs, task={"type": "worker", "index": 1}).index == 2
    chief = cluster(monkeypatch, cluster=jobs, task={"type": "chief", "index": 0})
    assert (chief.addresses, chief.index) == (("a:1", "b:2", "c:3"), 0)
    assert cluster(monkeypatch, cluster={}, task={}) is None
    monkeypatch.delenv("TF_CONFIG")
    assert read_cluster_spec() is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    ],
)
def test_a_cluster_that_is_none(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match="TF_CONFIG"):
        read_cluster_spec()


def test_a_missing_worker_ends_the_job(command, tmp_path):
    config = {"cluster": {"worker": ["127.0.0.1:9", "127.0.0.1:10"]}, "task": {"type": "worker", "index": 1}}
    flags = (*TINY, "--dataset", "shapes", "--run-dir", tmp_path / "run")
    result = command("train", *flags, TF_CONFIG=json.dumps(config), **{PEER_TIMEOUT: "0.5"})
    assert result.returncode == -signal.SIGKILL  # nothing gentler ends what waits in C++
    assert "resnet-tf: error: worker 0 (127.0.0.1:9) did not answer within 0.5 s" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("strategy", "device", "replicas", "message"),
    [
        ("mirrored", "cpu", None, "add replicas=N"),
        ("mirrored", "gpu:0", None, "one device"),
        ("none", "cpu", 2, "replicas=… says"),
        ("multiworker", "cpu", None, "needs TF_CONFIG"),
        ("mirrored", "cpu", 3, "in this process any more"),
    ],
)
def test_strategies_that_do_not_fit(monkeypatch, strategy, device, replicas, message):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    tf.zeros(1)  # from here on this process keeps its devices
    with pytest.raises(UserError, match=message):
        make_distribution(strategy, device, replicas)


def test_auto_is_one_device_where_there_is_no_other(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    replicas = make_distribution("auto", "cpu")
    assert (replicas.strategy, replicas.count, replicas.is_chief) == (None, 1, True)
    assert replicas.gather([1.0, 2.0]).tolist() == [[1.0, 2.0]]


def test_a_batch_that_cannot_be_shared():
    replicas = Distribution()
    replicas.count = 3
    replicas.check_batch(12, 2)
    with pytest.raises(UserError, match="batch_size=16 cannot be shared evenly by 3 replicas times accumulate=2"):
        replicas.check_batch(16, 2)


class Workers:
    """Three workers, of which this is the second; what the others say is given."""

    workers, is_chief = 3, False

    def __init__(self, chief, last):
        self.others = chief, last

    def gather(self, numbers):
        return np.array([self.others[0], numbers, self.others[1]], np.float64)


def test_workers_stop_together_and_save_when_the_chief_does():
    decisions = DecisionSync(Workers(chief=(0, 1, 7), last=(15, 0, 3)))
    assert decisions.due(1, known_to_all=False, known_here=False)  # nothing is known of the chief's pace yet
    assert decisions.sync_decisions(1, signal=None, save=False) == (15, True)
    assert not decisions.due(6, known_to_all=False, known_here=True)  # others would miss it
    assert decisions.due(7, known_to_all=False, known_here=False)
    assert decisions.due(1, known_to_all=True, known_here=False)
    quiet = DecisionSync(Workers(chief=(0, 0, 1), last=(0, 0, 1)))
    assert quiet.sync_decisions(1, signal=signal.SIGINT, save=True) == (signal.SIGINT, False)


def test_a_single_worker_asks_nobody():
    decisions = DecisionSync(Distribution())
    assert decisions.due(1, known_to_all=False, known_here=True)
    assert not decisions.due(BLOCK - 1, known_to_all=False, known_here=False)
    assert decisions.due(BLOCK, known_to_all=False, known_here=False)
    assert decisions.sync_decisions(1, None, True) == (None, True)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_only(path):
    folder = RunDir(path)
    folder.read_only = True  # as `train` says where it is not the chief
    return folder


def other_worker(path, chief, last):
    """The checkpoints of a worker that is not the chief; the others have loaded those of the steps given."""
    return CheckpointManager(read_only(path), print, Workers((chief,), (last,)))


def checkpoints_in(path, *steps):
    state = TrainState(schedule=Schedule(Recipe("", ""), 20).state).as_json()
    (path / "iterations.bin").write_bytes(bytes(12 * 10))
    for step in steps:
        checkpoint.save(path / "checkpoints", step, {"w": np.full(2, step, np.float32)}, {**state, "step": step})


def test_a_worker_reads_the_checkpoint_and_writes_nothing(tmp_path, capsys):
    checkpoints_in(tmp_path, 5, 10)
    (tmp_path / "checkpoints" / "step-000000010.npz").write_bytes(b"half of it")
    before, variable = content(tmp_path), keras.Variable([0.0, 0.0])
    checkpoints = other_worker(tmp_path, chief=5, last=5)
    assert checkpoints.load({"w": variable}).step == checkpoints.saved_step == 5
    assert np.asarray(variable).tolist() == [5, 5]
    assert "step-000000010.npz is damaged; going back to iteration 5" in capsys.readouterr().out
    checkpoints.open_step_log(5)
    checkpoints.log_steps(np.zeros((1, 3), np.float32))
    checkpoints.save({"w": variable}, TrainState(step=6))
    assert checkpoints.saved_step == 6  # as the chief, so that both decide alike
    assert checkpoints.try_write("a file", lambda: pytest.fail("it wrote"))
    run_dir = read_only(tmp_path)
    run_dir.lock()
    run_dir.create({"model": "resnet8_v1"})
    run_dir.log("a line")
    run_dir.release()
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("here", "chief", "seen"),
    [
        ((5,), 10, "worker 0: iteration 10, worker 1: iteration 5, worker 2: iteration 10"),
        ((), 10, "worker 0: iteration 10, worker 1: no checkpoint, worker 2: iteration 10"),
        ((5,), -1, "worker 0: no checkpoint, worker 1: iteration 5, worker 2: no checkpoint"),
        ((5,), -2, "worker 0: none that is whole, worker 1: iteration 5, worker 2: none that is whole"),
    ],
)
def test_workers_that_do_not_share_a_run_directory_are_told_so(tmp_path, here, chief, seen):
    checkpoints_in(tmp_path, *here)
    with pytest.raises(UserError, match=rf"different checkpoints in .*\({seen}\); give a run_dir=… that all"):
        other_worker(tmp_path, chief, chief).load({"w": keras.Variable([0.0, 0.0])})


def test_no_worker_goes_on_without_a_whole_checkpoint(tmp_path):
    checkpoints_in(tmp_path, 5)
    (tmp_path / "checkpoints" / "step-000000005.npz").write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        other_worker(tmp_path, -2, -2).load({})


def test_a_keras_that_sums_gradients_in_another_way_is_named():
    class Optimizer:
        inner_optimizer = object()

    with pytest.raises(UserError, match=r"Keras \d.* sums gradients over replicas in an unknown way"):
        disable_optimizer_all_reduce(Optimizer())


WORKER = """
import json, os, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
print("this is", index, flush=True)
"""


def launched(program, workers=2, during=None, grace=5.0):
    """Exit code of a group of workers that run a program text."""
    with contextlib.ExitStack() as stack:
        outputs = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(workers - 1))]
        group = stack.enter_context(launch.Group([sys.executable, "-c", WORKER + program], outputs, grace))
        if during is not None:
            during(group)
        return group.wait(), [process.returncode for process in group._workers]


def test_workers_that_do_well():
    program = (
        "assert len(json.loads(os.environ['TF_CONFIG'])['cluster']['worker']) == 3\n"
        "assert os.environ['RESNET_TF_WORKERS_HERE'] == '3'\n"
    )
    assert launched(program, workers=3) == (0, [0, 0, 0])


def test_workers_on_one_machine_share_its_cores_and_no_flag_says_so(monkeypatch):
    """A run that four of them began has its number of threads in its settings, and two go on with it."""
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8))
    monkeypatch.delenv(WORKERS_HERE, raising=False)
    assert runtime.default_threads() == 8
    for workers, threads in ((3, 2), (4, 2), (16, 1)):
        monkeypatch.setenv(WORKERS_HERE, str(workers))
        assert runtime.default_threads() == threads
    assert launch._shared(["train", "--seed", "3"]) == ["train", "--seed", "3", "--strategy", "multiworker"]


def test_a_dead_worker_takes_the_others_with_it(capfd):
    """The chief ignores SIGTERM, as TensorFlow does in C++; it is there before the other one dies."""
    path = f"/tmp/resnet-tf-test-{os.getpid()}"
    program = (
        f"path = {path!r}\n"
        "if index == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    open(path, 'w').close()\n"
        "    time.sleep(600)\n"
        "while not os.path.exists(path): time.sleep(0.01)\n"
        "os.remove(path)\n"
        "print('last words', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    code, codes = launched(program, grace=0.5)
    assert (code, codes) == (137, [-signal.SIGKILL, -signal.SIGKILL])
    error = capfd.readouterr().err
    assert "worker 1 was killed by signal 9 and the others were ended; the same command goes on" in error
    assert "last words" not in error


def test_an_error_of_one_worker_is_shown(capfd):
    code, codes = launched("if index == 1: sys.exit('no such thing')\ntime.sleep(600)")
    assert (code, codes) == (1, [-signal.SIGTERM, 1])
    assert "no such thing" in capfd.readouterr().err


def test_a_command_that_is_refused_is_not_to_be_repeated(capfd):
    code, codes = launched("if index == 1: sys.exit(2)\ntime.sleep(600)")
    assert (code, codes) == (2, [-signal.SIGTERM, 2])
    error = capfd.readouterr().err
    assert "worker 1 ended with code 2 and the others were ended\n" in error
    assert "goes on" not in error


def test_a_signal_reaches_all_and_nobody_is_blamed(capfd, tmp_path):
    program = (
        "class Stop(Exception): pass\n"
        "def stop(number, frame): raise Stop\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "try:\n"
        f"    open({str(tmp_path)!r} + f'/{{index}}', 'w').close()\n"
        "    while True: time.sleep(0.01)  # not one long nap: a signal just before it would not end it\n"
        "except Stop: time.sleep(index * 0.3); sys.exit(143)\n"
    )

    def terminate(group):
        while len(list(tmp_path.iterdir())) < 2:
            assert [process.poll() for process in group._workers] == [None, None]
        group._forward(signal.SIGTERM)

    code, codes = launched(program, workers=2, during=terminate)
    assert (code, codes) == (143, [143, 143])
    assert capfd.readouterr().err == ""


def test_workers_stop_when_the_launcher_is_killed():
    worker = (
        "import time\n"
        "from resnet_tf.process import stop_with_launcher\n"
        "stop_with_launcher()\n"
        "print('!', end='', flush=True)\n"
        "time.sleep(20)\n"
        "print('went on', flush=True)\n"
    )
    launcher = (
        "import sys\n"
        "from resnet_tf.cli import launch\n"
        f"with launch.Group([sys.executable, '-c', {worker!r}], [None, None]) as group: group.wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.read(2) == "!!"
        process.kill()
        assert process.stdout.read() == ""  # to the end of the last of them


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workers", "0", "--", "train"], "--workers 0 is out of range"),
        (["--workers", "2", "--", "evaluate"], "launch starts trainings"),
        (["--workers", "2"], "launch starts trainings"),
        (["--workers", "2", "--", "train", "--strategy=none"], "leave --strategy none out"),
        (["--workers", "2", "--", "train", "--strategy", "mirrored"], "leave --strategy mirrored out"),
        (["--workers", "2", "--", "train", "--model", "resnet21"], "'resnet21' is not known"),
    ],
)
def test_what_cannot_be_launched(argv, message):
    with pytest.raises(UserError, match=message):
        launch.main(argv)
