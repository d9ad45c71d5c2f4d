import csv
import dataclasses
import json
import os
import re
import shutil
import signal

import keras
import numpy as np
import pytest

from resnet_tf import __version__
from resnet_tf.cli.main import COMMANDS
from resnet_tf.cli.train import main
from resnet_tf.errors import UserError
from resnet_tf.training import checkpoint
from resnet_tf.training.logs import COLUMNS, read_iterations, read_metrics
from tests.conftest import TINY, exit_code, stopping_after

TIMES = ("images_per_second", "evaluation_seconds", "seconds")


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_what_a_run_leaves_behind(finished_run):
    folder, _, report = finished_run
    assert {
        *("settings.json", "log.txt", "iterations.bin", "metrics.csv", "metrics.jsonl", "report.json"),
        *("final.keras", "final.json", "best.keras", "best.json"),
        *(f"checkpoints/step-0000000{step}.{kind}" for step in (10, 12) for kind in ("npz", "sha256")),
    } <= files(folder)
    assert not any(".new-" in name for name in files(folder))
    assert json.loads((folder / "report.json").read_text()) == report
    settings = json.loads((folder / "settings.json").read_text())
    assert settings["model"] == "resnet8_v2"
    assert settings["recipe.name"] == "he2016"
    assert (settings["recipe.iterations"], settings["recipe.batch_size"]) == (12, 16)
    assert (settings["precision"], settings["seed"]) == ("float32", 0)
    assert len(read_iterations(folder / "iterations.bin")) == 12
    with pytest.raises(UserError, match=r"report\.txt does not exist; give the iterations\.bin of a run folder"):
        read_iterations(folder / "report.txt")


def test_what_a_report_says(finished_run):
    folder, _, report = finished_run
    assert (report["iterations"], report["steps_per_epoch"]) == (12, 11)
    assert (report["train_images"], report["validation_images"]) == (180, 20)
    assert report["parameters"] == 75_290  # the published 269,722 of 20 layers less twice 97,216, a unit of each stage
    assert report["test"]["images"] == 40
    assert report["versions"]["resnet_tf"] == __version__
    best = max(float(row["validation_accuracy"]) for row in metrics(folder))
    assert report["best"]["validation_accuracy"] == best
    assert report["best"]["test"]["images"] == 40


def test_the_metrics_have_a_row_per_evaluation(finished_run):
    folder, _, _ = finished_run
    rows = metrics(folder)
    assert set(COLUMNS) == set(rows[0])
    assert [row["iteration"] for row in rows] == ["5", "10", "12"]
    assert [float(row["epoch"]) for row in rows] == pytest.approx([5 / 11, 10 / 11, 12 / 11], abs=1e-4)
    # he2016 in 12 iterations: one at 0.01, drops after 6 and 9.
    assert [float(row["learning_rate"]) for row in rows] == [0.1, 0.001, 0.001]
    log = read_iterations(folder / "iterations.bin")
    for row, part in zip(rows, (slice(0, 5), slice(5, 10), slice(10, 12)), strict=True):
        for name in ("loss", "l2", "accuracy"):
            assert float(row[f"train_{name}"]) == pytest.approx(log[name][part].mean(), rel=1e-6)
        assert 0 <= float(row["validation_accuracy"]) <= 1
        assert float(row["validation_loss"]) > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [5, 10, 12]


