"""Results of finished runs as a table, beside the papers' errors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from resnet_tf.recipes import default_recipe
from resnet_tf.reports.runs import (
    Settings,
    canonical_settings,
    default_shortcut,
    overrides,
    read_run,
    run_folders,
    spread,
)

# Test errors in percent on the original CIFAR-10, and what runs they are of.
PUBLISHED = {
    # arXiv:1512.03385, table 6.
    "resnet20_v1": (8.75, "one run"),
    "resnet32_v1": (7.51, "one run"),
    "resnet44_v1": (7.17, "one run"),
    "resnet56_v1": (6.97, "one run"),
    "resnet110_v1": (6.43, "best of 5, 6.61 ± 0.16"),
    "resnet1202_v1": (7.93, "one run"),
    # arXiv:1603.05027, table 4 (v1), tables 3 and 4 (v2).
    "resnet164_v1": (5.93, "median of 5"),
    "resnet1001_v1": (7.61, "median of 5"),
    "resnet110_v2": (6.37, "median of 5"),
    "resnet164_v2": (5.46, "median of 5"),
    "resnet1001_v2": (4.92, "median of 5, 4.89 ± 0.14"),
}
_DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "shapes": "`shapes`"}
_HEAD = (
    *("network", "shortcut", "parameters", "recipe", "split", "data", "seeds"),
    *("test error %, last step", "test error %, best by validation", "the paper's error %", "difference"),
)


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
    found = (_read_result(folder, page or place) for folder in run_folders(place))
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
    rebuilt = any(change.startswith(("width", "use_bias", "identity_padding")) for change in changed)
    return RunResult(
        place=(folder.relative_to(page) if folder.is_relative_to(page) else folder).as_posix(),
        settings=decisive,
        seed=settings["seed"],
        network=network,
        shortcut=shortcut,
        overrides=changed,
        default_network=shortcut == default_shortcut(network) and not rebuilt,
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
    settings, network = result.settings, result.network
    data = _rank(settings["dataset"], "cifar10", "cifar100"), _rank(settings["data.source"], "original", "JPEG copy")
    what = len(network), network, result.shortcut, settings["recipe.name"], result.overrides, -result.train_images
    return *data, *what, str(sorted(settings.items()))


def _rank(name: str, *known: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def results_table(results: Iterable[RunResult]) -> str:
    """A Markdown table with a row per group of seeds."""
    lines = []
    for group in group_by_seed(results):
        first = group[0]
        lines.append(
            [
                *(first.network, first.shortcut, f"{first.parameters:,}", first.recipe, first.split, first.data),
                ", ".join(f"[{result.seed}]({result.place})" for result in group),
                spread([result.error for result in group]),
                spread([result.best_error for result in group if result.best_error is not None]),
                *_published_cells(first, mean(result.error for result in group)),
            ]
        )
    return markdown_table(_HEAD, lines)


def _published_cells(run: RunResult, error: float) -> tuple[str, str]:
    """The paper's error, and the difference from it where the two are errors of the same thing."""
    source = run.settings["data.source"]
    if run.settings["dataset"] != "cifar10":
        return "–", "–"
    if run.network not in PUBLISHED:
        return "not given", "–"
    reasons = [] if source == "original" else [source]
    reasons += [] if run.papers_recipe else ["recipe"]
    reasons += [] if run.default_network else ["network changed"]
    difference = signed(error - PUBLISHED[run.network][0])
    return published_error(run.network, source), f"not comparable ({', '.join(reasons)})" if reasons else difference


def published_error(network: str, source: str) -> str:
    """A paper's error as a cell beside results on the original data, or on other data."""
    error, runs = PUBLISHED[network]
    return f"{error:.2f} ({runs}{'' if source == 'original' else '; original data'})"


def signed(points: float) -> str:
    """A difference with its sign, two digits."""
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "−")


def markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell must not hold a vertical bar."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
