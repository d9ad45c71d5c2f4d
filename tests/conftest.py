"""What the tests share: a quiet TensorFlow with a fixed number of threads, tiny data, and ways to run the commands."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    if hasattr(config, "workerinput") or not getattr(config.option, "numprocesses", None):
        _prepare_tensorflow()  # not where other processes run the tests, which would wait for it
    config.addinivalue_line("markers", "pictures: matplotlib is there; elsewhere trainings go without, for speed")
    # Whoever starts the tests with nohup or from a script hands them signals that are ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # Keras 3.15 on NumPy 2.4 says this for every array that it hands over.
    config.addinivalue_line("filterwarnings", "ignore:__array__ implementation:DeprecationWarning")


def _prepare_tensorflow():
    from resnet_tf.process import load_tensorflow, prefer_onednn

    os.environ["KERAS_BACKEND"] = "tensorflow"
    prefer_onednn()  # as the commands that train
    load_tensorflow()

    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")


def pytest_collection_finish():
    """Collect garbage less often, and not in what was imported: it takes a twentieth of the time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Share the whole suite between two processes, as much of it runs on one core; files that are named stay in one."""
    whole = config.args_source is config.ArgsSource.TESTPATHS
    if whole and getattr(config.option, "numprocesses", 0) is None and "PYTEST_XDIST_WORKER" not in os.environ:
        config.option.numprocesses, config.option.dist = 2, "loadfile"
        # In the order of their names: by default, files of one long test come last, and a process waits for the other.
        config.option.loadscopereorder = False


@pytest.fixture(autouse=True)
def without_pictures(request, monkeypatch):
    """As after a plain install: drawing its curves takes more than a third of the time of a short training."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture(scope="session")
def shapes():
    """The built-in data in small: 200 training images of 16x16 pixels, 40 test images."""
    from resnet_tf.data.dataset import Dataset, Split
    from resnet_tf.data.shapes import load_shapes

    full = load_shapes(train_size=200, test_size=40)
    small = [Split(np.ascontiguousarray(part.images[:, ::2, ::2]), part.labels) for part in (full.train, full.test)]
    return Dataset(full.name, full.source, full.class_names, *small)


def write_tree(root, part, class_names):
    """A folder of images per class, as PNG files."""
    from resnet_tf.data.image_io import cv2

    for index, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
        folder = root / class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / f"{index:03d}.png"), image[..., ::-1])


@pytest.fixture
def small_folder(tmp_path, monkeypatch, shapes):
    """Flags that train on the small data from files, in any process: making the built-in data takes seconds."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name, part in (("train", shapes.train), ("test", shapes.test)):
        write_tree(tmp_path / "images" / name, part, shapes.class_names)
    return ("--dataset", f"folder:{tmp_path / 'images'}", "--input-size", "16")


@pytest.fixture
def small_data(monkeypatch, shapes):
    """Makes the built-in data small wherever they are asked for by name."""
    monkeypatch.setattr("resnet_tf.data.shapes.load_shapes", lambda: shapes)


TINY = ("--model", "resnet8_v2", "--dataset", "shapes", "--batch-size", "16", "--device", "cpu")


@pytest.fixture
def train(small_data):
    """Runs `train` in this process on the small data: 180 images in 11 batches of 16 an epoch, 20 for validation."""
    from resnet_tf.cli.train import main

    return lambda run_dir, *flags: main([*TINY, "--run-dir", str(run_dir), *flags])


def exit_code(argv):
    """What the shell gets from `resnet-tf`, whether the command or its parser ends it."""
    from resnet_tf.cli.main import main

    try:
        return main(list(argv))
    except SystemExit as end:
        return end.code


def stopping_after(monkeypatch, count, number=signal.SIGTERM):
    """A signal comes while update `count` of the process computes, whichever step computes it."""
    from resnet_tf import fitting

    make, left = fitting.make_train_step, [count]

    def make_stopping(*arguments, **options):
        step = make(*arguments, **options)

        def counting(images, labels, learning_rate):
            left[0] -= 1
            if not left[0]:
                signal.raise_signal(number)
            return step(images, labels, learning_rate)

        return counting

    monkeypatch.setattr(fitting, "make_train_step", make_stopping)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, shapes):
    """A folder with a run of 12 iterations that nobody changes, the flags that made it, and its report."""
    from resnet_tf.cli.train import main

    folder = tmp_path_factory.mktemp("runs") / "finished"
    argv = [*TINY, "--run-dir", str(folder), "--iterations", "12", "--eval-every", "5", "--precision", "float32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_tf.data.shapes.load_shapes", lambda: shapes)
        report = main(argv)
    return folder, argv, report


@pytest.fixture(scope="session")
def python():
    """Runs a program text in a fresh interpreter that finds the package, and returns what came of it."""

    def run(program, *arguments, **environment):
        return _run([sys.executable, "-c", program, *map(str, arguments)], environment)

    return run


@pytest.fixture(scope="session")
def command():
    """Runs `python -m resnet_tf …` in a fresh process and returns what came of it."""

    def run(*arguments, **environment):
        return _run([sys.executable, "-m", "resnet_tf", *map(str, arguments)], environment)

    return run


def _run(arguments, environment):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environment}
    return subprocess.run(arguments, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture
def sources():
    """For each layer of a model, the names of the layers that its inputs come from."""

    def of(model):
        return {
            operation.name: [
                tensor._keras_history.operation.name
                for node in operation._inbound_nodes
                for tensor in node.input_tensors
                if node.operation in model.operations
            ]
            for operation in model.operations
        }

    return of


@pytest.fixture
def channels_first():
    """Keras as it is under `"image_data_format": "channels_first"` in keras.json."""
    import keras

    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)