def test_the_saved_model_is_a_plain_float32_one_with_a_sidecar(finished_run, shapes):
    folder, _, report = finished_run
    model = keras.models.load_model(folder / "final.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    sidecar = json.loads((folder / "final.json").read_text())
    assert sidecar["class_names"] == list(shapes.class_names)
    assert (sidecar["dataset"], sidecar["model"]) == ("shapes", "resnet8_v2")
    assert sidecar["recipe"]["name"] == "he2016"
    assert sidecar["metrics"] == {"test": report["test"]}
    logits = np.asarray(model(shapes.test.images)).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -np.log(shares[np.arange(40), shapes.test.labels])
    assert report["test"]["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert report["test"]["top1"] == (logits.argmax(axis=1) == shapes.test.labels).mean()


def test_normalization_comes_from_the_training_part_alone(finished_run, shapes):
    folder, _, _ = finished_run
    sidecar = json.loads((folder / "final.json").read_text())["preprocessing"]
    all_images = shapes.train.images.astype(np.float64)
    assert sidecar["mean"] == pytest.approx(all_images.mean(axis=(0, 1, 2)), abs=5)
    assert sidecar["mean"] != pytest.approx(all_images.mean(axis=(0, 1, 2)), abs=1e-6)
    layer = keras.models.load_model(folder / "final.keras").get_layer("normalization")
    pixels = np.full((1, 16, 16, 3), 100.0)
    expected = (100 - np.array(sidecar["mean"])) / np.array(sidecar["std"])
    np.testing.assert_allclose(np.asarray(layer(pixels))[0, 0, 0], expected, rtol=1e-4)


def test_the_same_command_again_prints_the_result_and_changes_nothing(finished_run, capsys):
    folder, argv, report = finished_run
    before = {name: (folder / name).stat().st_mtime_ns for name in files(folder)}
    assert main(argv) == report
    printed = capsys.readouterr().out
    assert "is finished" in printed
    assert f"test accuracy {100 * report['test']['top1']:.2f} %" in printed
    assert {name: (folder / name).stat().st_mtime_ns for name in files(folder)} == before


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (["--seed", "1"], "seed is 0 there, 1 here"),
        (["--learning-rate", "0.2"], r"recipe.learning_rate is 0.1 there, 0.2 here"),
        (["--model", "resnet14_v2"], '"resnet8_v2" there, "resnet14_v2" here'),
        (["--shortcut", "projection"], 'builder.shortcut is null there, "projection" here'),
        (["--precision", "mixed_bfloat16"], 'precision is "float32" there, "mixed_bfloat16" here'),
        (["--recipe", "he2015"], 'recipe.name is "he2016" there, "he2015" here'),
        (["--eval-every", "6"], "evaluate_every is 5 there, 6 here"),
        (["--deterministic"], "deterministic is false there, true here"),
    ],
)
def test_a_run_of_other_settings_is_refused_naming_the_difference(finished_run, flags, difference):
    folder, argv, _ = finished_run
    before = files(folder)
    with pytest.raises(UserError) as refused:
        main([*argv, *flags])
    assert difference in str(refused.value)
    assert "overwrite=True" in str(refused.value)
    assert files(folder) == before


def test_what_does_not_decide_the_result_may_differ(finished_run):
    _, argv, report = finished_run
    assert main([*argv, "--checkpoint-every", "3", "--on-nan", "rollback", "--device", "auto"]) == report


def test_evaluating_on_the_training_images(train, tmp_path):
    train(tmp_path / "run", "--iterations", "2", "--eval-train")
    row = read_metrics(tmp_path / "run")[-1]
    assert row["train_eval_loss"] > 0
    # 180 images: a fraction of another denominator would not come out whole.
    assert row["train_eval_accuracy"] * 180 == pytest.approx(round(row["train_eval_accuracy"] * 180))


def test_without_validation_images(tmp_path, train):
    folder = tmp_path / "run"
    report = train(folder, "--iterations", "3", "--eval-every", "2", "--validation-size", "0")
    assert (report["train_images"], report["validation_images"]) == (200, 0)
    assert report["steps_per_epoch"] == 12
    assert "best" not in report
    assert not any("best" in name for name in files(folder))
    rows = metrics(folder)
    assert [row["iteration"] for row in rows] == ["2", "3"]
    assert {row["validation_loss"] + row["validation_accuracy"] for row in rows} == {""}
    overwritten = train(folder, "--iterations", "2", "--validation-size", "20", "--overwrite")
    assert overwritten["iterations"] == 2
    assert overwritten["validation_images"] == 20
    assert [row["iteration"] for row in metrics(folder)] == ["2"]
    assert len(read_iterations(folder / "iterations.bin")) == 2


