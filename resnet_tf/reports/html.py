"""Write an evaluation report: pictures, tables and one HTML page."""

import base64
import csv
import io
from collections.abc import Sequence
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

from resnet_tf.files import write_json, write_text
from resnet_tf.reports.metrics import Predictions, expected_calibration_error, most_confused, precision_recall_f1
from resnet_tf.reports.plots import can_draw, draw_calibration, draw_confusion, draw_examples, save

_COLUMNS = ("class", "precision", "recall", "f1", "support")
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:70rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}img{max-width:100%;height:auto}.scroll{overflow-x:auto}
.numbers{display:flex;flex-wrap:wrap;gap:.6rem 2.4rem;padding:0;list-style:none}.numbers b{display:block}
"""


def write_report(
    folder: Path,
    predictions: Predictions,
    images: Any,
    numbers: dict[str, Any],
    *,
    title: str,
    examples: str = "wrong",
    more_pictures: Sequence[tuple[str, Path]] = (),
) -> dict[str, Any]:
    """Write per_class.csv, report.json, report.html and, with matplotlib, confusion, examples and calibration.png.

    `images[i]` is image i, uint8 (H, W, C); `numbers` (loss, top1, top5, images, …) go into report.json, whose content
    is returned; `more_pictures` are headings and PNG files for the end of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confusion, names = predictions.confusion(), predictions.class_names
    columns = [[None if isnan(v) else float(v) for v in values] for values in precision_recall_f1(confusion)]
    rows = list(zip(names, *columns, confusion.sum(axis=1).tolist(), strict=True))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([name, *("" if v is None else f"{v:.6f}" for v in values), n] for name, *values, n in rows)
    write_text(folder / "per_class.csv", text.getvalue())
    report = {
        **numbers,
        "calibration_error": expected_calibration_error(predictions.confidences, predictions.right),
        "mean_confidence": float(predictions.confidences.mean()),
        "classes": [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
    }
    pictures = []
    if can_draw():
        figures = {
            "Confusion": draw_confusion(confusion, names),
            "Examples": draw_examples(images, predictions, examples),
            "Calibration": draw_calibration(predictions),
        }
        for heading, made in figures.items():
            pictures.append((heading, folder / f"{heading.lower()}.png"))
            save(made, pictures[-1][1])
    write_json(folder / "report.json", report)
    pairs = [(names[true], names[predicted], str(n)) for true, predicted, n in most_confused(confusion, 10)]
    write_text(folder / "report.html", _page(title, report, rows, pairs, [*pictures, *more_pictures]))
    return report


def _page(title: str, report: dict[str, Any], rows: Any, confusions: Any, pictures: Sequence[tuple[str, Path]]) -> str:
    """A page that needs no other file: pictures are in it."""
    numbers = {
        "top-1 accuracy": _percent(report["top1"]),
        "top-5 accuracy": _percent(report["top5"]),
        "loss (cross-entropy, nats)": f"{report['loss']:.4f}",
        "expected calibration error": _percent(report["calibration_error"]),
        "images": f"{report['images']}",
    }
    items = "".join(f"<li><b>{value}</b>{name}</li>" for name, value in numbers.items())
    body = [f"<h1>{escape(title)}</h1>", f'<ul class="numbers">{items}</ul>']
    if "data_source" in report:
        body.append(f"<p>Data: {escape(report['data_source'])}</p>")
    cells = [(name, *map(_percent, values), str(support)) for name, *values, support in rows]
    confused = _table(("true", "predicted", "images"), confusions) if confusions else "<p>None.</p>"
    body += ["<h2>Per class</h2>", _table(_COLUMNS, cells), "<h2>Most frequent confusions</h2>", confused]
    for heading, path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        alt = escape(heading)
        body += [f"<h2>{alt}</h2>", f'<p><img alt="{alt}" src="data:image/png;base64,{data}"></p>']
    content = "\n".join(body)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body>
{content}
</body></html>
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"
