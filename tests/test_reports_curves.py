import dataclasses
import shutil

import numpy as np
import pytest

import resnet_tf
from resnet_tf.errors import UserError
from resnet_tf.reports.curves import TrainingHistory, envelope, find_drops, smooth
from resnet_tf.training import callbacks, logs

pytestmark = pytest.mark.pictures


def made_up_history(iterations=400, steps_per_epoch=100):
    learning_rates = np.where(np.arange(iterations) < 200, 0.1, np.where(np.arange(iterations) < 300, 0.01, 0.001))
    history = [
        {
            "iteration": step,
            "train_accuracy": 0.5,
            "validation_loss": 1.5,
            "validation_accuracy": step / 1000,
            "train_eval_accuracy": None,
        }
        for step in range(steps_per_epoch, iterations + 1, steps_per_epoch)
    ]
    return TrainingHistory("a run", np.linspace(2, 1, iterations), learning_rates, history, steps_per_epoch)


def test_drops_of_a_piecewise_schedule():
    assert find_drops(made_up_history().learning_rates) == [200, 300]


def test_a_sliding_schedule_has_no_drops():
    assert find_drops(np.linspace(0.1, 0, 100)) == []
    assert find_drops(np.concatenate([np.full(10, 0.01), np.full(10, 0.1)])) == []


def test_smoothing_by_hand():
    positions, means = smooth(np.array([1.0, 2.0, 6.0, 4.0]), 2)
    assert positions.tolist() == [1.5, 2.5, 3.5]
    assert means.tolist() == [1.5, 4.0, 5.0]
    assert smooth(np.array([3.0]), 5)[1].tolist() == [3.0]
    assert smooth(np.array([]), 5)[1].tolist() == []


def test_the_envelope_keeps_every_peak():
    values = np.ones(10_001)
    values[[17, 5000, 10_000]] = 9.0, -4.0, 7.0
    positions, drawn = envelope(values, 100)
    assert len(positions) == len(drawn) == 200
    assert set(drawn) == {1.0, 9.0, -4.0, 7.0}
    assert envelope(np.array([5.0, 6.0]), 100)[0].tolist() == [1.0, 2.0]


def test_the_history_of_a_run_folder(finished_run):
    folder, _, report = finished_run
    read = logs.read_history(folder)
    assert len(read.losses) == len(read.learning_rates) == report["iterations"] == 12
    assert read.steps_per_epoch == report["steps_per_epoch"] == 11
    # he2016 shortened to 12 iterations: 0.01 for the warm-up, then 0.1, tenths from 6 and 9 on.
    np.testing.assert_allclose(read.learning_rates, [0.01, *[0.1] * 5, *[0.01] * 3, *[0.001] * 3])
    assert find_drops(read.learning_rates) == [6, 9]
    assert read.column("validation_accuracy")[0][-1] == 12


def test_rates_that_feedback_changed_come_from_the_rows():
    settings = {"recipe.name": "x", "recipe.schedule": "plateau", "recipe.iterations": 6, "recipe.learning_rate": 0.1}
    rows = [{"iteration": 4, "learning_rate": 0.1}, {"iteration": 6, "learning_rate": 0.01}]
    assert logs._learning_rates(settings, rows, 4).tolist() == [0.1, 0.1, 0.1, 0.1, 0.01, 0.01]


def test_the_history_of_a_run_at_the_beginning_of_a_long_epoch(finished_run, tmp_path):
    """One iteration of 40,000 is an epoch of 0.000025, written as 0.0."""
    for name in ("settings.json", "metrics.csv"):
        shutil.copy(finished_run[0] / name, tmp_path)
    header, row, *_ = (tmp_path / "metrics.csv").read_text().splitlines()
    early = {"iteration": "1", "epoch": "0.0", "learning_rate": "0.01"}
    fields = dict(zip(header.split(","), row.split(","), strict=True)) | early
    (tmp_path / "metrics.csv").write_text(f"{header}\n{','.join(fields.values())}\n")
    assert logs.read_history(tmp_path).learning_rates.tolist() == [0.01]


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        logs.read_history(tmp_path)


def test_a_run_whose_name_looks_like_a_formula(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports import curves, plots

    odd = dataclasses.replace(made_up_history(), name="$^$")
    for made in (curves.draw_curves(odd), curves.draw_comparison([odd])):
        plots.save(made, tmp_path / "made.png")


def test_what_the_figure_shows():
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports.curves import draw_curves

    loss, accuracy, rate = draw_curves(made_up_history()).axes
    assert "nats" in loss.get_ylabel()
    assert (accuracy.get_ylabel(), rate.get_ylabel(), rate.get_xlabel()) == (
        "accuracy (%)",
        "learning rate",
        "iteration",
    )
    above = loss.child_axes[0]
    assert above.get_xlabel() == "epoch"
    assert above._functions[0](250) == 2.5
    for axes in (loss, accuracy, rate):
        assert [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]] == [200, 300]
    assert [text.get_text() for text in rate.texts] == ["drop at 200", "drop at 300"]
    validation = next(line for line in accuracy.lines if line.get_label() == "validation")
    np.testing.assert_allclose(validation.get_ydata(), [10, 20, 30, 40])
    styles = [(line.get_linestyle(), line.get_marker()) for line in accuracy.lines[:2]]
    assert len(set(styles)) == 2  # told apart without color


def test_curves_are_drawn_during_training(train, tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    train(tmp_path / "run", "--iterations", "3", "--eval-every", "1")
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_no_curves_are_drawn_where_nobody_can_see_them(monkeypatch, shapes, capsys):
    figures = pytest.importorskip("matplotlib.figure", reason="needs the extra plots")
    monkeypatch.setattr(figures.Figure, "savefig", None)
    resnet_tf.train("resnet8_v2", shapes, iterations=1)
    assert "could not be made" not in capsys.readouterr().out


def test_without_matplotlib_it_trains_and_says_so_once(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    report = train(tmp_path / "run", "--iterations", "3", "--eval-every", "1")
    assert report["iterations"] == 3
    out = capsys.readouterr().out
    assert out.count("pip install 'resnet_tf[plots]'") == 1
    assert not list((tmp_path / "run").glob("curves*"))


def test_a_failing_watcher_is_named_once_and_the_others_go_on():
    said, seen = [], []

    def broken(rows):
        raise RuntimeError("no ink")

    look = callbacks.Callbacks({"the picture": broken, "the list": seen.append}, said.append)
    look([1])
    look([1, 2])
    assert seen == [[1], [1, 2]]
    assert len(said) == 1
    assert "the picture could not be made (no ink)" in said[0]


def test_drawing_takes_a_small_share_of_the_time(monkeypatch, tmp_path, finished_run):
    figures = pytest.importorskip("matplotlib.figure", reason="needs the extra plots")
    for name in ("settings.json", "metrics.csv"):
        shutil.copy(finished_run[0] / name, tmp_path)
    now = [0.0]
    drawn = []
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def draw(made, path, **options):
        path.write_bytes(b"")
        if path.suffix == ".png":
            drawn.append(now[0])
            now[0] += 1.0

    monkeypatch.setattr(figures.Figure, "savefig", draw)
    steps = iter(range(1, 101))
    drawer = callbacks.CurveDrawer(tmp_path)
    for step in steps:
        now[0] += 10.0
        drawer([{"iteration": step}])
    assert drawn[0] == 10.0
    assert np.diff(drawn).min() >= 50
