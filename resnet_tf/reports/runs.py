"""Read finished runs, group them, and archive them. Imports no TensorFlow."""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from resnet_tf.errors import UserError
from resnet_tf.files import replacing
from resnet_tf.models.registry import list_models, own_shortcut
from resnet_tf.recipes import RECIPES, Recipe, default_recipe

SETTINGS, REPORT, COMMAND = "settings.json", "report.json", "command.txt"
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "shapes": "`shapes`"}
SMOKE = "smoke"  # folder of short runs that show what a large network takes; not results
_ARCHIVED = (SETTINGS, REPORT, COMMAND, "metrics.csv", "curves.png")

Settings = dict[str, Any]
Report = dict[str, Any]


def _recipe_settings(recipe: Recipe) -> Settings:
    return {f"recipe.{key}": value for key, value in recipe.as_dict().items() if key != "about"}


# What train always writes.
_REQUIRED = {
    SETTINGS: {"model", "dataset", "seed", "recipe.name", "recipe.iterations", "recipe.validation_size"}
    | {"data.source", "data.fingerprint", "precision", "threads"},
    REPORT: {"settings", "parameters", "iterations", "train_images", "validation_images", "training", "test"}
    | {"device", "versions"},
}
# How a run was computed, which changes its result by rounding only, and what follows from other settings.
_NOT_DECISIVE = {"threads", "evaluate_every", "steps_per_call", "jit_compile", "deterministic"}
_NOT_DECISIVE |= {"recipe.shortcut", "data.mean", "data.std"}
# Values of settings that are left out of settings.json.
_DEFAULTS: Settings = {
    **dict.fromkeys(("augment", "augment_sha256", "input_size", "weights", "unfreeze_at", "unfreeze_learning_rate")),
    **dict.fromkeys(("train_bn", "sync_bn", "builder.use_bias"), False),
    "on_bad_image": "stop",
    "freeze": "none",
    "builder.width": 1,
    **_recipe_settings(Recipe("", "")),
}
# Fields that have a column of their own in the tables, or none.
_OWN_COLUMN = ("name", "shortcut", "validation_size", "augment_sha256")


def run_folders(place: Path) -> list[Path]:
    """Folders of finished runs at any depth below `place`, in the order of their names; smoke runs are left out."""
    folders = [path.parent for path in place.rglob(REPORT) if (path.parent / SETTINGS).is_file()]
    return sorted(folder for folder in folders if SMOKE not in folder.relative_to(place).parts)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises UserError where the file is missing, damaged or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the run folder again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object, as a run's does; copy the run folder again")
    return value


def read_run(folder: Path) -> tuple[Settings, Report | None]:
    """Read the settings and the report of a run; an unfinished run has no report.

    Raises UserError where the folder holds no run, or a file is damaged or lacks what train writes.
    """
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder} holds no run; name the folder that train wrote (run_dir=…)")
    found = {name: read_json(folder / name) for name in (SETTINGS, REPORT) if (folder / name).exists()}
    for name, values in found.items():
        missing = sorted(_REQUIRED[name] - values.keys())
        if missing:
            raise UserError(f"{folder / name} lacks {', '.join(missing)}: the folder holds no run, or a damaged one")
    return found[SETTINGS], found.get(REPORT)


def canonical_settings(settings: Settings) -> Settings:
    """What decides the result of a run, seed included, in one form for runs of all versions of this package."""
    decisive = {key: value for key, value in (_DEFAULTS | settings).items() if key not in _NOT_DECISIVE}
    decisive["builder.shortcut"] = shortcut_of(settings)
    return {key: int(v) if isinstance(v, float) and v.is_integer() else v for key, v in decisive.items()}


def matches(folder: Path, wanted: Settings) -> bool:
    """Whether a folder holds the run that these settings ask for."""
    found = canonical_settings(read_run(folder)[0])
    return all(found.get(key) == value for key, value in canonical_settings(wanted).items())


def shortcut_of(settings: Settings) -> str:
    """The shortcut that a run's network has; a dash where the network is not one of this package."""
    return settings.get("builder.shortcut") or _default_shortcut(settings["model"])


def _default_shortcut(model: str) -> str:
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


