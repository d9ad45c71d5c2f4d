"""Results of several runs side by side, finished or not."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.reports.runs import Settings, read_run
from resnet_tf.reports.tables import spread

_HEAD = ("run", "network", "parameters", "recipe", "seed", "validation %", "test %", "images/s", "time")
_LEFT_ALIGNED = (0, 1, 3)
_NOT_COMPARED = ("seed", "threads", "data.mean", "data.std")


def compare_runs(folders: Sequence[Path], histories: Sequence[Sequence[dict[str, Any]]]) -> str:
    """A table of some runs, with mean ± sample deviation over seeds, and the settings in which they differ.

    `histories` are the evaluations of each run. Raises UserError where a folder holds no run or a damaged one.
    """
    groups: dict[str, list[list[Any]]] = {}
    for folder, history in zip(folders, histories, strict=True):
        settings, report = read_run(folder)
        compared = {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
        values = _values(folder, settings, report or {}, history)
        groups.setdefault(json.dumps(compared, sort_keys=True), []).append(values)
    lines: list[Sequence[str]] = [_HEAD]
    for group in groups.values():
        lines += [_cells(values) for values in group]
        if len({values[4] for values in group}) > 1:
            means = [_mean(group, column, digits) for column, digits in ((5, 2), (6, 2), (7, 0))]
            lines.append([f"mean ± std of {len(group)}", "", "", "", "", *means, ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        for column in _LEFT_ALIGNED:
            cells[column] = line[column].ljust(widths[column])
        text.append("  ".join(cells).rstrip())
    (first, *others), (name, *names) = map(json.loads, groups), [group[0][0] for group in groups.values()]
    for other, settings in zip(names, others, strict=True):
        keys = [key for key in first | settings if first.get(key) != settings.get(key)][:4]
        differences = (f"{key} is {first.get(key)} there, {settings.get(key)} here" for key in keys)
        text.append(f"{other} differs from {name}: {'; '.join(differences)}")
    return "\n".join(text)


def clock(seconds: float) -> str:
    """A length of time as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _values(folder: Path, settings: Settings, report: dict[str, Any], history: Sequence[dict[str, Any]]) -> list[Any]:
    """What the columns show; None where the run does not say."""
    width, shortcut = settings.get("builder.width", 1), settings.get("builder.shortcut")
    network = [settings["model"], shortcut or "", "" if width == 1 else f"width {width}"]
    training, last = report.get("training", {}), history[-1] if history else {}
    accuracies = last.get("validation_accuracy"), (report.get("test") or {}).get("top1")
    return [
        folder.resolve().name,
        " ".join(word for word in network if word),
        report.get("parameters"),
        settings["recipe.name"],
        settings["seed"],
        *(None if accuracy is None else 100 * accuracy for accuracy in accuracies),
        training.get("median_images_per_second"),
        training.get("seconds") or last.get("seconds"),
    ]


def _cells(values: Sequence[Any]) -> list[str]:
    formats = ("", "", ",", "", "", ".2f", ".2f", ".0f")
    cells = ["-" if value is None else format(value, form) for value, form in zip(values, formats, strict=False)]
    return [*cells, "-" if values[-1] is None else clock(values[-1])]


def _mean(group: Sequence[Sequence[Any]], column: int, digits: int) -> str:
    known = [values[column] for values in group if values[column] is not None]
    return spread(known, digits) if len(known) > 1 else "-"
