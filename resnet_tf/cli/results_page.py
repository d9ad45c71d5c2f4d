"""The page on all committed runs, from their folders alone. Imports no TensorFlow."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.records import (
    SMOKE,
    UNFINISHED,
    read_results,
    read_run,
    run_folders,
    shortcut_of,
    train_command,
    unfinished_folders,
)
from resnet_tf.errors import UserError
from resnet_tf.models.registry import own_shortcut
from resnet_tf.recipes import default_recipe
from resnet_tf.reports.compare import clock
from resnet_tf.reports.runs import (
    FIGURES,
    SEED_DEVIATION,
    Result,
    describe_ablations,
    groups,
    markdown_table,
    results_table,
    seed_deviation,
    spread,
)

PAGE = "README.md"
NOT_RUN = ("resnet110_v2",)

_START = """# Results

Written by `resnet-tf reproduce --markdown` from the run folders beside it.

Errors are those of the last step: the test images were read once, by the report of the finished run. "Best by
validation" is the test error of the model that was best on the images kept for validation, where there were any. "JPEG
copy" is CIFAR-10 whose images went through JPEG once (quality 75): errors on it are some points above those on the
original, so that no difference from the papers is given for it, nor for another recipe than the papers' own."""

_GROUNDS = """\
Errors after the last step, of runs of the same seeds on the same data and split. What chance alone explains is taken
as twice the standard deviation of a difference of two such errors. Two things make it: the draw of the test images
(binomial; both networks see the same ones, which makes it less by an amount that was not measured), and the seed
({seeds})."""


def results_page(place: Path) -> str:
    """The whole page, Markdown; the same folders give the same bytes.

    Raises:
        UserError: a file of a run is damaged.
    """
    folders = run_folders(place)
    results = read_results(folders, place)
    smoke = {network: _smoke(place / SMOKE / network) for network in NOT_RUN}
    rows = [_row_not_run(network, record) for network, record in smoke.items()]
    parts = [_START, results_table(results, rows)]
    parts += ["## Differences", _GROUNDS.format(seeds=_seeds(results)), describe_ablations(results)]
    parts += ["## Runs", _runs_table(folders, place), "The commands, with DIR for where CIFAR-10 lies:"]
    parts += [_commands(folders, place)]
    for network, record in smoke.items():
        parts += [f"## {network}, not run here", _describe_smoke(network, record)]
    parts += _unfinished(place)
    parts += _others(place)
    return "\n\n".join(parts) + "\n"


def short_table(place: Path) -> str:
    """A line for each kind of committed runs, Markdown: what was trained by which recipe on what, and its accuracy."""
    rows = []
    for group in groups(read_results(run_folders(place), place)):
        first = group[0]
        rows.append(
            (
                first.network if first.own else f"{first.network}, {first.shortcut}",
                first.recipe_cell,
                first.split,
                first.data,
                ", ".join(f"[{result.seed}]({place.name}/{result.place})" for result in group),
                spread([100 - result.last for result in group]),
            )
        )
    return markdown_table(("network", "recipe", "split", "data", "seeds", "test accuracy %, last step"), rows)


def _seeds(results: Sequence[Result]) -> str:
    measured = {
        source: seed_deviation([result for result in results if result.data == source])
        for source in sorted({result.data for result in results if result.dataset == "cifar10"})
    }
    known = [f"{value:.2f} points on {source}" for source, value in measured.items() if value is not None]
    if known:
        return f"standard deviation measured here: {', '.join(known)}"
    return f"standard deviation {SEED_DEVIATION} points, of five ResNet-110 on the original data, none measured here"


def _runs_table(folders: Sequence[Path], place: Path) -> str:
    rows = []
    for folder in folders:
        report = _json(folder / "report.json")
        settings, training = report["settings"], report["training"]
        name = folder.relative_to(place).as_posix()
        rows.append(
            (
                f"[{name}]({name})",
                f"{report['iterations']:,}",
                settings["precision"],
                clock(training["seconds"]),
                f"{training['median_images_per_second']:,.0f}",
                f"{report['device']}; {settings.get('threads', '–')} threads",
                ", ".join(f"{key} {report['versions'][key]}" for key in ("tensorflow", "keras")),
                f"[curves]({name}/curves.png)" if _is(folder, "curves.png") else "–",
            )
        )
    head = ("run", "iterations", "precision", "wall time", "images/s, median", "device", "versions", "curves")
    return markdown_table(head, rows)


