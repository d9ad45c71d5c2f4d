"""Write an evaluation report: pictures, tables and one HTML page."""

import base64
import csv
import io
from collections.abc import Sequence
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf.files import write_json, write_text
from resnet_tf.reports import metrics
from resnet_tf.reports.metrics import Predictions, most_confused
from resnet_tf.reports.plots import Pictures, can_draw, draw_calibration, draw_confusion, draw_examples, save

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #bbb}
table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}img{max-width:100%;height:auto}
.numbers{display:flex;flex-wrap:wrap;gap:.6rem 2.4rem;padding:0}.numbers li{list-style:none}
.numbers b{display:block;font-size:1.4rem}.scroll{overflow-x:auto}
""".strip()


class HtmlPage:
    """A page that grows from top to bottom."""

    def __init__(self, title: str) -> None:
        """Start with a heading."""
        self._title = title
        self._body = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Start a section."""
        self._body.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        """Add a line of text."""
        self._body.append(f"<p>{escape(text)}</p>")

    def numbers(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Add figures, each with its name below."""
        items = "".join(f"<li><b>{escape(value)}</b>{escape(name)}</li>" for name, value in pairs)
        self._body.append(f'<ul class="numbers">{items}</ul>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first column is text, the others are numbers."""
        top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self._body.append(
            f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
        )

    def picture(self, path: Path, about: str) -> None:
        """Put a PNG file into the page itself; `about` is read out where it cannot be seen.

        Raises:
            OSError: the file cannot be read.
        """
        data = base64.b64encode(path.read_bytes()).decode()
        self._body.append(f'<p><img alt="{escape(about)}" src="data:image/png;base64,{data}"></p>')

    def text(self) -> str:
        """The whole page as HTML."""
        head = (
            f'<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{_STYLE}</style>"
        )
        body = "\n".join(self._body)
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


_HEAD = ("class", "precision", "recall", "f1", "support")
_CONFUSIONS = 10


def write_report(
    folder: Path,
    predictions: Predictions,
    images: Pictures,
    numbers: dict[str, Any],
    *,
    title: str,
    examples: str = "wrong",
    more_pictures: Sequence[tuple[str, Path]] = (),
) -> dict[str, Any]:
    """Write per_class.csv, report.json, report.html and, with matplotlib, confusion, examples and calibration.png.

    Args:
        folder: made if missing; files of the same names are replaced.
        predictions: what the model said of the N images.
        images: gives image i, uint8 (H, W, C); an array (N, H, W, C) will do.
        numbers: loss, top1, top5, images and whatever else goes into report.json.
        title: heading of the page.
        examples: "wrong", "right" or "random".
        more_pictures: headings and PNG files that the page shows after its own.

    Returns:
        What report.json holds.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confusion = predictions.confusion()
    rows = per_class_rows(confusion, predictions.class_names)
    write_text(folder / "per_class.csv", _csv(rows))
    report = {
        **numbers,
        "calibration_error": metrics.expected_calibration_error(predictions.confidences, predictions.right),
        "mean_confidence": float(predictions.confidences.mean()),
        "classes": [dict(zip(_HEAD, row, strict=True)) for row in rows],
    }
    pictures = []
    if can_draw():
        pictures = _draw(folder, predictions, confusion, images, examples)
    write_json(folder / "report.json", report)
    page = _page(title, report, rows, most_confused(confusion, _CONFUSIONS), predictions.class_names)
    for heading, path in [*pictures, *more_pictures]:
        page.heading(heading)
        page.picture(path, heading)
    write_text(folder / "report.html", page.text())
    return report


def per_class_rows(confusion: NDArray[np.int64], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Name, precision, recall, F1 (fractions, None where undefined) and images of each class."""
    columns = [[None if isnan(v) else float(v) for v in part] for part in metrics.precision_recall_f1(confusion)]
    return list(zip(names, *columns, [int(n) for n in np.sum(confusion, axis=1)], strict=True))


def _draw(
    folder: Path, predictions: Predictions, confusion: NDArray[np.int64], images: Pictures, examples: str
) -> list[tuple[str, Path]]:
    paths = [folder / name for name in ("confusion.png", "examples.png", "calibration.png")]
    save(draw_confusion(confusion, predictions.class_names), paths[0])
    save(draw_examples(images, predictions, examples), paths[1])
    save(draw_calibration(predictions), paths[2])
    return list(zip(("Confusion matrix", "Examples", "Calibration"), paths, strict=True))


def _page(
    title: str,
    report: dict[str, Any],
    rows: list[tuple[Any, ...]],
    confusions: list[tuple[int, int, int]],
    names: Sequence[str],
) -> HtmlPage:
    page = HtmlPage(title)
    page.numbers(
        [
            ("top-1 accuracy", f"{100 * report['top1']:.2f} %"),
            ("top-5 accuracy", f"{100 * report['top5']:.2f} %"),
            ("loss (cross-entropy, nats)", f"{report['loss']:.4f}"),
            ("expected calibration error", f"{100 * report['calibration_error']:.2f} %"),
            ("images", f"{report['images']}"),
        ]
    )
    if "data_source" in report:
        page.paragraph(f"Data: {report['data_source']}")
    page.heading("Per class")
    page.table(_HEAD, [(row[0], *(_percent(v) for v in row[1:4]), str(row[4])) for row in rows])
    page.heading("Most frequent confusions")
    if confusions:
        page.table(("true", "predicted", "images"), [(names[t], names[p], str(n)) for t, p, n in confusions])
    else:
        page.paragraph("None: every image was predicted rightly.")
    return page


def _csv(rows: list[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    for name, *values, support in rows:
        writer.writerow([name, *("" if value is None else f"{value:.6f}" for value in values), support])
    return text.getvalue()


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"
