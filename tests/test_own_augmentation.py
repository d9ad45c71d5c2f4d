"""A user's own augmentation from the command line."""

import hashlib
import inspect
import json
import signal
import sys

import keras
import numpy as np
import pytest

from resnet_tf import fitting
from resnet_tf import train as train_in_python
from resnet_tf.cli.main import main as resnet_tf
from resnet_tf.config import make_config
from resnet_tf.data.loader import ArraySource, TrainLoader
from resnet_tf.data.transforms import CustomTransform
from resnet_tf.errors import UserError
from resnet_tf.training.logs import read_iterations
from tests.conftest import TINY, stopping_after
from tests.test_cli_own_images import run as run_on_files
from tests.test_cli_own_images import tree  # noqa: F401

SHIFT = """
import dataclasses
import numpy as np

@dataclasses.dataclass
class By:
    rows: int

def shift(image, rng):
    return np.roll(image[:16, :16], By(int(rng.integers(0, 16))).rows, axis=0)
"""
FLAGS = ("--iterations", "12", "--eval-every", "12", "--precision", "float32")


@pytest.fixture
def own(tmp_path):
    """Writes a file of functions and returns its name."""

    def write(text=SHIFT, name="mine.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def watching(monkeypatch, seen):
    make = fitting.make_train_step

    def make_watched(*arguments, **options):
        step = make(*arguments, **options)
        return lambda images, labels, rate: (seen.append(images), step(images, labels, rate))[1]

    monkeypatch.setattr(fitting, "make_train_step", make_watched)


def test_it_trains_on_what_the_function_makes_and_goes_on_bit_for_bit(tmp_path, monkeypatch, train, own, shapes):
    flags = (*FLAGS, "--augment", f"{own()}:shift")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    seen = []
    with monkeypatch.context() as patch:
        watching(patch, seen)
        train(whole, *flags)
    # Each image of a batch is a training image with its rows turned round; the seed's order apart.
    originals = {np.roll(image, k, axis=0).tobytes() for image in shapes.train.images for k in range(16)}
    assert {image.tobytes() for batch in seen for image in batch} <= originals
    assert not {image.tobytes() for image in seen[0]} <= {image.tobytes() for image in shapes.train.images}
    with monkeypatch.context() as patch:
        stopping_after(patch, 7)
        assert train(halves, *flags) == 128 + signal.SIGTERM
    train(halves, *flags)
    logs = [read_iterations(folder / "iterations.bin") for folder in (whole, halves)]
    np.testing.assert_array_equal(*logs)
    final = [keras.models.load_model(folder / "final.keras").get_weights() for folder in (whole, halves)]
    assert all(np.array_equal(a, b) for a, b in zip(*final, strict=True))


def test_a_function_that_has_changed_does_not_go_on_with_a_run(tmp_path, monkeypatch, train, own):
    flags = (*FLAGS, "--augment", f"{own()}:shift")
    stopping_after(monkeypatch, 2)
    train(tmp_path / "run", *flags)
    own(SHIFT.replace("axis=0", "axis=1"))
    with pytest.raises(UserError, match="other settings: augment_sha256 is "):
        train(tmp_path / "run", *flags)


def test_functions_of_modules_and_the_framing_of_files(tmp_path, monkeypatch, own, tree):  # noqa: F811
    text = SHIFT.replace("image[:16, :16]", "np.ascontiguousarray(image[:16, :16])")
    monkeypatch.syspath_prepend(own(text, "of_a_module.py").parent)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    run_on_files(tmp_path / "run", f"folder:{tree}", "--augment", "of_a_module:shift", "--iterations", "2")
    sys.modules.pop("of_a_module", None)
    sidecar = json.loads((tmp_path / "run" / "final.json").read_text())
    assert sidecar["preprocessing"]["framing"] == {"resize": 16, "height": 16, "width": 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def shift(image, rng:", "mine.py raised SyntaxError"),
        ("import nothing_of_the_kind", "mine.py raised ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("raise SystemExit(3)", "mine.py raised SystemExit: 3"),
        ("def other(image, rng): ...", "mine.py has no function 'shift'; it has other"),
        ("shift = 3", "mine.py has no function 'shift'; it has none"),
        ("def shift(image): ...", "the augmentation shift raised TypeError"),
        ("def shift(image, rng): raise KeyError('x')", "shift raised KeyError: 'x' ("),
        ("def shift(image, rng): return image[1:]", "returned uint8 (15, 16, 3); it must return uint8 (16, 16, 3)"),
        ("def shift(image, rng): return image / 2", "returned float64 (16, 16, 3); it must return uint8"),
        ("def shift(image, rng): return None", "returned NoneType"),
        (
            "import numpy as np\nby = iter(range(9))\ndef shift(image, rng): return np.roll(image, next(by), 0)",
            "made two different images of one",
        ),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line_before_anything_is_made(
    tmp_path, monkeypatch, small_data, own, capsys, text, message
):
    name = own(text)
    folder = tmp_path / "run"
    assert resnet_tf(["train", *TINY, *FLAGS, "--run-dir", str(folder), "--augment", f"{name}:shift"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.py:shift", "there is no file gone.py; name it as FILE.py:FUNCTION"),
        ("gone.module:shift", "Python finds no module 'gone.module'"),
        (":shift", "Python finds no module ''"),
        ("broken_package.module:shift", "importing it raised RuntimeError: not today"),
    ],
)
def test_names_of_nothing(tmp_path, monkeypatch, capsys, name, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "__init__.py").write_text("raise RuntimeError('not today')\n")
    assert resnet_tf(["train", *TINY, "--augment", name]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def roll(image, rng):
    return np.roll(image, rng.integers(0, 16), axis=0)


def test_a_function_from_python(tmp_path, shapes):
    options = {"iterations": 2, "batch_size": 16, "device": "cpu", "verbose": False}
    train_in_python("resnet8_v2", shapes, augment=roll, run_dir=tmp_path / "run", **options)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["augment"] == f"{__name__}:roll"
    assert settings["augment_sha256"] == hashlib.sha256(inspect.getsource(roll).encode()).hexdigest()
    with pytest.raises(UserError, match="other settings: augment is "):
        train_in_python("resnet8_v2", shapes, augment="none", run_dir=tmp_path / "run", **options)


def test_what_a_function_is_called_in_the_settings(own):
    name = f"{own()}:shift"
    settings = make_config(augment=name).settings()
    assert (settings["augment"], settings["augment_sha256"]) == (name, hashlib.sha256(SHIFT.encode()).hexdigest())
    assert make_config(augment=len).settings()["augment"] == "builtins:len"
    assert not {"augment", "augment_sha256"} & make_config().settings().keys()
    assert "augment_sha256" not in make_config(augment="strong").settings()
    for wrong in ("weak", 3):
        with pytest.raises(UserError, match=f"augment={wrong!r} is not known; allowed: cifar, imagenet, strong, none"):
            make_config(augment=wrong)


def test_as_a_transform_from_python():
    source = ArraySource(np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3), np.arange(5))
    transform = CustomTransform(lambda image, rng: np.roll(image, rng.integers(0, 4), axis=0), 4)
    (images, labels) = TrainLoader(source, transform, batch_size=5, seed=1).batch(0)
    for image, label in zip(images, labels, strict=True):
        rolled = [np.roll(source.images[label], k, axis=0).tobytes() for k in range(4)]
        assert image.tobytes() in rolled
