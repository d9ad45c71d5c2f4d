import csv
import dataclasses
import json
import re
import sys
from itertools import pairwise

import numpy as np
import pytest

from resnet_tf.cli import evaluate
from resnet_tf.errors import UserError
from resnet_tf.reports.html import write_report
from resnet_tf.reports.metrics import Predictions

TRUE = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0])
PREDICTED = np.array([0, 0, 1, 2, 1, 1, 0, 2, 2, 2, 1, 2, 0, 2])
NUMBERS = {"loss": 1.25, "top1": 9 / 14, "top5": 1.0, "images": 14, "data_source": "made up"}


@pytest.fixture
def said():
    return Predictions(TRUE, PREDICTED, np.full(14, 0.75), ("ant", "bee & <co>", "cat"))


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def test_the_report_of_made_up_predictions(tmp_path, said):
    report = write_report(tmp_path / "new" / "report", said, images(14), NUMBERS, title="A title")
    folder = tmp_path / "new" / "report"
    rows = list(csv.reader((folder / "per_class.csv").open()))
    assert rows[0] == ["class", "precision", "recall", "f1", "support"]
    # ant: predicted 4 times, right 3 times, of 6.
    assert rows[1] == ["ant", "0.750000", "0.500000", "0.600000", "6"]
    assert report == json.loads((folder / "report.json").read_text())
    assert report["calibration_error"] == pytest.approx(abs(9 / 14 - 0.75))
    assert report["classes"][2] == {"class": "cat", "precision": 4 / 6, "recall": 0.8, "f1": 8 / 11, "support": 5}


def test_the_page_stands_alone(tmp_path, said):
    write_report(tmp_path, said, images(14), NUMBERS, title="A <title>")
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in page
    assert "bee &amp; &lt;co&gt;" in page
    assert not re.search(r"https?:|<script|<link|@import", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page))
    assert "64.29 %" in page
    assert "<td>ant</td><td>cat</td><td>2</td>" in page


def test_pictures_are_in_the_page(tmp_path, said):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    write_report(tmp_path, said, images(14), NUMBERS, title="t", more_pictures=[("More", tmp_path / "confusion.png")])
    for name in ("confusion", "examples", "calibration"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").read_text().count("<img ") == 4


def test_names_that_matplotlib_would_read_as_formulas(tmp_path, said):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    odd = dataclasses.replace(said, class_names=("$^$", "$1 and $2", r"a\b$$"))
    write_report(tmp_path, odd, images(14), NUMBERS, title="$^$")
    assert (tmp_path / "confusion.png").exists()


def test_cells_of_the_confusion_matrix(said):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports.plots import draw_confusion

    counts, shares = draw_confusion(said.confusion(), said.class_names).axes
    assert [text.get_text() for text in counts.texts] == ["3", "1", "2", "1", "2", "0", "0", "1", "4"]
    assert shares.texts[0].get_text() == "50.0"
    assert [label.get_text() for label in counts.get_yticklabels()] == list(said.class_names)
    assert (counts.get_xlabel(), counts.get_ylabel()) == ("predicted class", "true class")


def test_a_hundred_classes_are_all_named():
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports.plots import draw_confusion

    names = [f"class {i}" for i in range(100)]
    made = draw_confusion(np.eye(100, dtype=int) * 90, names)
    made.canvas.draw()
    for axes in made.axes:
        labels = axes.get_yticklabels()
        assert [label.get_text() for label in labels] == names
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.mark.parametrize(("choice", "expected"), [("wrong", "ant 75 %\nis cat"), ("right", "ant 75 %\nright")])
def test_captions_of_examples(said, choice, expected):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports.plots import draw_examples

    titles = [axes.get_title() for axes in draw_examples(images(14), said, choice).axes]
    assert len([title for title in titles if title]) == (5 if choice == "wrong" else 9)
    assert ("cat 75 %\nis ant" if choice == "wrong" else expected) in titles


def test_no_wrong_example_is_no_error(said):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports.plots import draw_examples

    perfect = Predictions(TRUE, TRUE, said.confidences, said.class_names)
    assert "there are none" in draw_examples(images(14), perfect, "wrong").get_suptitle()


def test_reliability_diagram_shows_the_bins(said):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports.plots import draw_calibration

    upper, lower = draw_calibration(said).axes
    assert "10.71 %" in upper.get_title()
    assert [bar.get_height() for bar in upper.patches] == [pytest.approx(9 / 14)]
    assert max(bar.get_height() for bar in lower.patches) == 100


def test_evaluate_writes_a_report(finished_run, small_data, tmp_path, capsys):
    folder, _, finished = finished_run
    result = evaluate.main([str(folder), "--report", str(tmp_path / "r"), "--examples", "random"])
    assert "report in" in capsys.readouterr().out
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["top1"] == result["top1"] == finished["test"]["top1"]
    assert sum(row["support"] for row in report["classes"]) == 40


def test_without_matplotlib_the_tables_are_written(finished_run, small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    evaluate.main([str(finished_run[0]), "--report", str(tmp_path)])
    assert capsys.readouterr().out.count("pip install 'resnet_tf[plots]'") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["per_class.csv", "report.html", "report.json"]


def test_a_report_that_cannot_be_written(finished_run, small_data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="report="):
        evaluate.main([str(finished_run[0]), "--report", str(tmp_path / "file")])
