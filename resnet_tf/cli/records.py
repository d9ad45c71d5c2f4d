"""Finished and unfinished runs below a folder, as results and as the commands that made them. Imports no TensorFlow."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.request import Request, parse_request
from resnet_tf.cli.train_options import make_parser
from resnet_tf.errors import UserError
from resnet_tf.models.registry import list_models, own_shortcut
from resnet_tf.recipes import RECIPES, default_recipe
from resnet_tf.reports.runs import Result
from resnet_tf.training.run_dir import DEFAULTS, REPORT, SETTINGS, RunDir

UNFINISHED, SMOKE = "unfinished", "smoke"

# How a run was computed, which leaves its result the same but for rounding.
_TECHNICAL = ("threads", "evaluate_every", "steps_per_call", "jit_compile", "deterministic")
# And what follows from the other settings.
_NOT_DECIDING = (*_TECHNICAL, "recipe.shortcut", "data.mean", "data.std")
_FLAGS = {"evaluate_every": "eval-every"}
# What has a column of its own, or none.
_ELSEWHERE = ("name", "about", "shortcut", "validation_size", "augment_sha256")
_NO_FLAG = ("recipe.name", "recipe.shortcut", "augment_sha256")
# What every run has written.
_OF_SETTINGS = {"model", "dataset", "seed", "recipe.name", "recipe.iterations", "recipe.validation_size"}
_OF_SETTINGS |= {"data.source", "data.fingerprint", "precision", "threads"}
_OF_REPORT = {"settings", "parameters", "iterations", "train_images", "validation_images", "training", "test"}
_OF_REPORT |= {"device", "versions"}

Settings = dict[str, Any]
Report = dict[str, Any]


def run_folders(place: Path) -> list[Path]:
    """Folders of finished runs at any depth below `place`, in the order of their names; none of smoke runs."""
    return sorted(
        path.parent
        for path in place.rglob(REPORT)
        if (path.parent / SETTINGS).is_file() and not {UNFINISHED, SMOKE} & set(path.relative_to(place).parts)
    )


def unfinished_folders(place: Path) -> list[Path]:
    """Folders of unfinished runs that lie in `place` to be gone on with."""
    return sorted(path.parent for path in (place / UNFINISHED).glob(f"*/{SETTINGS}"))


def read_run(folder: Path) -> tuple[Settings, Report | None] | None:
    """Settings and report of a run, the latter None of an unfinished one; None where the folder holds no run.

    Raises:
        UserError: a file is damaged, or is not what `train` writes.
    """
    if not (folder / SETTINGS).is_file():
        return None
    settings, report = RunDir(folder).settings() or {}, RunDir(folder).report()
    for name, found, needed in ((SETTINGS, settings, _OF_SETTINGS), (REPORT, report, _OF_REPORT)):
        missing = sorted(needed - found.keys()) if found is not None else []
        if missing:
            raise UserError(
                f"{folder / name} lacks {', '.join(missing)}: no run of train, or a damaged one; copy it again, or "
                "move it away"
            )
    return settings, report


def normal(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the result of a run, in one form for runs of all versions of this package; with the seed."""
    kept = {key: value for key, value in (DEFAULTS | settings).items() if key not in _NOT_DECIDING}
    kept["builder.shortcut"] = shortcut_of(settings)
    return {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in kept.items()}


def shortcut_of(settings: dict[str, Any]) -> str:
    """The shortcut that a run's network has."""
    given = settings.get("builder.shortcut")
    if given is not None or settings["model"] not in list_models():
        return given or "-"
    return own_shortcut(settings["model"])


def overrides_of(settings: dict[str, Any]) -> tuple[str, ...]:
    """The settings in which a run departs from the recipe that it names, as `field=value`, or `field` for a switch."""
    usual = _without_flags(settings["recipe.name"])
    changed = []
    for key, value in normal(settings).items():
        field = key.rpartition(".")[2]
        if key in usual and field not in _ELSEWHERE and value is not None and value != usual[key]:
            changed.append(field if value is True else f"{field}={_text(value)}")
    return tuple(changed)


