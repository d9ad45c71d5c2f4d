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
    known: dict[str, Settings] = {}
    for folder, history in zip(folders, histories, strict=True):
        settings, report = read_run(folder)
        compared = {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
        key = json.dumps(compared, sort_keys=True)
        known.setdefault(key, compared)
        groups.setdefault(key, []).append(_values(folder, settings, report or {}, history))
    lines: list[tuple[str, ...]] = [_HEAD]
    for group in groups.values():
        lines += [_line(values) for values in group]
        if len({values[4] for values in group}) > 1:
            lines.append(_mean_line(group))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_aligned(line, widths) for line in lines]
    (first, *others), names = known.values(), [group[0][0] for group in groups.values()]
    for name, settings in zip(names[1:], others, strict=True):
        differing = [key for key in first | settings if first.get(key) != settings.get(key)][:4]
        words = (f"{key} is {first.get(key)} there, {settings.get(key)} here" for key in differing)
        text.append(f"{name} differs from {names[0]}: {'; '.join(words)}")
    return "\n".join(text)


def clock(seconds: float) -> str:
    """A length of time as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _values(folder: Path, settings: Settings, report: dict[str, Any], history: Sequence[dict[str, Any]]) -> list[Any]:
    """What the columns show; None where the run does not say."""
    width, shortcut = settings.get("builder.width", 1), settings.get("builder.shortcut")
    network = [settings["model"], shortcut or "", "" if width == 1 else f"width {width}"]
    training, last = report.get("training", {}), history[-1] if history else {}
    validation, test = last.get("validation_accuracy"), (report.get("test") or {}).get("top1")
    return [
        folder.resolve().name,
        " ".join(word for word in network if word),
        report.get("parameters"),
        settings["recipe.name"],
        settings["seed"],
        None if validation is None else 100 * validation,
        None if test is None else 100 * test,
        training.get("median_images_per_second"),
        training.get("seconds") or last.get("seconds"),
    ]


def _line(values: Sequence[Any]) -> tuple[str, ...]:
    formats = ("", "", ",", "", "", ".2f", ".2f", ".0f")
    cells = ["-" if value is None else format(value, form) for value, form in zip(values, formats, strict=False)]
    return (*cells, "-" if values[-1] is None else clock(values[-1]))


def _mean_line(group: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    cells = []
    for column, digits in ((5, 2), (6, 2), (7, 0)):
        values = [values[column] for values in group if values[column] is not None]
        cells.append(spread(values, digits) if len(values) > 1 else "-")
    return (f"mean ± std of {len(group)}", "", "", "", "", *cells, "")


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(line, widths, strict=True)
    return "  ".join(
        cell.ljust(width) if column in _LEFT_ALIGNED else cell.rjust(width)
        for column, (cell, width) in enumerate(cells)
    ).rstrip()
