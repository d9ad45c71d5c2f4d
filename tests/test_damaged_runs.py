"""Runs that lost something, or hold a file that is whole and wrong: they end as an undisturbed one, or say why."""

import json
import shutil

import numpy as np
import pytest

from resnet_tf.cli.main import main
from resnet_tf.errors import UserError
from resnet_tf.files import sha256_of, write_json
from resnet_tf.models.registry import build_model
from resnet_tf.saving import write_keras
from resnet_tf.training.run_dir import RunDir
from tests.chaos.harness import digests


@pytest.fixture
def unreported(finished_run, tmp_path, small_data):
    """A copy of a run of 12 iterations that was killed before its report, and what goes on with it."""
    folder = tmp_path / "finished"
    shutil.copytree(finished_run[0], folder)
    for name in ("report.json", "final.keras", "final.json"):
        (folder / name).unlink()
    argv = list(finished_run[1])
    argv[argv.index("--run-dir") + 1] = str(folder)
    return folder, ["train", *argv]


def without_pictures_of(folder):
    """The digests of a run's files but of those that need matplotlib, which only some tests have."""
    return {name: digest for name, digest in digests(folder).items() if not name.endswith((".html", ".png", ".pdf"))}


@pytest.mark.pictures
def test_killed_after_the_last_evaluation(unreported, finished_run):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    folder, argv = unreported
    for path in folder.glob("curves.*"):
        path.unlink()
    assert main(argv) == 0
    assert without_pictures_of(folder) == without_pictures_of(finished_run[0])
    assert all((folder / f"curves.{suffix}").stat().st_size > 1000 for suffix in ("png", "pdf"))
    assert (folder / "final.keras").read_bytes() == (finished_run[0] / "final.keras").read_bytes()


@pytest.mark.parametrize("records", [11, 10])
def test_a_log_cut_short(unreported, finished_run, capsys, records):
    folder, argv = unreported
    with open(folder / "iterations.bin", "r+b") as file:
        file.truncate(12 * records)
    assert main(argv) == 0
    assert "step-000000012.npz is damaged; going back to iteration 10" in capsys.readouterr().out
    assert without_pictures_of(folder) == without_pictures_of(finished_run[0])


def test_a_log_that_no_checkpoint_goes_with(unreported, capsys):
    folder, argv = unreported
    with open(folder / "iterations.bin", "r+b") as file:
        file.truncate(12 * 9)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "iterations.bin holds fewer than the 12 records that it counts on" in err
    assert "--overwrite" in err


def state_of(arrays):
    return json.loads(arrays["state.json"].tobytes())


def without(arrays, state):
    del arrays[min(arrays)]


def added(arrays, state):
    arrays["more"] = np.zeros(3, np.float32)


def misshapen(arrays, state):
    key = max(arrays, key=lambda key: arrays[key].size)
    arrays[key] = arrays[key].ravel()


def mistyped(arrays, state):
    key = max(arrays, key=lambda key: arrays[key].size)
    arrays[key] = arrays[key].astype(np.float64)


def empty_state(arrays, state):
    state.clear()


def other_step(arrays, state):
    state["step"] = 3


def no_schedule(arrays, state):
    state["schedule"] = {"warm": 1}


def rows_of_texts(arrays, state):
    state["rows"] = ["row"]


def rows_in_another_order(arrays, state):
    state["rows"].reverse()


def no_totals(arrays, state):
    state["since"] = None


WRONG = [without, added, misshapen, mistyped, empty_state, other_step, no_schedule, rows_of_texts, no_totals]
WRONG += [rows_in_another_order]


@pytest.mark.parametrize("change", WRONG)
def test_a_checkpoint_that_is_whole_and_wrong(unreported, finished_run, capsys, change):
    folder, argv = unreported
    path = folder / "checkpoints" / "step-000000012.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    state = state_of(arrays)
    change(arrays, state)
    arrays["state.json"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    np.savez(path, **arrays)
    path.with_suffix(".sha256").write_text(sha256_of(path))
    assert main(argv) == 0
    assert "step-000000012.npz is damaged; going back to iteration 10" in capsys.readouterr().out
    assert without_pictures_of(folder) == without_pictures_of(finished_run[0])


def test_a_damaged_best_model_names_a_way_out(unreported, capsys):
    folder, argv = unreported
    (folder / "best.keras").write_bytes(b"PK")
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert "best.keras cannot be loaded" in err
    assert "put a copy back, or remove it" in err
    (folder / "best.keras").unlink()
    assert main(argv) == 0
    assert "best" not in json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("left", [["command.txt"], ["checkpoints", "tensorboard"]])
def test_what_a_killed_start_leaves_is_no_foreign_file(tmp_path, left):
    for name in left:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("resnet-tf train\n")
    assert RunDir(tmp_path).settings() is None
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "checkpoints" / "model.ckpt").write_text("mine")
    with pytest.raises(UserError, match="is not a run folder"):
        RunDir(tmp_path).settings()


def test_settings_of_wrong_types_are_no_run_to_go_on_with(finished_run, tmp_path, capsys):
    for name, key, value in (("settings.json", "recipe.drops", 3), ("report.json", "test", [])):
        folder = tmp_path / name
        shutil.copytree(finished_run[0], folder)
        write_json(folder / name, json.loads((folder / name).read_text()) | {key: value})
        argv = list(finished_run[1])
        argv[argv.index("--run-dir") + 1] = str(folder)
        assert main(["train", *argv]) == 2
        err = capsys.readouterr().err
        assert f"as {key}" in err
        assert err.count("\n") == 1


def test_a_model_file_depends_on_nothing_but_the_model(tmp_path):
    kept = [build_model("resnet8_v2") for _ in range(2)]
    kept[1].set_weights(kept[0].get_weights())
    for number, model in enumerate(kept):
        write_keras(model, tmp_path / f"{number}.keras")
    assert (tmp_path / "0.keras").read_bytes() == (tmp_path / "1.keras").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.keras", "1.keras"]
