"""Whatever a user can get wrong ends in one line on stderr, exit code 2, and nothing created, changed or lost."""

import json
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from resnet_tf.data import shapes
from tests.conftest import exit_code

SHAPES = ("train", "--dataset", "shapes")
CIFAR = ("train", "--dataset", "cifar10", "--data-dir")

# Arguments, and what the line must say.
FLAGS = [
    ((), "required: COMMAND"),
    (("trian",), "invalid choice: 'trian'"),
    (("train", "--no-such-flag"), "unrecognized arguments: --no-such-flag"),
    (("train", "--rec", "quick"), "unrecognized arguments: --rec"),
    (("train", "extra"), "unrecognized arguments: extra"),
    (("train", "--model", "resnet21_v2"), "--model resnet21_v2 is not known; allowed: resnet8_v1"),
    (("train", "--dataset", "cifar11"), "cifar11 is not known; allowed: cifar10, cifar100, shapes"),
    (("train", "--recipe", "he2017"), "'he2017' is not known; allowed: he2015"),
    ((*SHAPES, "--shortcut", "B"), "invalid choice: 'B'"),
    ((*SHAPES, "--width", "0"), "--width 0 is out of range; allowed: 1 to"),
    ((*SHAPES, "--width", "two"), "invalid int value: 'two'"),
    ((*SHAPES, "--seed", "-1"), "--seed -1 is out of range"),
    ((*SHAPES, "--seed", "5000000000"), "--seed 5000000000 is out of range; allowed: 0 to 4294967295"),
    ((*SHAPES, "--seeds", "0,1,0"), "names a seed twice"),
    ((*SHAPES, "--seeds", "0,one"), "invalid integers value: '0,one'"),
    ((*SHAPES, "--model", "plain20", "--shortcut", "projection"), "take --model resnet20_v1"),
    ((*SHAPES, "--batch-size", "16", "--model", "resnet18", "--width", "2"), "resnet18 has no option width"),
    ((*SHAPES, "--warmup", "iterations", "--recipe", "he2015"), "add --warmup-iterations N"),
    ((*SHAPES, "--steps-per-call", "0"), "--steps-per-call 0 is out of range"),
    ((*SHAPES, "--threads", "-2"), "--threads -2 is out of range"),
    ((*SHAPES, "--eval-every", "0"), "--eval-every 0 is out of range"),
    ((*SHAPES, "--batch-size", "0"), "--batch-size 0 is out of range; allowed: 1 to"),
    ((*SHAPES, "--batch-size", "1.5"), "invalid int value: '1.5'"),
    ((*SHAPES, "--batch-size", "100000"), "batch size 100000 is larger than the"),
    ((*SHAPES, "--iterations", "0"), "--iterations 0 is out of range"),
    ((*SHAPES, "--iterations", "9", "--epochs", "2"), "exclude each other"),
    ((*SHAPES, "--epochs", "-1"), "--epochs -1.0 is out of range"),
    ((*SHAPES, "--learning-rate", "nan"), "--learning-rate nan is out of range"),
    ((*SHAPES, "--learning-rate", "-0.1"), "--learning-rate -0.1 is out of range"),
    ((*SHAPES, "--momentum", "1.5"), "--momentum 1.5 is out of range; allowed: 0 to 1"),
    ((*SHAPES, "--weight-decay=-1e-4"), "--weight-decay -0.0001 is out of range"),
    ((*SHAPES, "--drops", "0.7,0.5"), "must rise and lie between 0 and 1"),
    ((*SHAPES, "--drops", "8000"), "must rise and lie between 0 and 1"),
    ((*SHAPES, "--drops", "a,b"), "invalid"),
    ((*SHAPES, "--schedule", "linear"), "invalid choice: 'linear'"),
    ((*SHAPES, "--decay", "none"), "invalid choice: 'none'"),
    ((*SHAPES, "--pad-mode", "white"), "invalid choice: 'white'"),
    ((*SHAPES, "--validation-size", "1.5"), "1.5"),
    ((*SHAPES, "--validation-size", "100000"), "100000"),
    ((*SHAPES, "--validation-size", "-1"), "--validation-size -1.0 is out of range"),
    ((*SHAPES, "--validation-size", "0", "--schedule", "plateau"), "needs validation images"),
    ((*SHAPES, "--validation-size", "0", "--early-stopping", "2"), "needs validation images"),
    ((*SHAPES, "--checkpoint-every", "often"), "allowed: iterations (500) or minutes (5m)"),
    ((*SHAPES, "--checkpoint-every", "0"), "allowed: iterations (500) or minutes (5m)"),
    ((*SHAPES, "--on-nan", "ignore"), "invalid choice: 'ignore'"),
    ((*SHAPES, "--precision", "float64"), "invalid choice: 'float64'"),
    ((*SHAPES, "--device", "tpu"), "--device tpu is not known; allowed: auto, cpu, gpu"),
    ((*SHAPES, "--device", "gpu:7"), "use --device cpu or --device auto"),
    ((*SHAPES, "--device", "gpu:x"), "--device gpu:x is not known"),
    ((*SHAPES, "--data-dir", "."), "--data-dir does not go with --dataset shapes"),
    (("evaluate",), "required: MODEL_OR_RUN"),
    (("evaluate", "nowhere.keras"), "nowhere.keras does not exist"),
    (("evaluate", "notes.txt"), "notes.txt is no Keras model"),
    (("evaluate", "empty.keras", "--dataset", "shapes"), "empty.keras cannot be loaded as a Keras model"),
    (("evaluate", "truncated.keras", "--dataset", "shapes"), "truncated.keras cannot be loaded as a Keras model"),
    (("evaluate", "lambda.keras", "--dataset", "shapes"), "lambda.keras cannot be loaded as a Keras model"),
    (("evaluate", "flat.keras", "--dataset", "shapes"), "flat.keras takes images of the shape (None, 4)"),
    (("evaluate", "seven.keras", "--dataset", "shapes"), "10 classes"),
    (("evaluate", "relu.keras", "--dataset", "shapes"), "only a linear or a softmax output can be scored"),
    (("evaluate", "seven.keras"), "does not say what it was trained on; give --dataset"),
    (("evaluate", "seven.keras", "--dataset", "mnist"), "mnist is not known"),
    (("evaluate", "seven.keras", "--dataset", "shapes", "--batch-size", "0"), "--batch-size 0 is out of range"),
    (("evaluate", "seven.keras", "--dataset", "shapes", "--json", "no/such/x.json"), "the folder does not exist"),
    (("evaluate", "seven.keras", "--dataset", "shapes", "--json", "folder"), "--json folder is a folder; give a file"),
    (("predict", "nowhere.keras", "picture.png"), "nowhere.keras"),
    (("predict", "seven.keras", "notes.txt", "--top", "0"), "--top"),
    (("export", "nowhere.keras", "--format", "tflite"), "nowhere.keras does not exist"),
    (("export", "seven.keras", "--format", "pth"), "invalid choice: 'pth'"),
    (("summary", "resnet21"), "resnet21"),
    (("compare", "folder"), "folder"),
    (("import-weights", "nowhere.pth", "--model", "resnet18", "--output", "out.keras"), "nowhere.pth"),
    (("import-weights", "hostile.pth", "--model", "resnet18", "--output", "out.keras"), "hostile.pth"),
    (("import-weights", "notes.txt", "--model", "resnet18", "--output", "out.keras"), "notes.txt"),
    (("evaluate", "seven.keras", "--best"), "--best goes with the folder of a run"),
    (("evaluate", "folder"), "finish the run first"),
    (("evaluate", "badside.keras", "--dataset", "shapes"), "badside.json cannot be read"),
    ((*CIFAR, "nowhere"), "nowhere does not exist; give a folder or an archive"),
    ((*CIFAR, "folder"), "folder holds no CIFAR-10"),
    ((*CIFAR, "notes.txt"), "notes.txt is no tar archive"),
    ((*CIFAR, "cut.tar.gz"), "cut.tar.gz is no tar archive, or is cut short"),
    ((*CIFAR, "outside.tar.gz"), "lacks data_batch_1"),
    ((*CIFAR, "hostile"), "asks for 'posix.system'"),
    ((*CIFAR, "incomplete"), "is cut short or no CIFAR-10 file"),
    ((*SHAPES, "--run-dir", "notes.txt"), "notes.txt"),
    ((*SHAPES, "--run-dir", "notes.txt/run"), "notes.txt/run"),
    ((*SHAPES, "--run-dir", "folder"), "is not empty and is not a run folder"),
    ((*SHAPES, "--run-dir", "folder", "--overwrite"), "is not empty and is not a run folder"),
    ((*SHAPES, "--run-dir", "damaged"), "settings.json cannot be read"),
    ((*SHAPES, "--run-dir", "list"), "is not the JSON object that a run writes"),
    ((*SHAPES, "--run-dir", "other"), "; give another --run-dir, or --overwrite to start anew"),
    ((*SHAPES, "--run-dir", "other"), 'belongs to a run of other settings: model is "resnet56_v1" there'),
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes.txt").write_text("no data\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "letter.txt").write_text("dear reader\n")
    _models(folder)
    _archives(folder)
    for name, text in (("damaged", "{"), ("list", "[]"), ("other", json.dumps({"model": "resnet56_v1"}))):
        (folder / name).mkdir()
        (folder / name / "settings.json").write_text(text)
    return folder


