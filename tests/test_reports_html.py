import base64
import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from resnet_tf.cli import evaluate
from resnet_tf.errors import UserError
from resnet_tf.reports.html import write_report
from resnet_tf.reports.metrics import Predictions

pytestmark = pytest.mark.pictures

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
    assert "64.29\N{NO-BREAK SPACE}%" in page
    assert "<td>ant</td><td>cat</td><td>2</td>" in page


def test_pictures_are_in_the_page(tmp_path, said):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    write_report(tmp_path, said, images(14), NUMBERS, title="t", more_pictures=[("More", tmp_path / "confusion.png")])
    for name in ("confusion", "examples", "calibration"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<div class="charts"><img ') == 3
    assert page.count("<img ") == 2 + 1 + 1 + 5  # two matrices, calibration, More, and the five mistakes


def test_examples_are_in_the_page_in_their_colors(tmp_path, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # these need none
    orange = np.full((14, 8, 8, 3), (255, 128, 0), np.uint8)
    write_report(tmp_path, said, orange, NUMBERS, title="t")
    figures = re.findall(r'base64,([^"]*)"><figcaption>([^<]*)<', (tmp_path / "report.html").read_text())
    assert len(figures) == 5
    assert "cat 75\xa0%\nis ant" in [caption for _, caption in figures]
    photographs = np.full((14, 120, 160, 3), (255, 128, 0), np.uint8)
    write_report(tmp_path / "large", said, photographs, NUMBERS, title="t")
    assert (tmp_path / "large" / "report.html").read_text().count("data:image/jpeg;base64,/9j/") == 5
    keras = pytest.importorskip("keras")
    (tmp_path / "one.png").write_bytes(base64.b64decode(figures[0][0]))
    assert np.array_equal(keras.utils.img_to_array(keras.utils.load_img(tmp_path / "one.png")), orange[0])


def test_the_head_of_the_page(tmp_path, said):
    about = {"network": "resnet8_v2", "command": "resnet-tf train --dataset folder:<pets>"}
    write_report(tmp_path, said, images(14), NUMBERS, title="runs/first", about=about)
    page = (tmp_path / "report.html").read_text()
    assert "<title>runs/first</title>" in page
    assert "<h1>runs/first</h1>" in page
    assert "<dt>command</dt><dd>resnet-tf train --dataset folder:&lt;pets&gt;</dd>" in page
    assert re.search(r"<dt>date</dt><dd>20\d\d-\d\d-\d\d", page)
    assert "top-5" not in page  # of three classes, it says nothing
    six = dataclasses.replace(said, class_names=tuple("abcdef"))
    write_report(tmp_path, six, images(14), NUMBERS, title="six")
    assert "top-5" in (tmp_path / "report.html").read_text()


MEASURE = """<body><iframe src="report.html" width="390"></iframe><iframe src="report.html" width="1280"></iframe>
<script>
onload = () => { document.body.innerHTML = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentDocument, [first, second] = page.querySelectorAll(".charts img");
  const lines = cell => { const all = page.createRange();
    all.selectNodeContents(cell); return all.getClientRects().length };
  const percents = [...page.querySelectorAll("td, b")].filter(cell => cell.textContent.includes("%"));
  return { overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    below: second.offsetTop >= first.offsetTop + first.height, size: first.width,
    wrapped: percents.filter(cell => lines(cell) > 1).length, percents: percents.length,
    background: frame.contentWindow.getComputedStyle(page.body).backgroundColor } })) }
</script>"""


@pytest.mark.parametrize(("scheme", "background"), [(0, "rgb(24, 24, 24)"), (1, "rgb(255, 255, 255)")])
def test_the_page_in_a_browser(scheme, background, tmp_path, said):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    names = ("ant", "a class with an extraordinarilylongnamewithoutabreak" * 2, "cat")
    about = {"command": "resnet-tf train --dataset folder:" + "/home/somebody" * 20}
    title = "runs/" + "a-very-long-name-of-a-run" * 8
    write_report(tmp_path, dataclasses.replace(said, class_names=names), images(14), NUMBERS, title=title, about=about)
    (tmp_path / "measure.html").write_text(MEASURE)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    flags += [f"--blink-settings=preferredColorScheme={scheme}", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([browser, *flags, (tmp_path / "measure.html").as_uri()], capture_output=True, text=True)
    narrow, wide = json.loads(re.search(r"\[\{.*\}\]", dom.stdout)[0])
    for page in (narrow, wide):
        assert page["overflow"] == 0
        assert page["wrapped"] == 0 < page["percents"]
        assert page["background"] == background
    assert narrow["below"]
    assert not wide["below"]
    assert narrow["size"] > 300


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


@pytest.mark.parametrize(("choice", "expected"), [("wrong", "ant 75\xa0%\nis cat"), ("right", "ant 75\xa0%\nright")])
def test_captions_of_examples(said, choice, expected):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    from resnet_tf.reports.plots import draw_examples

    titles = [axes.get_title() for axes in draw_examples(images(14), said, choice).axes]
    assert len([title for title in titles if title]) == (5 if choice == "wrong" else 9)
    assert ("cat 75\xa0%\nis ant" if choice == "wrong" else expected) in titles


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
