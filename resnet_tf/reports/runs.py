"""Read and compare runs. Imports no TensorFlow."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from resnet_tf.config import DEFAULTS
from resnet_tf.errors import UserError
from resnet_tf.files import COUNT, Between, read_json
from resnet_tf.models.registry import list_models, own_shortcut
from resnet_tf.recipes import RECIPE_FIELDS, RECIPES, Recipe, check_fields

SETTINGS, REPORT, COMMAND, PAGE = "settings.json", "report.json", "command.txt", "report.html"
SMOKE = "smoke"  # folder of short runs that show what a large network takes; not results

Settings = dict[str, Any]
Report = dict[str, Any]


def _recipe_settings(recipe: Recipe) -> Settings:
    return {f"recipe.{key}": value for key, value in recipe.as_dict().items() if key != "about"}


_AGAIN = "copy the run folder again"
_SHARE, _AMOUNT = Between(0, 1), Between(0, 1e12)
_TESTED = {"loss": float, "top1": _SHARE, "top5": _SHARE, "images": COUNT}
_REPORT = {
    "settings": {"data.source": str},
    **dict.fromkeys(("parameters", "iterations", "train_images", "validation_images"), COUNT),
    "training": {"seconds": _AMOUNT, "median_images_per_second": _AMOUNT, "last_validation_accuracy?": (_SHARE, None)},
    "test": (_TESTED, None),
    "best?": ({"iteration": COUNT, "validation_accuracy": _SHARE, "test": (_TESTED, None)}, None),
    "device": str,
    "replicas?": str,
    "versions": {"tensorflow": str, "keras": str},
}
# What train always writes; a search writes a part of it, and all runs some of the rest.
_REQUIRED = {
    **dict.fromkeys(("model", "dataset", "recipe.name", "data.source", "data.fingerprint", "precision"), str),
    **dict.fromkeys(("seed", "threads"), COUNT),
    "recipe.iterations": (COUNT, None),
    "recipe.validation_size": float,
}
_SETTINGS = {
    **{f"recipe.{field.name}?": field.type for field in RECIPE_FIELDS},
    **{f"{key}?": shape for key, shape in _REQUIRED.items()},
    **dict.fromkeys(("builder.shortcut?", "weights?", "weights.sha256?", "augment?"), str | None),
    **dict.fromkeys(("builder.use_bias?", "sync_bn?"), bool),
    "data.mean?": [Between(-1e6, 1e6)],
    "data.std?": [Between(1e-9, 1e6)],
    "builder.width?": COUNT,
    "unfreeze_at?": (COUNT, None),
    "unfreeze_learning_rate?": (_AMOUNT, None),
}
# How a run was computed, which changes its result by rounding only, and what follows from other settings.
_NOT_DECISIVE = {"threads", "evaluate_every", "steps_per_call", "jit_compile", "deterministic"}
_NOT_DECISIVE |= {"recipe.shortcut", "data.mean", "data.std"}
_NOT_COMPARED = ("seed", "threads", "data.mean", "data.std")
_BUILDER = {"builder.use_bias": False, "builder.width": 1, "builder.identity_padding": None}
_DEFAULTS = DEFAULTS | _BUILDER | _recipe_settings(Recipe("", ""))
# Fields that have a column of their own in the tables, or none.
_OWN_COLUMN = ("name", "shortcut", "validation_size", "augment_sha256", "model_sha256")


def run_folders(place: Path) -> list[Path]:
    """Folders of finished runs at any depth below `place`, in the order of their names; smoke runs are left out."""
    folders = [path.parent for path in place.rglob(REPORT) if (path.parent / SETTINGS).is_file()]
    return sorted(folder for folder in folders if SMOKE not in folder.relative_to(place).parts)


def read_settings(path: Path, advice: str = _AGAIN, shape: Any = None) -> Settings:
    """The settings of a run or a search, or those of this shape; UserError where a value is not what it must be."""
    settings = read_json(path, _SETTINGS | (shape or {}), advice)
    try:
        check_fields(recipe_of(settings))
    except UserError as error:
        raise UserError(f"{path} has {error}; {advice}") from error
    return settings


def read_report(path: Path, advice: str = _AGAIN) -> Report:
    """The report of a finished run; UserError where it is not what train writes."""
    return read_json(path, _REPORT, advice)


def recipe_of(settings: Settings) -> Recipe:
    """The recipe that settings hold, those fields that this version knows."""
    values = {field.name: settings.get(f"recipe.{field.name}", field.default) for field in RECIPE_FIELDS}
    return Recipe(settings.get("recipe.name", ""), "", **values)


def read_run(folder: Path) -> tuple[Settings, Report | None]:
    """Settings and report (None where it is unfinished) of a run; UserError where the folder holds no whole run."""
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} holds no run; name the folder that train wrote (run_dir=…)")
    advice = f"the folder holds no run, or a damaged one: {_AGAIN}"
    report = read_report(folder / REPORT, advice) if (folder / REPORT).exists() else None
    return read_settings(folder / SETTINGS, advice, _REQUIRED), report


def canonical_settings(settings: Settings) -> Settings:
    """What decides the result of a run, seed included, in one form for runs of all versions of this package."""
    decisive = {key: value for key, value in (_DEFAULTS | settings).items() if key not in _NOT_DECISIVE}
    decisive["builder.shortcut"] = shortcut_of(settings)
    return {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in decisive.items()}


def describe_diff(old: Settings, new: Settings) -> str:
    """The first few settings in which two runs differ, in words; empty where they agree."""
    keys = [key for key in old | new if old.get(key) != new.get(key)][:4]
    return "; ".join(f"{key} is {_short(old.get(key))} there, {_short(new.get(key))} here" for key in keys)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shortcut_of(settings: Settings) -> str:
    """The shortcut that a run's network has."""
    return settings.get("builder.shortcut") or default_shortcut(settings["model"])