def read_result(folder: Path, page: Path) -> Result | None:
    """The result of a finished run, linked to from a page in the folder `page`; None where nothing was tested.

    Raises:
        UserError: a file of the run is damaged.
    """
    settings, report = read_run(folder) or ({}, None)
    if report is None or not report["test"]:
        return None
    network, changes = settings["model"], overrides_of(settings)
    decisive = {key: value for key, value in normal(settings).items() if key != "seed"}
    if "replicas" in report and not settings.get("sync_bn"):
        # Each normalizes its own share of the batch, so that their number decides the result.
        decisive["replicas"], changes = report["replicas"], (*changes, report["replicas"])
    best = (report.get("best") or {}).get("test")
    own = network in list_models() and shortcut_of(settings) == own_shortcut(network)
    place = folder.relative_to(page) if folder.is_relative_to(page) else folder
    return Result(
        place=place.as_posix(),
        settings=decisive,
        network=network,
        shortcut=shortcut_of(settings),
        own=own and not any(change.startswith(("width", "use_bias")) for change in changes),
        parameters=report["parameters"],
        recipe=settings["recipe.name"],
        changes=changes,
        papers_recipe=not changes and settings["recipe.name"] == default_recipe(network),
        train_images=report["train_images"],
        validation_images=report["validation_images"],
        test_images=report["test"]["images"],
        dataset=settings["dataset"],
        source=settings["data.source"],
        seed=settings["seed"],
        precision=settings["precision"],
        last=100 - 100 * report["test"]["top1"],
        best=None if best is None else 100 - 100 * best["top1"],
    )


def read_results(folders: Sequence[Path], page: Path) -> list[Result]:
    """The results of some finished runs, without those that nothing was tested of.

    Raises:
        UserError: a file of a run is damaged.
    """
    found = [read_result(folder, page) for folder in folders]
    return [result for result in found if result is not None]


def answers(folder: Path, request: Request, fingerprint: str) -> bool:
    """Whether the run in a folder is the one that a request asks for, on the same data."""
    settings, _ = read_run(folder) or ({}, None)
    if settings.get("data.fingerprint") != fingerprint:
        return False
    asked = normal(request.settings())
    if request.precision != "auto":
        asked["precision"] = request.precision
    theirs = normal(settings)
    return all(theirs.get(key) == value for key, value in asked.items())


def train_command(settings: dict[str, Any], *, full: bool = False) -> str:
    """The command that makes a run of these settings; where they lie is written as DIR.

    Args:
        settings: of a run.
        full: whether to leave a shortened length and the flags that go with it out.

    Raises:
        UserError: no flags ask for these settings.
    """
    flags = ["--model", settings["model"], "--recipe", settings["recipe.name"], "--seed", str(settings["seed"])]
    if settings["dataset"] != "cifar10":
        flags += ["--dataset", settings["dataset"]]
    usual = _without_flags(settings["recipe.name"])
    length = ("recipe.iterations", "recipe.epochs", "recipe.warmup_iterations", "evaluate_every")
    for key, value in settings.items():
        if key not in usual or key in _NO_FLAG or value == usual[key] or value is None:
            continue
        if not (full and key in length):
            flags += _flag(key, value)
    made = parse_request(make_parser().parse_args(flags))
    if not full:
        asked, known = made.settings(), DEFAULTS | settings
        unlike = [key for key, value in asked.items() if known.get(key) != value and key in settings]
        if unlike:
            raise UserError(f"no flags of train ask for {', '.join(unlike)} as this run has it")
    flags += ["--precision", settings["precision"], "--threads", str(settings["threads"])]
    if settings["dataset"].startswith("cifar"):
        flags += ["--data-dir", "DIR"]
    return f"resnet-tf train {shlex.join(flags)}"


def _without_flags(recipe: str) -> dict[str, Any]:
    """The settings of a run by a named recipe that no flag changes."""
    named = RECIPES.get(recipe)
    fields = {} if named is None else {f"recipe.{key}": value for key, value in named.as_dict().items()}
    others: dict[str, Any] = {
        "builder.width": 1,
        "builder.use_bias": False,
        "jit_compile": False,
        "deterministic": False,
    }
    others |= {"builder.shortcut": fields.get("recipe.shortcut"), "evaluate_every": None, "steps_per_call": None}
    return DEFAULTS | others | fields


def _flag(key: str, value: Any) -> list[str]:
    name = _FLAGS.get(key) or key.rpartition(".")[2].replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", _text(value)]


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(_text(part) for part in value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def folder_name(settings: dict[str, Any]) -> str:
    """What a run of these settings is called below `results/`."""
    parts = [settings["model"]]
    if shortcut_of(settings) != own_shortcut(settings["model"]):
        parts.append(shortcut_of(settings))
    if settings["dataset"] != "cifar10":
        parts.append(settings["dataset"].replace(":", "-").replace("/", "-"))
    parts.append(settings["recipe.name"])
    parts += [change.replace("=", "-").replace(",", "-").replace("_", "-") for change in overrides_of(settings)]
    parts += ["all-images"] if settings["recipe.validation_size"] == 0 else []
    parts += ["float32"] if settings["precision"] == "float32" else []
    return "-".join([*parts, f"seed{settings['seed']}"])