def _commands(folders: Sequence[Path], place: Path) -> str:
    made: dict[str, list[str]] = {}
    for folder in folders:
        files = [path for path in (folder / "command.txt", folder.parent / "command.txt") if path.is_file()]
        if files:
            made.setdefault(_text(files[0]).strip(), []).append(folder.relative_to(place).as_posix())
    return "\n".join(f"- {', '.join(names)}:\n  `{command}`" for command, names in made.items())


def _smoke(folder: Path) -> dict[str, Any] | None:
    """What is known of a network from a short run; None where there was none."""
    if not (folder / "report.json").is_file():
        return None
    extra = _json(folder / "smoke.json") if _is(folder, "smoke.json") else {}
    return _json(folder / "report.json") | {"smoke": extra}


def _row_not_run(network: str, record: dict[str, Any] | None) -> tuple[str, ...]:
    figure = FIGURES[network]
    parameters = figure.parameters if record is None else f"{record['parameters']:,}"
    shortcut = own_shortcut(network) if record is None else shortcut_of(record["settings"])
    published = f"{figure.error:.2f} ({figure.runs}; original data)"
    recipe = f"`{default_recipe(network)}`"
    return (network, shortcut, parameters, recipe, "–", "–", "not run here", "–", "–", published, "–")


def _describe_smoke(network: str, record: dict[str, Any] | None) -> str:
    command = f"    resnet-tf train --model {network} --recipe {default_recipe(network)} --data-dir DIR"
    going_on = "The whole training; the same command goes on with it after any interruption:"
    if record is None:
        return f"{going_on}\n\n{command}"
    settings, smoke = record["settings"], record["smoke"]
    speed = record["training"]["median_images_per_second"]
    full = 64_000 * settings["recipe.batch_size"] / speed
    memory = f", {smoke['peak_memory_mib']:,} MiB of memory at most" if "peak_memory_mib" in smoke else ""
    lines = [
        f"A run of {record['iterations']:,} iterations ({record['device']}, {settings.get('threads', '–')} threads, "
        f"{settings['precision']}) gave {speed:,.0f} images/s (median){memory}.",
        f"64,000 iterations take {full / 3600:.1f} hours at that speed.",
    ]
    if "gpu_hours" in smoke:
        lines.append(f"On one GPU about {smoke['gpu_hours']} hours: an estimate, not measured ({smoke['gpu_basis']}).")
    return f"{' '.join(lines)} {going_on}\n\n    {train_command(settings, full=True)}"


def _unfinished(place: Path) -> list[str]:
    folders = unfinished_folders(place)
    if not folders:
        return []
    lines = []
    for folder in folders:
        settings, _ = read_run(folder) or ({}, None)
        name = folder.name
        steps = [int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*.npz")]
        length = settings["recipe.iterations"]
        of = f" of {length:,}" if length else ""
        command = f"{train_command(settings)} --run-dir {shlex.quote(f'runs/{name}')}"
        lines.append(
            f"- {name}: {max(steps, default=0):,}{of} iterations done\n\n"
            f"      cp -r {place.name}/{UNFINISHED}/{name} runs/\n      {command}"
        )
    return ["## Unfinished runs", "With their newest checkpoint, to go on with elsewhere:", "\n".join(lines)]


def _others(place: Path) -> list[str]:
    """Records that are no runs of `train`."""
    pages = sorted(path for name in (PAGE, "summary.json") for path in place.glob(f"*/{name}"))
    known = [path.relative_to(place).as_posix() for path in pages if path.parent.name not in (UNFINISHED, SMOKE)]
    return ["## Other records", "\n".join(f"- [{path}]({path})" for path in known)] if known else []


def _is(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); collect the run again") from error


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); collect the run again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not the JSON object that a run writes; collect the run again")
    return value