def outcome(folder, report):
    arrays, state, damaged = checkpoint.load_newest(folder / "checkpoints")
    assert damaged == []
    variables = {key: value.tobytes() for key, value in arrays.items()}
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in state["rows"]]
    saved = [v.numpy().tobytes() for v in keras.models.load_model(folder / "final.keras").variables]
    test = {key: value for key, value in report["test"].items() if key != "images_per_second"}
    return variables, state["step"], rows, saved, test, (folder / "iterations.bin").read_bytes()


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_stopped_in_mid_epoch_moved_and_resumed_it_ends_bit_for_bit_alike(
    tmp_path, monkeypatch, capsys, train, finished_run, policy
):
    flags = ["--iterations", "12", "--eval-every", "5", "--precision", policy]
    if policy == "float32":
        whole, _, report = finished_run
    else:
        whole = tmp_path / "whole"
        report = train(whole, *flags)
    first, moved = tmp_path / "first", tmp_path / "moved"
    with monkeypatch.context() as patch:
        stopping_after(patch, 7)
        assert train(first, *flags, "--checkpoint-every", "3") == 128 + signal.SIGTERM
    printed = capsys.readouterr().out
    assert "stopped by signal 15 after 7 iterations; resume with: resnet-tf train --model resnet8_v2 " in printed
    assert f"--run-dir {first}" in printed
    shutil.move(first, moved)
    again = train(moved, *flags, "--checkpoint-every", "100")
    assert "resuming at iteration 7 of 12" in capsys.readouterr().out
    assert outcome(moved, again) == outcome(whole, report)


def test_stopped_by_the_keyboard(tmp_path, monkeypatch, train):
    stopping_after(monkeypatch, 1, signal.SIGINT)
    assert train(tmp_path / "run", "--iterations", "3") == 130


def test_a_diverging_run_stops_and_leaves_good_checkpoints(tmp_path, small_data, capsys):
    folder = tmp_path / "run"
    flags = ["--iterations", "40", "--checkpoint-every", "1", "--learning-rate", "1e6", "--warmup", "none"]
    flags += ["--precision", "float32", "--schedule", "constant"]
    assert exit_code(["train", *TINY, "--run-dir", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert re.search(r"at iteration \d+, learning rate 1e\+06 .*--on-nan rollback", error)
    assert error.count("\n") == 1
    checkpoints = list((folder / "checkpoints").glob("*.npz"))
    for file in checkpoints:
        with np.load(file) as archive:
            assert all(np.isfinite(archive[key]).all() for key in archive.files)
    assert checkpoints
    assert not (folder / "report.json").exists()


def test_a_full_disk_at_the_end_leaves_the_run_resumable(tmp_path, monkeypatch, train):
    folder = tmp_path / "run"
    flags = ["--iterations", "2", "--validation-size", "0"]
    with monkeypatch.context() as patch:
        replace = os.replace

        def full(source, target):
            if target.name == "final.keras":
                raise OSError(28, "No space left on device")
            replace(source, target)

        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=r"No space left on device.*run the same command again"):
            train(folder, *flags)
    assert not (folder / "report.json").exists()
    report = train(folder, *flags)
    assert report["iterations"] == 2
    assert len(metrics(folder)) == 1


def test_other_data_under_the_same_name_are_refused(tmp_path, monkeypatch, train, shapes):
    folder = tmp_path / "run"
    stopping_after(monkeypatch, 1)
    train(folder, "--iterations", "3")
    changed = shapes.train.images.copy()
    changed[7, 3, 3] ^= 1
    other = dataclasses.replace(shapes, train=dataclasses.replace(shapes.train, images=changed), source="tampered")
    monkeypatch.setattr("resnet_tf.data.shapes.load_shapes", lambda: other)
    with pytest.raises(UserError, match=r"started on other data \(built-in, here tampered\)"):
        train(folder, "--iterations", "3")


def test_a_run_goes_on_with_the_threads_that_it_was_started_with(tmp_path, finished_run):
    folder = shutil.copytree(finished_run[0], tmp_path / "run")
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(settings | {"threads": 97}))
    (folder / "report.json").unlink()
    with pytest.raises(UserError, match="the number of threads cannot change to 97 in this process"):
        main([*finished_run[1], "--run-dir", str(folder)])


