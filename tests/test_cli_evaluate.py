import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest

from resnet_tf.cli.evaluate import main
from resnet_tf.cli.main import main as resnet_tf
from resnet_tf.errors import UserError
from tests.conftest import exit_code

KEYS = {"loss", "top1", "top5", "images", "per_class", "confusion", "images_per_second", "data_source"}

pytestmark = pytest.mark.usefixtures("small_data")


def without_rate(result):
    return {key: value for key, value in result.items() if key not in ("images_per_second", "data_source")}


def test_a_run_scores_what_its_report_says(finished_run, tmp_path, capsys, shapes):
    folder, _, report = finished_run
    file = tmp_path / "result.json"
    result = main([str(folder), "--json", str(file)])
    assert set(result) == KEYS
    assert json.loads(file.read_text()) == result
    assert without_rate(result) == without_rate(report["test"])
    assert result["data_source"] == "built-in"
    assert np.sum(result["confusion"]) == result["images"] == 40
    assert np.trace(result["confusion"]) / 40 == result["top1"]
    assert len(result["per_class"]) == 10
    printed = capsys.readouterr().out
    assert "taken as logits" not in printed
    assert f"{folder} (final model) on the test set of shapes" in printed
    lines = printed.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("share right, and images by")) + 1
    assert lines[header].split() == [name[:5] for name in shapes.class_names]
    for column, counts in enumerate(zip(*result["confusion"], strict=True)):  # each count is under its class
        end = lines[header].index(f" {shapes.class_names[column][:5]}") + 6
        assert [int(line[end - 5 : end]) for line in lines[header + 1 : header + 11]] == list(counts)
    assert f"top-1 {100 * result['top1']:.2f} %" in printed
    assert "crescent" in printed


def test_the_best_of_a_run_and_a_file_of_it(finished_run, capsys):
    folder, _, report = finished_run
    best = without_rate(main([str(folder), "--best"]))
    assert f"{folder} (best model by validation) on the test set of shapes" in capsys.readouterr().out
    assert best == without_rate(report["best"]["test"])
    assert without_rate(main([str(folder / "best.keras")])) == best


def test_a_disk_that_refuses_the_numbers(finished_run, tmp_path, monkeypatch, capsys):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    assert resnet_tf(["evaluate", str(finished_run[0]), "--json", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert "x.json cannot be written (No space left on device); give another file" in error


def test_data_of_other_classes(finished_run, monkeypatch, shapes, capsys):
    others = dataclasses.replace(shapes, name="cifar10", class_names=("airplane", *shapes.class_names[1:]))
    monkeypatch.setattr("resnet_tf.data.shapes.load_shapes", lambda: others)
    assert resnet_tf(["evaluate", str(finished_run[0]), "--dataset", "shapes"]) == 2
    error = capsys.readouterr().err
    assert "knows the classes circle, square, triangle, star, cross, …; cifar10 has airplane, square, tri" in error


@pytest.mark.parametrize("batch_size", ["7", "40", "1000"])
def test_the_batch_size_does_not_matter(finished_run, batch_size):
    folder, _, report = finished_run
    result = main([str(folder), "--batch-size", batch_size])
    assert result["confusion"] == report["test"]["confusion"]
    assert result["loss"] == pytest.approx(report["test"]["loss"], rel=1e-6)


def some_layers(activation):
    return [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Conv2D(4, 3, padding="same"),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(10, activation=activation),
    ]


@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("activation", ["softmax", None])
def test_somebody_elses_model(tmp_path, shapes, capsys, kind, activation):
    if kind == "sequential":
        model = keras.Sequential([keras.Input((16, 16, 3)), *some_layers(activation)])
    else:
        x = inputs = keras.Input((None, None, 3))
        for layer in some_layers(activation):
            x = layer(x)
        model = keras.Model(inputs, x)
    model.save(tmp_path / "theirs.keras")
    with pytest.raises(UserError, match="does not say what it was trained on; give data=…"):
        main([str(tmp_path / "theirs.keras")])
    result = main([str(tmp_path / "theirs.keras"), "--dataset", "shapes"])
    assert ("does not say what it returns: its outputs are taken as logits" in capsys.readouterr().out) != bool(
        activation
    )
    outputs = np.asarray(model(shapes.test.images.astype(np.float32))).astype(np.float64)
    shares = outputs if activation else np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert result["loss"] == pytest.approx(-np.log(shares[np.arange(40), shapes.test.labels]).mean(), rel=1e-5)
    assert result["top1"] == pytest.approx((shares.argmax(axis=1) == shapes.test.labels).mean())


def saved(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return str(tmp_path / "model.keras")


def test_models_that_do_not_fit(tmp_path):
    def model(shape, classes, activation=None):
        inputs = keras.Input(shape)
        return keras.Model(inputs, keras.layers.Dense(classes, activation)(keras.layers.Flatten()(inputs)))

    with pytest.raises(UserError, match=r"takes \(None, 16\); only images \(height, width, channels\) will do"):
        main([saved(model((16,), 10), tmp_path), "--dataset", "shapes"])
    for shape in ((28, 28, 3), (16, 16, 1)):
        with pytest.raises(UserError, match=r"takes images of the shape .*, shapes has \(16, 16, 3\)"):
            main([saved(model(shape, 10), tmp_path), "--dataset", "shapes"])
    with pytest.raises(UserError, match="12"):
        main([saved(model((16, 16, 3), 12), tmp_path), "--dataset", "shapes"])
    with pytest.raises(UserError, match="sigmoid"):
        main([saved(model((16, 16, 3), 10, "sigmoid"), tmp_path), "--dataset", "shapes"])


def test_nothing_in_a_file_is_executed(tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Lambda(lambda tensor: tensor * 2)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))
    with pytest.raises(UserError, match="cannot be loaded as a Keras model"):
        main([saved(model, tmp_path), "--dataset", "shapes"])


def test_damaged_files(finished_run, tmp_path):
    path = tmp_path / "model.keras"
    for content in (b"", b"PK\3\4 not really", (finished_run[0] / "final.keras").read_bytes()[:-2_000]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"model\.keras cannot be loaded as a Keras model"):
            main([str(path), "--dataset", "shapes"])
    shutil.copy(finished_run[0] / "final.keras", path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json cannot be read"):
        main([str(path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.keras"], "none.keras does not exist; name a .keras file or the folder of a run"),
        (["."], "final.keras does not exist; finish the run first"),
        (["model.txt"], "model.txt is no Keras model"),
        (["good.keras", "--best"], "--best goes with the folder of a run"),
        (["good.keras"], "does not say what it was trained on; give --dataset (cifar10, cifar100, shapes, folder:PATH"),
        (["good.keras", "--dataset", "shapes", "--batch-size", "0"], "--batch-size 0 is out of range"),
        (["good.keras", "--dataset", "shapes", "--json", "none/out.json"], "the folder does not exist"),
        ([], "the following arguments are required: MODEL_OR_RUN"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("model.txt", "good.keras"):
        (tmp_path / name).write_bytes(b"")
    code = exit_code(["evaluate", *arguments])
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
