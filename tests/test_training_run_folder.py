import os

import pytest

from resnet_tf.errors import UserError
from resnet_tf.reports.runs import describe_diff
from resnet_tf.training.run_dir import RunDir, describe_report

HOLD = """
import sys
from pathlib import Path
from resnet_tf.errors import UserError
from resnet_tf.training.run_dir import RunDir
try:
    RunDir(Path(sys.argv[1])).lock()
except UserError as error:
    print(error)
else:
    print("claimed")
"""


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def started(path):
    folder = RunDir(path)
    folder.lock()
    folder.create({"model": "resnet8_v2", "seed": 0})
    return folder


def test_naming_a_folder_makes_nothing(tmp_path):
    folder = RunDir(tmp_path / "a" / "b")
    assert folder.settings() is None
    assert folder.report() is None
    assert list(tmp_path.iterdir()) == []


def test_a_run_knows_its_settings(tmp_path):
    started(tmp_path / "a" / "b").release()
    assert RunDir(tmp_path / "a" / "b").settings() == {"model": "resnet8_v2", "seed": 0}


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path, python):
    folder = started(tmp_path / "run")
    result = python(HOLD, tmp_path / "run")
    assert f"is in use by process {os.getpid()} on " in result.stdout
    assert "run_dir=…" in result.stdout
    result = python(HOLD, tmp_path / "run")  # the first refusal has not removed the name
    assert f"process {os.getpid()}" in result.stdout
    folder.release()
    assert python(HOLD, tmp_path / "run").stdout == "claimed\n"


def test_the_lock_dies_with_its_process(tmp_path, python):
    assert python(HOLD, tmp_path / "run").stdout == "claimed\n"
    folder = RunDir(tmp_path / "run")
    folder.lock()
    assert f"process {os.getpid()}" in (tmp_path / "run" / "lock").read_text()
    folder.release()
    folder.release()


def test_a_second_claim_of_the_same_process_is_refused_too(tmp_path):
    folder = started(tmp_path / "run")
    with pytest.raises(UserError, match="is in use by process"):
        RunDir(tmp_path / "run").lock()
    folder.release()


def test_a_folder_of_other_things_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = content(tmp_path)
    folder = RunDir(tmp_path)
    for call in (folder.settings, folder.clear):
        with pytest.raises(UserError, match=r"not a run folder \(found thesis.tex\).*run_dir=…"):
            call()
    assert content(tmp_path) == before


def test_leavings_of_a_killed_start_are_no_foreign_files(tmp_path):
    (tmp_path / "lock").write_text("process 1")
    (tmp_path / ".new-settings.json").write_text("{")
    assert RunDir(tmp_path).settings() is None


def test_a_file_in_the_place_of_the_folder(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"cannot be read \(Not a directory\)"):
        RunDir(path).settings()
    with pytest.raises(UserError, match="cannot be written"):
        RunDir(path).lock()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\).*run_dir=…"):
        RunDir(path / "deeper").lock()
    assert path.read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "", "[1]", "\ufffd\0"])
def test_damaged_settings(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=r"settings\.json"):
        RunDir(tmp_path).settings()


def test_emptying_removes_what_runs_write_and_nothing_else(tmp_path):
    folder = started(tmp_path)
    written = ("report.json", "final.keras", "final.json", "best.keras", "iterations.bin", "metrics.csv", "log.txt")
    written += ("report.html", "confusion.png", "command.txt")
    own = ("exported.keras", "notes.md", "predictions.json")
    (tmp_path / "checkpoints").mkdir()
    for name in (*written, "checkpoints/step-000000005.npz", "checkpoints/.new-step-000000006.npz"):
        (tmp_path / name).write_text("x")
    for name in own:
        (tmp_path / name).write_text("mine")
    folder.clear()
    assert sorted(map(str, content(tmp_path))) == sorted((*own, "lock"))
    folder.release()


def test_an_interrupted_emptying_leaves_a_run(tmp_path, monkeypatch):
    folder = started(tmp_path)
    for name in ("report.json", "final.keras", "metrics.csv"):
        (tmp_path / name).write_text("x")
    original = type(tmp_path).unlink

    def die(path, *arguments, **options):
        if path.name == "metrics.csv":
            raise KeyboardInterrupt
        original(path, *arguments, **options)

    monkeypatch.setattr(type(tmp_path), "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        folder.clear()
    monkeypatch.undo()
    assert folder.settings() is not None
    assert folder.report() is None  # so that nobody takes the rest for a finished run
    folder.clear()
    folder.release()


def test_the_log_outlives_a_folder_that_refuses(tmp_path):
    folder = started(tmp_path / "run")
    folder.log("first")
    folder.log("second: ü")
    lines = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["first", "second: ü"]
    (tmp_path / "run" / "log.txt").unlink()
    (tmp_path / "run" / "log.txt").mkdir()
    folder.log("third")  # no exception
    folder.release()


def test_difference_of_settings():
    assert describe_diff({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}) == ""
    assert describe_diff({"a": 1}, {"a": 2}) == "a is 1 there, 2 here"
    assert describe_diff({"a": 1}, {"b": "x"}) == 'a is 1 there, null here; b is null there, "x" here'
    many = describe_diff(dict.fromkeys("abcdef", 1), dict.fromkeys("abcdef", 2))
    assert many.count(";") == 3
    assert len(describe_diff({"a": "x" * 1_000}, {})) < 120


def test_a_report_of_before_validation_accuracies_were_written(tmp_path):
    line = describe_report({"iterations": 3, "test": None, "training": {}}, tmp_path)
    assert line == "no test images and no validation images: nothing is known of its accuracy after 3 iterations"
