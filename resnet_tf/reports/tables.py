"""Tables of finished runs beside the papers' errors, what one change made (ablations), and the page with both."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any

from resnet_tf.recipes import default_recipe
from resnet_tf.reports.runs import (
    COMMAND,
    REPORT,
    SMOKE,
    RunResult,
    clock,
    group_by_seed,
    read_json,
    read_results,
    read_run,
    run_folders,
    spread,
)

PAGE = "README.md"


@dataclass(frozen=True)
class PublishedError:
    """A test error in percent on the original CIFAR-10, with the paper's parameter count and what runs it is of."""

    error: float
    parameters: str
    runs: str = "one run"

    def describe(self, *, original: bool) -> str:
        """The error as a cell in a row of results on the original data, or on other data."""
        return f"{self.error:.2f} ({self.runs}{'' if original else '; original data'})"


PUBLISHED = {
    # arXiv:1512.03385, table 6.
    "resnet20_v1": PublishedError(8.75, "0.27M"),
    "resnet32_v1": PublishedError(7.51, "0.46M"),
    "resnet44_v1": PublishedError(7.17, "0.66M"),
    "resnet56_v1": PublishedError(6.97, "0.85M"),
    "resnet110_v1": PublishedError(6.43, "1.7M", "best of 5, 6.61 ± 0.16"),
    "resnet1202_v1": PublishedError(7.93, "19.4M"),
    # arXiv:1603.05027, table 4 (v1), tables 3 and 4 (v2).
    "resnet164_v1": PublishedError(5.93, "1.7M", "median of 5"),
    "resnet1001_v1": PublishedError(7.61, "10.2M", "median of 5"),
    "resnet110_v2": PublishedError(6.37, "1.7M", "median of 5"),
    "resnet164_v2": PublishedError(5.46, "1.7M", "median of 5"),
    "resnet1001_v2": PublishedError(4.92, "10.2M", "median of 5, 4.89 ± 0.14"),
}
# Standard deviation of the error over five runs of resnet110_v1, in points (1512.03385, table 6).
SEED_DEVIATION = 0.16

_HEAD = (
    *("network", "shortcut", "parameters", "recipe", "split", "data", "seeds"),
    *("test error %, last step", "test error %, best by validation", "the paper's error %", "difference"),
)
_ABLATION_HEAD = (
    *("change", "data", "split", "seeds", "run", "error %", "against", "error %"),
    *("difference, points", "chance explains", "beyond chance"),
)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell must not hold a vertical bar."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def results_table(results: Iterable[RunResult]) -> str:
    """A Markdown table with a row per group of seeds."""
    rows = []
    for group in group_by_seed(results):
        first = group[0]
        rows.append(
            [
                *(first.network, first.shortcut, f"{first.parameters:,}", first.recipe, first.split, first.data),
                ", ".join(f"[{result.seed}]({result.place})" for result in group),
                spread([result.error for result in group]),
                spread([result.best_error for result in group if result.best_error is not None]),
                *_published_cells(first, mean(result.error for result in group)),
            ]
        )
    return markdown_table(_HEAD, rows)


def _published_cells(run: RunResult, error: float) -> tuple[str, str]:
    """The paper's error, and the difference from it where the two are errors of the same thing."""
    published, source = PUBLISHED.get(run.network), run.settings["data.source"]
    if run.settings["dataset"] != "cifar10":
        return "–", "–"
    if published is None:
        return "not given", "–"
    reasons = [] if source == "original" else [source]
    reasons += [] if run.papers_recipe else ["recipe"]
    reasons += [] if run.default_network else ["network changed"]
    difference = f"not comparable ({', '.join(reasons)})" if reasons else signed(error - published.error)
    return published.describe(original=source == "original"), difference


def signed(points: float) -> str:
    """A difference with its sign, two digits."""
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "−")


@dataclass(frozen=True)
class Ablation:
    """One change, from the first of `sides` to the second; `side` names the side that a run is on.

    Runs of both sides may differ in the `free` settings and in no others; networks are always of one depth.
    """

    title: str
    sides: tuple[str, str]
    side: Callable[[RunResult], str | None]
    free: tuple[str, ...]

    def shared_settings(self, result: RunResult) -> str:
        """What runs of both sides have in common, as a key."""
        shared = {key: value for key, value in result.settings.items() if key not in self.free}
        shared["depth"] = re.sub(r"^(plain|resnet)|_v[12]$", "", result.network)
        return str(sorted(shared.items()))


def _version(result: RunResult) -> str:
    return result.network.rpartition("_")[2]


