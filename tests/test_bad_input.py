"""Whatever a user can get wrong ends in one line on stderr, exit code 2, and nothing created, changed or lost."""

import io
import json
import os
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from resnet_tf.config import make_config
from resnet_tf.data import shapes
from resnet_tf.data.image_io import cv2
from resnet_tf.training.logs import COLUMNS
from tests.conftest import exit_code

SHAPES = ("train", "--dataset", "shapes")
CIFAR = ("train", "--dataset", "cifar10", "--data-dir")

NEST = "[" * 100_000 + "]" * 100_000
# Files of a run: which one, what is in it instead (a text, or what is changed), and what the line must say.
RUNS = {
    "nested": ("settings.json", NEST, "settings.json cannot be read"),
    "nested-inside": ("settings.json", {"extra": [[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]}, "nested too deeply"),
    "text": ("settings.json", "run 17", "settings.json cannot be read"),
    "bytes": ("settings.json", "\udcff", "settings.json cannot be read"),
    "number": ("settings.json", '{"seed": 1' + "0" * 5000 + "}", "settings.json cannot be read"),
    "digits": ("report.json", {"test": {"loss": 10**310, "top1": 1, "top5": 1, "images": 1}}, "a number of 311 digits"),
    "empty": ("settings.json", "{}", "settings.json lacks data.fingerprint, data.source, dataset, model"),
    "model": ("settings.json", {"model": 5}, "has 5 as model, not a text"),
    "seed": ("settings.json", {"seed": "0"}, "has '0' as seed, not a whole number"),
    "rate": ("settings.json", {"recipe.learning_rate": "fast"}, "has 'fast' as recipe.learning_rate, not a number"),
    "minus": ("settings.json", {"recipe.batch_size": -1}, "batch_size=-1 is out of range"),
    "schedule": ("settings.json", {"recipe.schedule": "odd"}, "'odd' is not known"),
    "drops": ("settings.json", {"recipe.drops": 3}, "has no list as recipe.drops"),
    "mean": ("settings.json", {"data.mean": ["red"]}, "has 'red' as data.mean, not a number"),
    "precision": ("settings.json", {"precision": None}, "has None as precision, not a text"),
    "report": ("report.json", "{}", "report.json lacks device, iterations, parameters"),
    "report-list": ("report.json", "[]", "report.json is not the JSON object"),
    "training": ("report.json", {"training": []}, "has no object as training"),
    "seconds": (
        "report.json",
        {"training": {"seconds": 1e300, "median_images_per_second": 1}},
        "as seconds, not a number",
    ),
    "top1": ("report.json", {"test": {"loss": 1, "top1": 17, "top5": 1, "images": 1}}, "has 17 as top1, not a number"),
    "tested": ("report.json", {"test": {"loss": 1}}, "report.json lacks images, top1, top5 in test"),
    "best": ("report.json", {"best": []}, "has no object as best"),
    "iterations": ("report.json", {"iterations": True}, "has True as iterations, not a whole number"),
    "versions": ("report.json", {"versions": {"keras": 3}}, "report.json lacks tensorflow in versions"),
    "field": ("metrics.csv", "iteration,epoch\n1," + "1" * 140_000, "metrics.csv cannot be read"),
    "order": ("metrics.csv", {"20": "5"}, "metrics.csv cannot be read (its iterations do not rise)"),
    "zero": ("metrics.csv", {"10": "0"}, "metrics.csv cannot be read"),
    "long": ("metrics.csv", {"20": "99999999999"}, "and no log of them"),
    "columns": ("metrics.csv", "iteration\n10\n", "metrics.csv cannot be read (it lacks epoch"),
    "binary": ("metrics.csv", "\0\0,\0\n\0,\0", "metrics.csv cannot be read"),
}
# The JSON beside a model of 7 classes that takes 32x32 pixels, and what the line must say.
SIDECARS = {
    "names": ({"class_names": 7}, "has no list as class_names"),
    "few": ({"class_names": ["cat"]}, "names 1 classes, the model has 7"),
    "mixed": ({"class_names": [1, 2, 3, 4, 5, 6, 7]}, "has 1 as class_names, not a text"),
    "preprocessing": ({"preprocessing": []}, "has no object as preprocessing"),
    "framing": ({"preprocessing": {"framing": [32, 32]}}, "has no object as framing"),
    "unknown": ({"preprocessing": {"framing": {"side": 32}}}, "lacks height, resize, width in framing"),
    "more": ({"preprocessing": {"framing": {"resize": 32, "height": 32, "width": 32, "turn": 1}}}, "framing with turn"),
    "misfit": ({"preprocessing": {"framing": {"resize": 30, "height": 30, "width": 30}}}, "framing of 30x30 beside it"),
    "huge": (
        {"preprocessing": {"framing": {"resize": 10**9, "height": 32, "width": 32}}},
        "as resize, not a whole number",
    ),
    "crop": ({"preprocessing": {"crop": "all"}}, "as crop, not a whole number"),
    "dataset": ({"dataset": {}}, "as dataset, not a text"),
    "bad-image": ({"on_bad_image": "maybe"}, "as on_bad_image, not one of skip, stop"),
}

# Arguments, and what the line must say.
FLAGS = [
    ((), "required: COMMAND"),
    (("trian",), "invalid choice: 'trian'"),
    (("train", "--no-such-flag"), "unrecognized arguments: --no-such-flag"),
    (("train", "--rec", "quick"), "unrecognized arguments: --rec"),
    (("train", "extra"), "unrecognized arguments: extra"),
    (("train", "--model", "resnet21_v2"), "--model resnet21_v2 is not known; did you mean resnet32_v2 or resnet20_v2"),
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
    (
        ("evaluate", "flat.keras", "--dataset", "shapes"),
        "flat.keras takes (None, 4); only images (height, width, channels) will do",
    ),
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
    ((*SHAPES, "--run-dir", "list"), "is not the JSON object that is written there"),
    ((*SHAPES, "--run-dir", "other"), "; give another --run-dir, or --overwrite to start anew"),
    ((*SHAPES, "--run-dir", "other"), 'belongs to a run of other settings: model is "resnet56_v1" there'),
    ((*SHAPES, "--run-dir", ""), "argument --run-dir: the value is empty; give one"),
    ((*SHAPES, "--data-dir", ""), "argument --data-dir: the value is empty"),
    ((*SHAPES, "--weights", ""), "argument --weights: the value is empty"),
    ((*SHAPES, "--input-size", "1000000"), "--input-size 1000000 is out of range; allowed: 1 to 4096"),
    ((*SHAPES, "--width", "100000"), "--width 100000 is out of range; allowed: 1 to 256"),
    ((*SHAPES, "--threads", "99999"), "--threads 99999 is out of range; allowed: 0 to 1024"),
    ((*SHAPES, "--replicas", "99999"), "--replicas 99999 is out of range"),
    (("evaluate", ""), "argument model: the value is empty"),
    (("evaluate", "fifo.keras"), "fifo.keras is no file"),
    (("evaluate", "gzip.keras", "--dataset", "shapes"), "its data inflates to many times its size"),
    (("evaluate", "zip.keras", "--dataset", "shapes"), "it inflates to many times its size"),
    (("evaluate", "wide.keras", "--dataset", "shapes"), "its layers are larger than the file"),
    (("evaluate", "elsewhere.keras", "--dataset", "shapes"), "its data lies in other files"),
    (("evaluate", "deep.keras", "--dataset", "shapes"), "deep.keras cannot be loaded as a Keras model"),
    ((*SHAPES, "--weights", "gzip.keras"), "its data inflates to many times its size"),
    (("evaluate", "seven.keras", "--dataset", "shapes", "--json", "seven.keras"), "--json seven.keras is an input"),
    (("evaluate", "seven.keras", "--dataset", "shapes", "--json", "run/report.json"), "belongs to the run in run"),
    (("evaluate", "seven.keras", "--dataset", "shapes", "--report", "run"), "belongs to the run in run"),
    (("evaluate", "seven.keras", "--dataset", "shapes", "--report", "notes.txt"), "is no folder"),
    (("predict", "seven.keras", ""), "the value is empty"),
    (("predict", "seven.keras", "one.png", "--json", "one.png"), "--json one.png is an input; give another file"),
    (("predict", "seven.keras", "pictures", "--csv", "pictures/two.png"), "--csv pictures/two.png is an input"),
    (("predict", "seven.keras", "one.png", "--csv", "twin"), "--csv twin is an input"),
    (("predict", "seven.keras", "one.png", "--csv", "seven.keras"), "--csv seven.keras is an input"),
    (("predict", "seven.keras", "one.png", "--csv", "out", "--json", "./out"), "is csv as well; give each its own"),
    (("predict", "seven.keras", "one.png", "--json", "run/settings.json"), "belongs to the run in run"),
    (("predict", "seven.keras", "one.png", "--csv", "run/report.html"), "belongs to the run in run"),
    (("predict", "seven.keras", "one.png", "--csv", "folder"), "is a folder; give a file"),
    (("predict", "any.keras", "one.png", "--crop", "100000"), "allowed: 4096 pixels a side"),
    (("export", "seven.keras", "--format", "keras", "--output", "seven.keras"), "is an input; give another file"),
    (
        ("export", "seven.keras", "--format", "tflite", "--output", "run/settings.tflite"),
        "which belongs to something else",
    ),
    (("export", "seven.keras", "--format", "saved_model", "--output", "folder"), "is a folder that is no export"),
    (("export", "seven.keras", "--format", "keras", "--output", "no/x.keras"), "the folder does not exist"),
    (("compare", "run", "--output", "run/curves.png"), "belongs to the run in run"),
    (("compare", "run", "--output", "run/confusion.png"), "belongs to the run in run"),
    (("compare", "run", "--output", "no/x.png"), "the folder does not exist"),
    (("compare", "run", "--output", "notes.txt"), "has no known ending; allowed: .png, .pdf, .svg"),
    (("summary", "resnet8_v2", "--plot", "no/x.png"), "the folder does not exist"),
    (("summary", "resnet8_v2", "--input-size", "1000000"), "--input-size 1000000 is out of range"),
    (("summary", "resnet8_v2", "--width", "100000"), "--width 100000 is out of range"),
    (("summary", "resnet8_v2", "--classes", "0"), "--classes 0 is out of range"),
    (
        ("import-weights", "notes.txt", "--model", "resnet18", "--output", "run/final.keras"),
        "belongs to the run in run",
    ),
    (
        ("import-weights", "notes.txt", "--model", "resnet18", "--output", "run/report.keras"),
        "belongs to the run in run",
    ),
    (("import-weights", "x.pth", "--model", "resnet18", "--output", "x.keras", "--classes", "1000000000"), "--classes"),
    *((("compare", f"bad-{name}"), says) for name, (_, _, says) in RUNS.items()),
    *((("predict", f"bad-{name}.keras", "one.png"), says) for name, (_, says) in SIDECARS.items()),
]


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "notes.txt").write_text("no data\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "letter.txt").write_text("dear reader\n")
    _models(folder)
    _archives(folder)
    _runs(folder)
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
    for name, (value, _) in SIDECARS.items():
        (folder / f"bad-{name}.keras").hardlink_to(folder / "seven.keras")
        (folder / f"bad-{name}.json").write_text(json.dumps(value))
    free = keras.Input((None, None, 3))
    keras.Model(free, keras.layers.Dense(7)(keras.layers.GlobalAveragePooling2D()(free))).save(folder / "any.keras")
    _bombs(folder)


def _runs(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for name in ("one.png", "pictures/two.png"):
        cv2.imwrite(str(folder / name), np.full((32, 32, 3), 90, np.uint8))
    (folder / "twin").hardlink_to(folder / "one.png")
    settings = make_config("he2015", model="resnet8_v2", dataset="shapes").settings()
    settings |= {"data.source": "built-in", "data.fingerprint": "0", "precision": "float32", "threads": 1}
    report = {
        **dict.fromkeys(("parameters", "iterations", "train_images", "validation_images"), 20),
        "settings": settings,
        "test": None,
        "device": "a machine",
        "versions": {"tensorflow": "2", "keras": "3"},
        "training": {"seconds": 1.0, "median_images_per_second": 10.0},
    }
    row = dict.fromkeys(COLUMNS, "0.5")
    rows = [",".join((row | {"iteration": step}).values()) for step in ("10", "20")]
    metrics = "\n".join((",".join(COLUMNS), *rows, ""))
    whole = {"settings.json": settings, "report.json": report, "metrics.csv": metrics}
    for name, (file, change, _) in {"run": ("curves.png", "", ""), **RUNS}.items():
        place = folder / (name if name == "run" else f"bad-{name}")
        place.mkdir()
        for path, value in {"curves.png": "", **whole}.items():
            if path == file and isinstance(change, str):
                value = change
            elif path == file:
                value = value | change if isinstance(value, dict) else _replaced(value, change)
            text = value if isinstance(value, str) else json.dumps(value)
            (place / path).write_text(text, encoding="utf-8", errors="surrogateescape")


def _replaced(text: str, change: dict[str, str]) -> str:
    for old, new in change.items():
        text = text.replace(f"\n{old},", f"\n{new},")
    return text


def _bombs(folder: Path) -> None:
    """Small .keras files that ask for much: memory, another file, or a deep stack."""

    def weights(**options):
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            file.create_dataset("layers/dense/vars/0", (64, 2**20), "f4", **options)
        return content.getvalue()

    with zipfile.ZipFile(folder / "seven.keras") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    wide = entries["config.json"].replace(b'"units": 7', b'"units": 999999999')
    assert wide != entries["config.json"]
    contents = {
        "gzip": {"model.weights.h5": weights(compression="gzip", fillvalue=1.0)},
        "zip": {"model.weights.h5": bytes(2**27)},
        "wide": {"config.json": wide},
        "elsewhere": {"model.weights.h5": weights(external=[("notes.txt", 0, 2**28)])},
        "deep": {"config.json": NEST.encode()},
    }
    for name, changed in contents.items():
        with zipfile.ZipFile(folder / f"{name}.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in {**entries, **changed}.items():
                archive.writestr(entry, content)
    os.mkfifo(folder / "fifo.keras")


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
    assert len([line for line in stderr.strip().splitlines() if ": warning: " not in line]) == 1, stderr
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
    # A command that needs images and not TensorFlow, whose import would take most of the time.
    result = python(program, tmp_path, "reproduce", "--plan", "--dataset", "shapes")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "apt-get install libgl1" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_archive_that_a_zip_bomb_hides_in_is_no_tar(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cifar-10-batches-py/data_batch_1", bytes(50_000_000))
    monkeypatch.chdir(tmp_path)
    _check_refused((*CIFAR, "bomb.zip"), "is no tar archive", tmp_path, capsys)
