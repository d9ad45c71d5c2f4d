"""A folder that shows how a model did on a test set: pictures, tables and one page with all of it."""

import csv
import io
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf import metrics
from resnet_tf.evaluation.canvas import can_draw, save
from resnet_tf.evaluation.page import Page
from resnet_tf.evaluation.plots import Pictures, draw_calibration, draw_confusion, draw_examples
from resnet_tf.evaluation.predictions import Predictions, most_confused
from resnet_tf.files import write_json, write_text

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
) -> Page:
    page = Page(title)
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