def test_a_foreign_folder_is_left_alone(tmp_path, train):
    (tmp_path / "thesis.tex").write_text("years of work")
    for flags in ([], ["--overwrite"]):
        with pytest.raises(UserError, match=r"not a run folder \(found thesis.tex"):
            train(tmp_path, *flags)
    assert files(tmp_path) == {"thesis.tex"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "resnet21_v2"], "--model resnet21_v2 is not known; did you mean resnet32_v2 or resnet20_v2"),
        (["--dataset", "mnist"], "--dataset mnist is not known; allowed: cifar10, cifar100, shapes"),
        (["--recipe", "he2017"], "recipe 'he2017' is not known; allowed: he2015"),
        (["--seed", "-1"], "--seed -1 is out of range"),
        (["--width", "0"], "--width 0 is out of range; allowed: 1 to"),
        (["--threads", "-2"], "--threads -2 is out of range"),
        (["--eval-every", "0"], "--eval-every 0 is out of range"),
        (["--checkpoint-every", "5x"], "--checkpoint-every 5x is not understood; allowed: iterations (500) or minutes"),
        (["--checkpoint-every", "0"], "--checkpoint-every 0 is not understood"),
        (["--checkpoint-every", "1.5"], "--checkpoint-every 1.5 is not understood"),
        (["--iterations", "0"], "--iterations 0 is out of range"),
        (["--iterations", "10", "--epochs", "2"], "--iterations and --epochs exclude each other"),
        (["--batch-size", "-5"], "--batch-size -5 is out of range"),
        (["--learning-rate", "nan"], "--learning-rate nan is out of range"),
        (["--learning-rate", "fast"], "argument --learning-rate: invalid float value: 'fast'"),
        (["--momentum", "2"], "--momentum 2.0 is out of range; allowed: 0 to 1"),
        (["--drops", "0.75,0.5"], "must rise and lie between 0 and 1"),
        (["--drops", "a,b"], "argument --drops: invalid"),
        (["--schedule", "step"], "argument --schedule: invalid choice: 'step'"),
        (["--schedule", "plateau", "--validation-size", "0"], "needs validation images"),
        (["--shortcut", "B"], "argument --shortcut: invalid choice: 'B'"),
        (["--precision", "float16"], "argument --precision: invalid choice: 'float16'"),
        (["--iter", "10"], "unrecognized arguments: --iter 10"),
        (["more"], "unrecognized arguments: more"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    code = exit_code(["train", "--dataset", "shapes", *flags])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.startswith("resnet-tf")
    assert ": error: " in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device", "tpu"], "device='tpu' is not known; allowed: auto, cpu, gpu"),
        (["--device", "gpu:99"], "device='gpu:99': TensorFlow sees"),
        (["--batch-size", "181"], "181"),
        (["--validation-size", "200"], "200"),
        (["--validation-size", "0.001"], "less than one image"),
        (["--threads", "97"], "the number of threads cannot change to 97 in this process"),
    ],
)
def test_what_only_the_data_or_the_machine_can_tell(tmp_path, train, flags, message):
    with pytest.raises(UserError) as refused:
        train(tmp_path / "run", *flags)
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_of_a_process(command, tmp_path):
    result = command("train", "--model", "resnet9_v9", "--run-dir", tmp_path / "run")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "Traceback" not in result.stderr
    result = command("train", "--width", "wide", "--run-dir", tmp_path / "run")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    result = command("train", "--dataset", "shapes", "--run-dir", tmp_path / "run", KERAS_BACKEND="jax")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "set KERAS_BACKEND=tensorflow" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_lists(capsys):
    assert main(["--list-recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in ("he2015", "he2016", "tutorial", "quarter", "quick"))
    assert "momentum=0.9" in printed
    # 64,000 batches of 128 images at 1,900 images/s; 20 epochs of 351 batches.
    assert "about 72 minutes; measured: 12.9 % error on a JPEG copy of CIFAR-10 (resnet20_v1, one seed)" in printed
    assert "about 8 minutes; measured" in printed.partition("\nquick: ")[2]
    assert main(["--list-models"]) == 0
    assert {"resnet20_v1", "resnet164_v2", "plain56"} <= set(capsys.readouterr().out.split())


HELP = """
import contextlib, io, sys
from resnet_tf.cli.main import COMMANDS, main
for arguments in ([], ["--version"], *([name] for name in COMMANDS)):
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            main([*arguments, "--help"])
        except SystemExit as end:
            assert end.code == 0, arguments
    assert "resnet-tf" in text.getvalue(), arguments
    heavy = {"tensorflow", "keras", "cv2", "matplotlib"} & sys.modules.keys()
    assert not heavy, (arguments, heavy)
print("light")
"""


def test_help_imports_nothing_heavy(python):
    result = python(HELP)
    assert (result.stdout, result.stderr, result.returncode) == ("light\n", "", 0)
    assert {"train", "evaluate"} <= COMMANDS.keys()