def default_shortcut(model: str) -> str:
    """The shortcut of a network by name; a dash where it is not one of this package."""
    return own_shortcut(model) if model in list_models() else "-"


def overrides(settings: Settings) -> tuple[str, ...]:
    """The settings in which a run departs from the recipe it names, as `field=value`, or `field` for a switch."""
    expected = _DEFAULTS | _recipe_settings(RECIPES.get(settings["recipe.name"], Recipe("", "")))
    changed = []
    for key, value in canonical_settings(settings).items():
        field = key.rpartition(".")[2]
        if key in expected and field not in _OWN_COLUMN and value is not None and value != expected[key]:
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            changed.append(field if value is True else f"{field}={text}")
    return tuple(changed)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, with the standard deviation of the sample where there are several values; a dash without any."""
    if not values:
        return "–"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def clock(seconds: float) -> str:
    """A length of time as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))


# Columns of the comparison, and how their values are written.
_COMPARED = ("run", "network", "parameters", "recipe", "seed", "validation %", "test %", "images/s", "time")
_FORMATS = ("", "", ",", "", "", ".2f", ".2f", ".0f", "")
_LEFT_ALIGNED = (0, 1, 3)


def compare_runs(folders: Sequence[Path], histories: Sequence[Sequence[dict[str, Any]]]) -> str:
    """A table of runs, finished or not, from their folders and evaluations, and the settings in which they differ.

    Runs of several seeds get a line with mean ± sample deviation. UserError where a folder holds no whole run.
    """
    groups: dict[str, list[list[Any]]] = {}
    for folder, history in zip(folders, histories, strict=True):
        settings, report = read_run(folder)
        compared = {key: value for key, value in settings.items() if key not in _NOT_COMPARED}
        values = _compared_values(folder, settings, report or {}, history)
        groups.setdefault(json.dumps(compared, sort_keys=True), []).append(values)
    lines = [list(_COMPARED)]
    for group in groups.values():
        for values in group:
            cells = zip(values, _FORMATS, strict=True)
            lines.append(["-" if value is None else format(value, form) for value, form in cells])
        if len({values[4] for values in group}) > 1:
            means = [_mean(group, column, digits) for column, digits in ((5, 2), (6, 2), (7, 0))]
            lines.append([f"mean ± std of {len(group)}", "", "", "", "", *means, ""])
    columns = []
    for number, column in enumerate(zip(*lines, strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if number in _LEFT_ALIGNED else cell.rjust(width) for cell in column])
    text = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    (first, *others), (name, *names) = map(json.loads, groups), [group[0][0] for group in groups.values()]
    for other, settings in zip(names, others, strict=True):
        text.append(f"{other} differs from {name}: {describe_diff(first, settings)}")
    return "\n".join(text)


def _compared_values(folder: Path, settings: Settings, report: Report, history: Sequence[dict[str, Any]]) -> list[Any]:
    """What the columns show; None where the run does not say."""
    width, shortcut = settings.get("builder.width", 1), settings.get("builder.shortcut")
    network = [settings["model"], shortcut or "", "" if width == 1 else f"width {width}"]
    training, last = report.get("training", {}), history[-1] if history else {}
    accuracies = last.get("validation_accuracy"), (report.get("test") or {}).get("top1")
    seconds = training.get("seconds") or last.get("seconds")
    return [
        folder.resolve().name,
        " ".join(word for word in network if word),
        report.get("parameters"),
        settings["recipe.name"],
        settings["seed"],
        *(None if accuracy is None else 100 * accuracy for accuracy in accuracies),
        training.get("median_images_per_second"),
        None if seconds is None else clock(seconds),
    ]


def _mean(group: Sequence[Sequence[Any]], column: int, digits: int) -> str:
    known = [values[column] for values in group if values[column] is not None]
    return spread(known, digits) if len(known) > 1 else "-"