def _residual_or_plain(result: RunResult) -> str | None:
    if result.shortcut == "identity" and _version(result) == "v1":
        return "residual"
    return "plain" if result.network.startswith("plain") else None


# The papers' recipes for the two versions differ in the warm-up, shorter ones in its length.
_RECIPE = ("recipe.name", "recipe.warmup", "recipe.warmup_iterations")
ABLATIONS = (
    Ablation("projection against identity", ("identity", "projection"), lambda r: r.shortcut, ("builder.shortcut",)),
    Ablation(
        "v2 against v1, the papers' recipes",
        ("v1", "v2"),
        lambda r: _version(r) if r.papers_recipe else None,
        ("model", *_RECIPE),
    ),
    Ablation("v2 against v1", ("v1", "v2"), _version, ("model",)),
    Ablation("residual against plain", ("plain", "residual"), _residual_or_plain, ("model", "builder.shortcut")),
    Ablation(
        "full length against `quarter`",
        ("quarter", "full length"),
        lambda r: "full length" if r.papers_recipe else r.settings["recipe.name"],
        (*_RECIPE, "recipe.iterations"),
    ),
    Ablation(
        "bfloat16 against float32", ("float32", "mixed_bfloat16"), lambda r: r.settings["precision"], ("precision",)
    ),
)


def find_ablations(results: Sequence[RunResult]) -> list[tuple[str, list[RunResult], list[RunResult]]]:
    """Title and runs of both sides, of equal seeds (and splits), where runs differ in one ablation's change alone."""
    found = []
    for ablation in ABLATIONS:
        pairs: dict[str, dict[str | None, dict[int, RunResult]]] = {}
        for result in (result for group in group_by_seed(results) for result in group):
            pair = pairs.setdefault(ablation.shared_settings(result), {})
            pair.setdefault(ablation.side(result), {})[result.seed] = result
        for pair in pairs.values():
            first, second = (pair.get(side, {}) for side in ablation.sides)
            if seeds := sorted(first.keys() & second.keys()):
                found.append((ablation.title, [first[seed] for seed in seeds], [second[seed] for seed in seeds]))
    return found


def ablations_table(results: Sequence[RunResult]) -> str:
    """A Markdown table with a row for each pair of groups that differ in one of `ABLATIONS` alone."""
    rows = []
    for title, first, second in find_ablations(results):
        run, before, after = first[0], mean(r.error for r in first), mean(r.error for r in second)
        deviation = seed_deviation(result for result in results if result.data == run.data)
        deviation = SEED_DEVIATION if deviation is None else deviation
        threshold = noise_threshold(before, after, run.test_images, len(first), deviation)
        row = [title, run.data, run.split, ", ".join(str(result.seed) for result in first)]
        for side, error in ((second[0], after), (run, before)):
            row += [f"{side.network} ({side.shortcut}, {side.recipe})", f"{error:.2f}"]
        beyond = "yes" if abs(after - before) > threshold else "no"
        rows.append([*row, signed(after - before), f"{threshold:.2f}", beyond])
    return markdown_table(_ABLATION_HEAD, rows)


def noise_threshold(first: float, second: float, test_images: int, seeds: int, seed_deviation: float) -> float:
    """Twice the standard deviation (points) of the difference of two errors (percent), by images and seeds."""
    sampling = sum(error * (100 - error) / test_images for error in (first, second))
    return 2 * math.sqrt(sampling + 2 * seed_deviation**2 / seeds)


def seed_deviation(results: Iterable[RunResult]) -> float | None:
    """Standard deviation of the error over seeds, in points, pooled over all groups with several; None without any."""
    samples = [[result.error for result in group] for group in group_by_seed(results) if len(group) > 1]
    freedom = sum(len(sample) - 1 for sample in samples)
    if not freedom:
        return None
    return math.sqrt(sum((len(sample) - 1) * variance(sample) for sample in samples) / freedom)


_START = """# Results

Written by `resnet-tf reproduce --markdown` from the run folders beside it.

Errors are those of the last step: the test images were read once, by the report of the finished run. "Best by
validation" is the test error of the model that was best on the images kept for validation, where there were any. "JPEG
copy" is CIFAR-10 whose images went through JPEG once (quality 75): errors on it are some points above those on the
original, so that no difference from the papers is given for it, nor for another recipe than the papers' own."""

