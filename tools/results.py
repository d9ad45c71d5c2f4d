"""The records of finished runs in `results/`: archiving a run, its page, and what one change made (ablations).

`python -m tools.results RUN` archives a finished run; `python -m tools.documents` then writes the page.
"""

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, variance
from typing import Any

from resnet_tf.cli.main import run_command
from resnet_tf.errors import UserError
from resnet_tf.files import replacing
from resnet_tf.recipes import default_recipe
from resnet_tf.reports.runs import (
    COMMAND,
    REPORT,
    SETTINGS,
    SMOKE,
    Settings,
    clock,
    default_shortcut,
    overrides,
    read_run,
    read_settings,
    run_folders,
    shortcut_of,
    spread,
)
from resnet_tf.reports.tables import (
    PUBLISHED,
    RunResult,
    group_by_seed,
    markdown_table,
    published_error,
    read_results,
    results_table,
    signed,
)

PAGE = "README.md"
_ARCHIVED = (SETTINGS, REPORT, COMMAND, "metrics.csv", "curves.png")
# Standard deviation of the error over five runs of resnet110_v1, in points (1512.03385, table 6).
SEED_DEVIATION = 0.16

_ABLATION_HEAD = (
    *("change", "data", "split", "seeds", "run", "error %", "against", "error %"),
    *("difference, points", "chance explains", "beyond chance"),
)


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

Written by `python -m tools.documents` from the run folders beside it.

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
    path = folder / "smoke.json"
    notes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
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
        sentences.append(f"The paper's error: {published_error(network, 'other')}.")
    sentences.append("The whole training; the same command resumes it after any interruption:")
    command = f"    resnet-tf train --model {network} --recipe {default_recipe(network)} --data-dir DIR"
    return f"## {network}, not run here\n\n{' '.join(sentences)}\n\n{command}"


def archive_run(run: Path, place: Path, name: str | None = None) -> Path:
    """Copy a finished run's settings, report, command, metrics and curves to a folder of its own below `place`."""
    settings, report = read_run(run)
    if report is None:
        raise UserError(f"{run} is not finished; run its command again first")
    if name is not None and (name == ".." or name != Path(name).name):
        raise UserError(f"invalid name={name!r}; expected the name of a folder (results=… says where it goes)")
    target = place / (name or _folder_name(settings))
    if target.exists() and (not (target / SETTINGS).is_file() or read_settings(target / SETTINGS) != settings):
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
        "" if shortcut == default_shortcut(network) else shortcut,
        "" if dataset == "cifar10" else dataset.replace(":", "-").replace("/", "-"),
        settings["recipe.name"],
        *(change.replace("=", "-").replace(",", "-").replace("_", "-") for change in overrides(settings)),
        "" if settings["recipe.validation_size"] else "all-images",
        "float32" if settings["precision"] == "float32" else "",
        f"seed{settings['seed']}",
    ]
    return "-".join(word for word in words if word)


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Archive finished runs, and say where."""
    parser = argparse.ArgumentParser(prog="python -m tools.results", description="archive finished runs")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--results", type=Path, default="results", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--name", help="of the folder that is made of one run (default: by its settings)")
    arguments = parser.parse_args(argv)
    if arguments.name and len(arguments.runs) > 1:
        raise UserError("--name is of one folder; give one run")
    folders = [str(archive_run(run, arguments.results, arguments.name)) for run in arguments.runs]
    print("\n".join(f"archived in {folder}" for folder in folders))
    return {"folders": folders}


if __name__ == "__main__":
    raise SystemExit(run_command(main, sys.argv[1:]))
