"""Write an evaluation report: pictures, tables and one HTML page."""

import base64
import csv
import io
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from resnet_tf.data.image_io import cv2
from resnet_tf.errors import UserError
from resnet_tf.files import check_outputs, write_json, write_text
from resnet_tf.reports import plots
from resnet_tf.reports.metrics import (
    Predictions,
    choose_examples,
    expected_calibration_error,
    most_confused,
    precision_recall_f1,
)

_COLUMNS = ("class", "precision", "recall", "f1", "support")
_EXAMPLES = 24
_FILES = ("report.json", "report.html", "per_class.csv", "confusion.png", "examples.png", "calibration.png")
# Figures are drawn dark on white: in the dark they are inverted, with their colors turned back; photographs are not.
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:70rem;margin:2rem auto;padding:0 1rem;
overflow-wrap:anywhere}h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin-top:2rem}
table{border-collapse:collapse}
th,td{padding:.2rem .5rem;text-align:right;border-bottom:1px solid #8886;white-space:nowrap}
tr>:first-child,.pairs tr>:nth-child(2){text-align:left;white-space:normal;min-width:5rem}
@media(max-width:30rem){table{font-size:.78rem}th,td{padding:.2rem .2rem}}
.scroll{overflow-x:auto}img{max-width:100%;height:auto}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.2rem 1rem}dd{margin:0}dt{color:#666}
.numbers{display:flex;flex-wrap:wrap;gap:.6rem 2.4rem;padding:0;list-style:none}
.numbers b{display:block;font-size:1.2rem}
.charts{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
.charts img{flex:1 1 20rem;min-width:0;max-width:min(100%,44rem)}
.examples{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr));gap:.8rem}figure{margin:0}
.examples img{width:100%}.png img{image-rendering:pixelated}
figcaption{font-size:.8rem;line-height:1.3;white-space:pre-line}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}dt{color:#999}
.charts img{filter:invert(.906) hue-rotate(180deg)}}
"""


def check_report(folder: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse a folder for a report that is none, or where a file of the report would replace an input or a run's."""
    place = Path(folder)
    if place.is_dir():
        check_outputs({f"report={str(folder)!r}: {name}": place / name for name in _FILES}, inputs)
    elif place.exists():
        raise UserError(f"report={str(folder)!r} is no folder; give another one", argument="report")


def write_report(
    folder: Path,
    predictions: Predictions,
    images: Any,
    numbers: dict[str, Any],
    *,
    title: str,
    about: Mapping[str, str] | None = None,
    examples: str = "wrong",
    more_pictures: Sequence[tuple[str, Path]] = (),
    write_numbers: bool = True,
) -> dict[str, Any]:
    """Write per_class.csv, report.json, report.html and, with matplotlib, confusion, examples and calibration.png.

    `images[i]` is image i, uint8 (H, W, C); `numbers` (loss, top1, top5, images, …) go into report.json, whose content
    is returned; `about` (network, recipe, …) goes to the head of the page; `more_pictures` are headings and PNG files
    for its end. Without `write_numbers`, report.json stays as it is: that of a run holds more.
    """
    if write_numbers:
        check_report(folder)
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
    if write_numbers:
        write_json(folder / "report.json", report)
    pairs = [(names[true], names[predicted], str(n)) for true, predicted, n in most_confused(confusion, 10)]
    cells = [(name, *map(_percent, values), str(support)) for name, *values, support in rows]
    facts = {**(about or {}), "data": numbers.get("data_source"), "date": time.strftime("%Y-%m-%d %H:%M")}
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<dl>{''.join(f'<dt>{key}</dt><dd>{escape(value)}</dd>' for key, value in facts.items() if value)}</dl>",
        _numbers(report, len(names)),
        *("<h2>Per class</h2>", _table(_COLUMNS, cells)),
        *(
            "<h2>Most frequent confusions</h2>",
            _table(("true", "predicted", "images"), pairs, "pairs") if pairs else "<p>None.</p>",
        ),
    ]
    charts = []
    if plots.can_draw():
        calibration = plots.draw_calibration(predictions)
        plots.save(plots.draw_confusion(confusion, names), folder / "confusion.png")
        plots.save(plots.draw_examples(images, predictions, examples), folder / "examples.png")
        plots.save(calibration, folder / "calibration.png")
        matrices = [plots.png(plots.draw_confusion(confusion, names, [matrix])) for matrix in plots.MATRICES]
        charts = [("Confusion", matrices), ("Calibration", [plots.png(calibration)])]
    for heading, files in [*charts, *((heading, [path.read_bytes()]) for heading, path in more_pictures)]:
        shown = "".join(_image(file, heading) for file in files)
        body.append(f'<h2>{escape(heading)}</h2><div class="charts">{shown}</div>')
    chosen = choose_examples(predictions, examples, _EXAMPLES)
    body.append(f"<h2>Examples: {plots.EXAMPLE_TITLES[examples]} ({len(chosen)})</h2>")
    shown = "".join(_example(images[index], plots.caption(predictions, index)) for index in chosen)
    body.append(f'<div class="examples">{shown}</div>')
    write_text(folder / "report.html", _page(title, "\n".join(body)))
    return report


def _page(title: str, content: str) -> str:
    """A page that needs no other file: pictures are in it."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{escape(title)}</title><style>{_STYLE}</style></head>
<body>
{content}
</body></html>
"""


def _numbers(report: dict[str, Any], classes: int) -> str:
    numbers = {
        "top-1 accuracy": _percent(report["top1"]),
        **({"top-5 accuracy": _percent(report["top5"])} if classes > 5 else {}),
        "loss (cross-entropy, nats)": f"{report['loss']:.4f}",
        "expected calibration error": _percent(report["calibration_error"]),
        "images": f"{report['images']}",
    }
    return f'<ul class="numbers">{"".join(f"<li><b>{value}</b>{name}</li>" for name, value in numbers.items())}</ul>'


def _image(file: bytes, alt: str, kind: str = "png") -> str:
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(file).decode()}">'


def _example(image: Any, caption: str) -> str:
    picture = np.clip(image, 0, 255).astype(np.uint8)[..., ::-1]  # OpenCV writes blue first
    kind = "png" if max(picture.shape) <= 96 else "jpeg"  # enlarged pixel by pixel, or a photograph
    file = cv2.imencode(f".{kind}", np.ascontiguousarray(picture))[1].tobytes()
    return f'<figure class="{kind}">{_image(file, caption, kind)}<figcaption>{escape(caption)}</figcaption></figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}\N{NO-BREAK SPACE}%"