_ABLATIONS = f"""## Differences

Errors after the last step, of runs that differ in one thing, with the same seeds, data and split. Chance explains
differences up to twice their standard deviation, which has two causes: the draw of the test images (binomial; both
networks see the same ones, which makes it less by an amount that was not measured), and the seed (the standard
deviation over seeds, pooled over all groups on the same data; where no group has several seeds, {SEED_DEVIATION}
points, that of five ResNet-110 on the original data). A difference that is not beyond chance shows neither that the
change matters nor that it does not."""


def results_page(place: Path) -> str:
    """The whole page, Markdown; the same folders give the same bytes. Raises UserError where a run is damaged."""
    results = read_results(place)
    sections = [_START, results_table(results), _ABLATIONS, ablations_table(results)]
    sections += ["## Runs", _runs_table(place), "The commands, with DIR for where CIFAR-10 lies:", _commands(place)]
    sections += [_smoke_run(path.parent) for path in sorted((place / SMOKE).glob(f"*/{REPORT}"))]
    others = sorted(path for name in (PAGE, "summary.json") for path in place.glob(f"*/{name}"))
    links = [path.relative_to(place).as_posix() for path in others if path.parent.name != SMOKE]
    sections += ["## Other records", "\n".join(f"- [{link}]({link})" for link in links)] if links else []
    return "\n\n".join(sections) + "\n"


def short_table(place: Path) -> str:
    """A row for each kind of archived runs, Markdown: what was trained by which recipe on what, and its accuracy."""
    rows = []
    for group in group_by_seed(read_results(place)):
        first = group[0]
        network = first.network if first.default_network else f"{first.network}, {first.shortcut}"
        seeds = ", ".join(f"[{result.seed}]({place.name}/{result.place})" for result in group)
        accuracy = spread([100 - result.error for result in group])
        rows.append((network, first.recipe, first.split, first.data, seeds, accuracy))
    return markdown_table(("network", "recipe", "split", "data", "seeds", "test accuracy %, last step"), rows)


def _runs_table(place: Path) -> str:
    rows = []
    for folder in run_folders(place):
        settings, report = read_run(folder)
        assert report is not None
        training, name = report["training"], folder.relative_to(place).as_posix()
        rows.append(
            [
                *(f"[{name}]({name})", f"{report['iterations']:,}", settings["precision"], clock(training["seconds"])),
                f"{training['median_images_per_second']:,.0f}",
                f"{report['device']}; {settings['threads']} threads",
                ", ".join(f"{key} {report['versions'][key]}" for key in ("tensorflow", "keras")),
                f"[curves]({name}/curves.png)" if (folder / "curves.png").is_file() else "–",
            ]
        )
    head = ("run", "iterations", "precision", "wall time", "images/s, median", "device", "versions", "curves")
    return markdown_table(head, rows)


def _commands(place: Path) -> str:
    runs: dict[str, list[str]] = {}
    for folder in run_folders(place):
        found = [path for path in (folder / COMMAND, folder.parent / COMMAND) if path.is_file()]
        if found:
            command = found[0].read_text(encoding="utf-8", errors="replace").strip()
            runs.setdefault(command, []).append(folder.relative_to(place).as_posix())
    return "\n".join(f"- {', '.join(names)}:\n  `{command}`" for command, names in runs.items())


def _smoke_run(folder: Path) -> str:
    """The section on a network too large to be trained here: what a short run of it took."""
    settings, report = read_run(folder)
    assert report is not None
    notes: dict[str, Any] = read_json(folder / "smoke.json") if (folder / "smoke.json").is_file() else {}
    network, speed = settings["model"], report["training"]["median_images_per_second"]
    memory = f", {notes['peak_memory_mib']:,} MiB of memory at most" if "peak_memory_mib" in notes else ""
    sentences = [
        f"A run of {report['iterations']:,} iterations ({report['device']}, {settings['threads']} threads, "
        f"{settings['precision']}) gave {speed:,.0f} images/s (median){memory}.",
        f"64,000 iterations take {64_000 * settings['recipe.batch_size'] / speed / 3600:.1f} hours at that speed.",
    ]
    if "gpu_hours" in notes:
        estimate = f"{notes['gpu_hours']} hours: an estimate, not measured ({notes['gpu_basis']})."
        sentences.append(f"On one GPU about {estimate}")
    if network in PUBLISHED:
        sentences.append(f"The paper's error: {PUBLISHED[network].describe(original=False)}.")
    sentences.append("The whole training; the same command resumes it after any interruption:")
    command = f"    resnet-tf train --model {network} --recipe {default_recipe(network)} --data-dir DIR"
    return f"## {network}, not run here\n\n{' '.join(sentences)}\n\n{command}"
