import json
import shlex
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import resnet_tf
from resnet_tf.cli import tune
from resnet_tf.cli.train import parse_options
from resnet_tf.config import make_config
from resnet_tf.data.image_io import cv2
from resnet_tf.errors import UserError
from resnet_tf.training.run_dir import RunDir

KILLED = """
import os, signal, sys
from pathlib import Path
from resnet_tf.tuning import SearchSpace, open_study, run_study

def objective(number, chosen, report):
    print(number, chosen["learning_rate"], flush=True)
    if number == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return chosen["learning_rate"]

study = open_study(Path(sys.argv[1]), 0)
run_study(study, SearchSpace(width=(1, 2)), 8, objective)
print("done", len([t for t in study.trials if t.state.name == "COMPLETE"]))
"""


def test_a_missing_package_names_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'resnet_tf\[tune\]'"):
        tune.main(["--trials", "1", "--study-dir", str(tmp_path / "study")])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trials", "0"], "1 or more"),
        (["--trials", "1", "--learning-rate", "1,0.1"], "no range"),
        (["--trials", "1", "--recipe", "tutorial"], "no validation"),
        (["--trials", "1", "--model", "nothing"], "not known"),
        (["--trials", "1", "--dataset", "nothing"], "not known"),
    ],
)
def test_what_is_refused(flags, message, tmp_path):
    pytest.importorskip("optuna", reason="needs the extra tune")
    with pytest.raises(UserError, match=message):
        tune.main([*flags, "--study-dir", str(tmp_path / "study")])
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_study(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra tune")
    (tmp_path / "study").write_text("mine")
    with pytest.raises(
        UserError, match=r"^study folder .* cannot be read \(Not a directory\); give another study_dir=…$"
    ):
        tune.main(["--trials", "1", "--study-dir", str(tmp_path / "study")])
    assert (tmp_path / "study").read_text() == "mine"


def test_a_killed_study_loses_no_finished_trial(python, tmp_path):
    optuna = pytest.importorskip("optuna", reason="needs the extra tune")
    killed = python(KILLED, tmp_path / "study.db", 3)
    assert killed.returncode == -9
    assert [line.split()[0] for line in killed.stdout.splitlines()] == ["0", "1", "2", "3"]
    resumed = python(KILLED, tmp_path / "study.db", -1)
    assert resumed.stdout.splitlines()[-1] == "done 8", resumed.stderr
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{tmp_path / 'study.db'}")
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 5
    tried = [line.split()[1] for line in (killed.stdout + resumed.stdout).splitlines() if line[0].isdigit()]
    assert tried[4] == tried[3]  # what was under way is tried again
    assert len(set(tried)) == len(tried) - 1  # and nothing else is


def test_the_median_prunes(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra tune")
    from resnet_tf.tuning import SearchSpace, finished, open_study, run_study

    study = open_study(tmp_path / "study.db", 0)

    def objective(number, chosen, report):
        good = number < 5
        gave_up = [report(0.9 if good else 0.1, epoch) for epoch in range(1, 4)]
        return None if any(gave_up) else 0.9

    run_study(study, SearchSpace(), 6, objective)
    assert [trial.state.name for trial in finished(study)] == ["COMPLETE"] * 5 + ["PRUNED"]


def test_a_search_ends_in_a_train_command(small_data, tmp_path, capsys):
    pytest.importorskip("optuna", reason="needs the extra tune")
    flags = ["--trials", "2", "--dataset", "shapes", "--model", "resnet8_v2", "--epochs", "1", "--batch-size", "16,32"]
    flags += ["--device", "cpu", "--study-dir", str(tmp_path / "study")]
    result = tune.main(flags)
    assert result["trials"] == 2
    parts = result["command"].split()
    assert parts[:2] == ["resnet-tf", "train"]
    config = make_config(**parse_options(parts[2:]))
    assert config.recipe.learning_rate == result["settings"]["learning_rate"]
    assert (config.recipe.epochs, config.model, config.dataset) == (1.0, "resnet8_v2", "shapes")
    # The trials were trained with the very same settings, and have no test result.
    reports = [json.loads(path.read_text()) for path in (tmp_path / "study").glob("trial*/report.json")]
    assert [report["test"] for report in reports] == [None, None]
    assert "going on after" not in capsys.readouterr().out
    assert tune.main(flags) == result
    assert "going on after 2 finished trials" in capsys.readouterr().out
    with pytest.raises(UserError, match="another search"):
        tune.main([*flags, "--width", "1,2"])
    first = RunDir(tmp_path / "study")
    first.lock()
    with pytest.raises(UserError, match="is in use by process"):
        tune.main(flags)
    first.release()


def test_a_search_on_image_files(tmp_path):
    pytest.importorskip("optuna", reason="needs the extra tune")
    rng = np.random.default_rng(0)
    for index in range(20):
        folder = tmp_path / "pets" / "train" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (32, 32, 3), np.uint8))
    flags = ["--trials", "1", "--dataset", f"folder:{tmp_path / 'pets'}", "--model", "resnet8_v2", "--epochs", "1"]
    flags += ["--batch-size", "9", "--device", "cpu", "--study-dir", str(tmp_path / "study")]
    result = tune.main(flags)
    assert parse_options(shlex.split(result["command"])[2:])["dataset"] == f"folder:{tmp_path / 'pets'}"
    (report,) = (json.loads(path.read_text()) for path in (tmp_path / "study").glob("trial*/report.json"))
    assert not list((tmp_path / "study").glob("trial*/report.html"))  # nobody looks at each trial
    assert (report["validation_images"], report["test"]) == (2, None)
    assert report["training"]["last_validation_accuracy"] == result["accuracy"]


def test_a_search_on_arrays_goes_on_by_the_same_call(tmp_path, shapes, capsys):
    pytest.importorskip("optuna", reason="needs the extra tune")
    arrays = shapes.train.images, shapes.train.labels
    lines = []

    def search(data=arrays, trials=1, recipe="quick", **options):
        where = {"study_dir": tmp_path / "study", "batch_size": (32,), "verbose": False, "log": lines.append}
        return resnet_tf.tune("resnet8_v2", data, trials=trials, recipe=recipe, epochs=1, **where, **options)

    found = search()
    assert search() == found
    assert search(trials=2).trials == 2
    assert lines.count("going on after 1 finished trials") == 2
    assert capsys.readouterr().out == ""
    others = 255 - arrays[0], arrays[1]
    for change in ({"data": others}, {"recipe": resnet_tf.RECIPES["quick"]}):
        with pytest.raises(UserError, match="belongs to another search: "):
            search(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": keras.Sequential()}, r"model is Sequential; expected a name of list_models\(\)"),
        ({"data": tf.data.Dataset.range(3)}, "a tf.data.Dataset has no part to hold out"),
        ({"data": np.zeros(3)}, r"data is ndarray; expected \(images, labels\)"),
        ({"validation": 3}, r"^validation=… is for train\(\) itself; leave it out$"),
        ({"recipe": {"epochs": 3}}, "recipe {'epochs': 3} is not known"),
    ],
)
def test_a_search_of_what_cannot_be_searched(tmp_path, change, message):
    pytest.importorskip("optuna", reason="needs the extra tune")
    with pytest.raises(UserError, match=message):
        resnet_tf.tune(
            **{"model": "resnet8_v2", "data": "shapes", "study_dir": tmp_path / "study", "trials": 1, **change}
        )
    assert not list(tmp_path.iterdir())