def _models(folder: Path) -> None:
    (folder / "empty.keras").write_bytes(b"")
    inputs = keras.Input((32, 32, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    keras.Model(inputs, keras.layers.Dense(7)(pooled)).save(folder / "seven.keras")
    keras.Model(inputs, keras.layers.Dense(10, activation="relu")(pooled)).save(folder / "relu.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)]).save(folder / "flat.keras")
    keras.Model(inputs, keras.layers.Lambda(lambda x: x)(pooled)).save(folder / "lambda.keras")
    whole = (folder / "seven.keras").read_bytes()
    (folder / "truncated.keras").write_bytes(whole[: len(whole) // 2])
    (folder / "badside.keras").write_bytes(whole)
    (folder / "badside.json").write_text("{")


class _Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def _archives(folder: Path) -> None:
    noise = np.random.default_rng(0).bytes(100_000)
    (folder / "noise").write_bytes(noise)
    with tarfile.open(folder / "cut.tar.gz", "w:gz") as archive:
        archive.add(folder / "noise", "cifar-10-batches-py/data_batch_1")
    (folder / "cut.tar.gz").write_bytes((folder / "cut.tar.gz").read_bytes()[:50_000])
    with tarfile.open(folder / "outside.tar.gz", "w:gz") as archive:
        archive.add(folder / "noise", "../../escaped")
        archive.add(folder / "notes.txt", "/tmp/escaped-resnet-tf")
        hostile = folder / "noise"
        archive.add(hostile, "cifar-10-batches-py/readme.html")
    (folder / "hostile.pth").write_bytes(pickle.dumps(_Hostile(), protocol=2))
    for name, content in (("hostile", pickle.dumps(_Hostile(), protocol=2)), ("incomplete", noise[:5000])):
        batches = folder / name / "cifar-10-batches-py"
        batches.mkdir(parents=True)
        (batches / "data_batch_1").write_bytes(content)


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.fixture
def small_shapes(monkeypatch):
    few = shapes.load_shapes(train_size=100, test_size=20)
    monkeypatch.setattr(shapes, "load_shapes", lambda: few)


def _check_refused(arguments, says, folder, capsys) -> None:
    before = _tree(folder)
    code = exit_code(arguments)
    stderr = capsys.readouterr().err
    assert code == 2, stderr
    assert says in stderr
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert "Traceback" not in stderr
    assert _tree(folder) == before
    assert not Path("/tmp/escaped-resnet-tf").exists()


@pytest.mark.parametrize(("arguments", "says"), FLAGS, ids=str)
def test_one_line_and_nothing_touched(arguments, says, bad_files, monkeypatch, capsys, small_shapes):
    monkeypatch.chdir(bad_files)
    monkeypatch.setattr("sys.argv", ["resnet-tf"])
    _check_refused(arguments, says, bad_files, capsys)


def _set_backend(monkeypatch, folder):
    monkeypatch.setenv("KERAS_BACKEND", "jax")


def _set_backend_in_file(monkeypatch, folder):
    home = folder / "keras-home"
    home.mkdir()
    (home / "keras.json").write_text('{"backend": "torch"}')
    monkeypatch.setenv("KERAS_HOME", str(home))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (_set_backend, "backend 'jax'"),
        (_set_backend_in_file, "backend 'torch'"),
    ],
)
def test_an_environment_that_cannot_work(prepare, says, tmp_path, monkeypatch, capsys):
    prepare(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "keras")
    _check_refused(SHAPES, says, tmp_path, capsys)


def test_a_missing_system_library_names_both_ways_out(python, tmp_path):
    program = (
        "import os, sys\n"
        "os.chdir(sys.argv[1])\n"
        "sys.modules['cv2'] = None\n"
        "from resnet_tf.cli.main import main\n"
        "sys.exit(main(sys.argv[2:]))\n"
    )
    result = python(program, tmp_path, *SHAPES)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "apt-get install libgl1" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_archive_that_a_zip_bomb_hides_in_is_no_tar(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cifar-10-batches-py/data_batch_1", bytes(50_000_000))
    monkeypatch.chdir(tmp_path)
    _check_refused((*CIFAR, "bomb.zip"), "is no tar archive", tmp_path, capsys)