def archive_run(run: Path, place: Path, name: str | None = None) -> Path:
    """Copy the settings, report, command, metrics and curves of a finished run to a folder below `place`.

    Raises UserError where the run is not finished, `name` is a path, or the target folder holds something else.
    """
    settings, report = read_run(run)
    if report is None:
        raise UserError(f"{run} is not finished; run its command again first")
    if name is not None and (name == ".." or name != Path(name).name):
        raise UserError(f"invalid name={name!r}; expected the name of a folder (results=… says where it goes)")
    target = place / (name or _folder_name(settings))
    if target.exists() and (not (target / SETTINGS).is_file() or read_json(target / SETTINGS) != settings):
        raise UserError(f"{target} does not hold this run; pass another name=…")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file in _ARCHIVED:
            if (run / file).exists():
                with replacing(target / file) as temporary:
                    shutil.copyfile(run / file, temporary)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}); make room and try again") from error
    return target


def _folder_name(settings: Settings) -> str:
    network, shortcut, dataset = settings["model"], shortcut_of(settings), settings["dataset"]
    words = [
        network,
        "" if shortcut == _default_shortcut(network) else shortcut,
        "" if dataset == "cifar10" else dataset.replace(":", "-").replace("/", "-"),
        settings["recipe.name"],
        *(change.replace("=", "-").replace(",", "-").replace("_", "-") for change in overrides(settings)),
        "" if settings["recipe.validation_size"] else "all-images",
        "float32" if settings["precision"] == "float32" else "",
        f"seed{settings['seed']}",
    ]
    return "-".join(word for word in words if word)


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to, with errors in percent of the test images, and data, split and recipe in words.

    `settings` decided the result, but for the seed. `default_network` and `papers_recipe` say whether network and
    recipe are as published; `best_error` is of the model that was best by validation, None without one.
    """

    place: str
    settings: Settings
    seed: int
    network: str
    shortcut: str
    overrides: tuple[str, ...]
    default_network: bool
    papers_recipe: bool
    data: str
    split: str
    recipe: str
    parameters: int
    train_images: int
    test_images: int
    error: float
    best_error: float | None


def read_results(place: Path, page: Path | None = None) -> list[RunResult]:
    """The results of all finished runs below `place` that were tested, with paths relative to `page` or `place`."""
    found = [_read_result(folder, place if page is None else page) for folder in run_folders(place)]
    return [result for result in found if result is not None]


def _read_result(folder: Path, page: Path) -> RunResult | None:
    settings, report = read_run(folder)
    if report is None or not report["test"]:
        return None
    network, recipe, changed = settings["model"], settings["recipe.name"], overrides(settings)
    decisive = canonical_settings(settings)
    del decisive["seed"]
    if "replicas" in report and not settings.get("sync_bn"):
        # Each replica normalizes its own shard of the batch, so that their number decides the result.
        decisive["replicas"], changed = report["replicas"], (*changed, report["replicas"])
    best, images = (report.get("best") or {}).get("test"), report["train_images"]
    dataset, shortcut = settings["dataset"], decisive["builder.shortcut"]
    rebuilt = any(change.startswith(("width", "use_bias")) for change in changed)
    return RunResult(
        place=(folder.relative_to(page) if folder.is_relative_to(page) else folder).as_posix(),
        settings=decisive,
        seed=settings["seed"],
        network=network,
        shortcut=shortcut,
        overrides=changed,
        default_network=shortcut == _default_shortcut(network) and not rebuilt,
        papers_recipe=not changed and recipe == default_recipe(network),
        data=f"{_DATASETS.get(dataset, dataset)}, {settings['data.source']}",
        split=f"{images:,} / {report['validation_images']:,}",
        recipe=", ".join([f"`{recipe}`", *changed, settings["precision"]]),
        parameters=report["parameters"],
        train_images=images,
        test_images=report["test"]["images"],
        error=100 - 100 * report["test"]["top1"],
        best_error=None if best is None else 100 - 100 * best["top1"],
    )


def group_by_seed(results: Iterable[RunResult]) -> list[list[RunResult]]:
    """Runs that differ in nothing but their seeds, together: original data first, then by network and recipe."""
    ordered = sorted(results, key=lambda result: (*_order(result), result.seed, result.place))
    return [list(group) for _, group in groupby(ordered, key=_order)]


def _order(result: RunResult) -> tuple[Any, ...]:
    settings = result.settings
    return (
        _rank(settings["dataset"], ("cifar10", "cifar100")),
        _rank(settings["data.source"], ("original", "JPEG copy")),
        len(result.network),
        result.network,
        result.shortcut,
        settings["recipe.name"],
        result.overrides,
        -result.train_images,
        str(sorted(settings.items())),
    )


def _rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)
