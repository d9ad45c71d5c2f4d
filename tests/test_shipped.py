"""Weights that come with the package: those that do, and the machinery by an entry made for the test."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from resnet_tf import build_model, class_names, list_weights
from resnet_tf import predict as predict_images
from resnet_tf.cli import evaluate, export, predict, summary, train
from resnet_tf.data.image_io import cv2
from resnet_tf.errors import UserError
from resnet_tf.pretrained import zoo as shipped
from tools import weights as tool

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package without weights."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def entry(folder, finished_run, tmp_path):
    """One entry, resnet8_v2:shapes, from a run of 12 iterations."""
    run = shutil.copytree(finished_run[0], tmp_path / "finished")
    (run / "command.txt").write_text("resnet-tf train --model resnet8_v2 --dataset shapes\n")
    tool.main([str(run)])
    return "resnet8_v2:shapes"


def test_a_package_without_weights(folder):
    assert list_weights() == []
    with pytest.raises(UserError, match="no weights resnet8_v2:cifar10 come with the package; there are none"):
        build_model("resnet8_v2", weights="cifar10")
    with pytest.raises(UserError, match="no weights resnet8_v2:cifar10 come with the package"):
        evaluate.main(["resnet8_v2:cifar10"])
    assert tool.main([]) == {"shipped": []}
    assert "no weights" in (folder / "README.md").read_text()


def test_building_with_weights(entry, finished_run):
    assert list_weights() == [entry]
    saved = keras.models.load_model(finished_run[0] / "final.keras")
    model = build_model("resnet8_v2", weights="shapes", input_shape=(16, 16, 3))
    images = PIXELS[:, :16, :16]
    np.testing.assert_array_equal(model(images), saved(images))
    bare = build_model("resnet8_v2", weights="shapes", include_top=False, pooling="avg")
    assert bare.output_shape == (None, 64)
    softmax = build_model(
        "resnet8_v2", weights="shapes", classifier_activation="softmax", shortcut="identity", input_shape=(16, 16, 3)
    )
    np.testing.assert_allclose(softmax(images), keras.ops.softmax(saved(images)), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shortcut": "projection"},
            "of a network with shortcut='identity', not shortcut='projection'; leave shortcut out",
        ),
        ({"classes": 3, "width": 2}, "with width=1, not width=2; leave width out"),
        ({"version": 1}, "with version=2, not version=1"),
        ({"mean": (0, 0, 0), "std": (1, 1, 1)}, "leave mean and std out"),
    ],
)
def test_other_options_than_the_weights_have(entry, options, message):
    with pytest.raises(UserError, match=message):
        build_model("resnet8_v2", weights="shapes", **options)


def test_a_name_with_its_weights_and_the_folder_of_a_run_build_the_trained_model(entry, finished_run):
    saved, images = keras.models.load_model(finished_run[0] / "final.keras"), PIXELS[:, :16, :16]
    names = ("circle", "triangle", "square", "star", "cross", "ring", "crescent", "heart", "arrow", "hourglass")
    by_run = build_model("resnet8_v2", weights=str(finished_run[0]))
    for model in (build_model(entry), by_run):
        np.testing.assert_array_equal(model(images), saved(images))
    assert sorted(class_names(by_run)) == sorted(names)
    for known in (entry, finished_run[0], finished_run[0] / "best.keras", build_model(entry)):
        assert class_names(known) == class_names(by_run)
    assert predict_images(by_run, images)[0].label in names
    assert build_model(entry, input_shape=(64, 48, 3)).output_shape == (None, 10)
    with pytest.raises(UserError, match="resnet8_v2:shapes names its weights: leave weights='x' out"):
        build_model(entry, weights="x")
    for unknown in (build_model("resnet8_v2"), build_model(entry, include_top=False)):
        with pytest.raises(UserError, match="does not know the names of its classes"):
            class_names(unknown)


def test_other_classes_get_a_new_head_and_a_line_says_so(entry, finished_run):
    trained = build_model(entry)
    with pytest.warns(UserWarning, match="is new: it has 3 classes, the weights have 10; all other layers") as seen:
        model = build_model("resnet8_v2", weights=str(finished_run[0]), classes=3)
    assert len(seen) == 1
    assert model.output_shape == (None, 3)
    for ours, theirs in zip(model.variables[:-2], trained.variables[:-2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UserError, match="does not know"):
        class_names(model)


def test_other_names_than_there_are(entry):
    for network, name in (("resnet8_v1", "shapes"), ("resnet8_v2", "cifar10")):
        with pytest.raises(UserError, match=f"no weights {network}:{name} .*; there are resnet8_v2:shapes; or give"):
            build_model(network, weights=name)


def test_evaluating_gives_the_reported_numbers(entry, finished_run, small_data, capsys):
    result = evaluate.main([entry])
    report = finished_run[2]["test"]
    assert result["confusion"] == report["confusion"]
    assert (result["top1"], result["loss"]) == (report["top1"], report["loss"])
    assert f"{entry} on the test set of shapes" in capsys.readouterr().out


def test_predicting_summing_up_and_exporting(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", PIXELS[0])
    (prediction,) = predict.main([entry, "photo.png"])["predictions"]
    assert prediction["classes"][0]["name"] in shipped.entries()[entry].about["class_names"]
    assert summary.main([entry])["parameters"] == shipped.entries()[entry].about["parameters"]
    assert export.main([entry, "--format", "keras"])["output"] == "resnet8_v2-shapes-export.keras"
    assert (tmp_path / "resnet8_v2-shapes-export.keras").exists()


def test_training_from_them(entry, tmp_path, small_data):
    flags = ["--model", "resnet8_v2", "--dataset", "shapes", "--batch-size", "16", "--device", "cpu"]
    flags += ["--iterations", "2", "--freeze", "all", "--weights", entry]
    report = train.main([*flags, "--run-dir", str(tmp_path / "run")])
    assert report["settings"]["weights.sha256"] == shipped.entries()[entry].about["sha256"]


def test_a_file_of_that_name_goes_first_but_no_folder(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert build_model("resnet8_v2", weights="shapes").output_shape == (None, 10)
    build_model("resnet8_v2", classes=5).save(tmp_path / "model.keras")
    (tmp_path / "model.keras").rename(tmp_path / entry)
    with pytest.raises(UserError, match="is no Keras model"):
        evaluate.main([entry])


def test_listing_imports_no_framework(python):
    result = python(
        "import sys, resnet_tf; resnet_tf.list_weights();"
        "assert not {'keras', 'tensorflow', 'cv2', 'numpy'} & sys.modules.keys()"
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_only_finished_runs_ship(folder, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        tool.main([str(tmp_path / "nowhere")])


def test_the_card_says_what_is_known(entry, folder, finished_run):
    text = (folder / "README.md").read_text()
    test = finished_run[2]["test"]
    assert f"{100 * test['top1']:.2f} % ({round(40 * test['top1'])} of 40 images), last step" in text
    assert "resnet-tf train --model resnet8_v2 --dataset shapes\n" in text
    assert "shortcut='identity', width=1, use_bias=False, classes=10" in text
    assert "JPEG" not in text
    path = folder / "resnet8_v2-shapes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_source": "JPEG copy"}))
    assert "went through JPEG once" in tool.card()
    assert "| recipe | `he2016`, batch_size=16, iterations=12, warmup_iterations=1, 12 iterations, seed 0 |" in text


def test_the_committed_card_comes_from_the_committed_weights():
    assert tool.card() == (shipped.FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", list_weights())
def test_what_ships_is_what_was_measured(text):
    known = shipped.entries()[text]
    assert hashlib.sha256(known.path.read_bytes()).hexdigest() == known.about["sha256"]
    assert known.path.stat().st_size < 5_000_000
    np.testing.assert_allclose(tool.logits_of(known.path), known.about["logits"], atol=1e-3)
    model, saved = build_model(known.network, weights=known.name), keras.models.load_model(known.path)
    np.testing.assert_array_equal(model(PIXELS), saved(PIXELS))
    test = known.about["metrics"]["test"]
    assert (
        np.trace(test["confusion"])
        == round(test["top1"] * test["images"])
        == round(np.mean(test["per_class"]) * 10_000)
    )
    assert (
        model.count_params() - sum(np.prod(v.shape) for v in model.non_trainable_variables) == known.about["parameters"]
    )


@pytest.mark.skipif("CIFAR10_DIR" not in os.environ, reason="CIFAR10_DIR does not say where CIFAR-10 lies")
@pytest.mark.parametrize("text", list_weights())
def test_what_ships_scores_what_it_says(text):
    known = shipped.entries()[text]
    result = evaluate.main([text, "--data-dir", os.environ["CIFAR10_DIR"]])
    assert result["data_source"] == known.about["data_source"]
    assert result["confusion"] == known.about["metrics"]["test"]["confusion"]


def test_the_folder_is_part_of_the_package():
    configuration = Path(__file__).resolve().parents[1] / "setup.cfg"
    assert "weights/*" in configuration.read_text()
