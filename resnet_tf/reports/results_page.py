"""The page on all archived runs, from their folders alone. Imports no TensorFlow."""

from pathlib import Path
from typing import Any

from resnet_tf.recipes import default_recipe
from resnet_tf.reports.compare import clock
from resnet_tf.reports.runs import COMMAND, REPORT, SMOKE, group_by_seed, read_json, read_results, read_run, run_folders
from resnet_tf.reports.tables import PUBLISHED, SEED_DEVIATION, ablations_table, markdown_table, results_table, spread

PAGE = "README.md"

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
    sections = [_START, results_table(results)]
    sections += [_ABLATIONS, ablations_table(results)]
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
        rows.append(
            (
                first.network if first.default_network else f"{first.network}, {first.shortcut}",
                first.recipe,
                first.split,
                first.data,
                ", ".join(f"[{result.seed}]({place.name}/{result.place})" for result in group),
                spread([100 - result.error for result in group]),
            )
        )
    return markdown_table(("network", "recipe", "split", "data", "seeds", "test accuracy %, last step"), rows)


def _runs_table(place: Path) -> str:
    rows = []
    for folder in run_folders(place):
        settings, report = read_run(folder)
        assert report is not None
        training, name = report["training"], folder.relative_to(place).as_posix()
        rows.append(
            (
                f"[{name}]({name})",
                f"{report['iterations']:,}",
                settings["precision"],
                clock(training["seconds"]),
                f"{training['median_images_per_second']:,.0f}",
                f"{report['device']}; {settings['threads']} threads",
                ", ".join(f"{key} {report['versions'][key]}" for key in ("tensorflow", "keras")),
                f"[curves]({name}/curves.png)" if (folder / "curves.png").is_file() else "–",
            )
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
    """The section on a network that is too large to be trained here: what a short run of it took."""
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
        gpu = f"On one GPU about {notes['gpu_hours']} hours: an estimate, not measured ({notes['gpu_basis']})."
        sentences.append(gpu)
    if network in PUBLISHED:
        sentences.append(f"The paper's error: {PUBLISHED[network].describe(original=False)}.")
    sentences.append("The whole training; the same command resumes it after any interruption:")
    command = f"    resnet-tf train --model {network} --recipe {default_recipe(network)} --data-dir DIR"
    return f"## {network}, not run here\n\n{' '.join(sentences)}\n\n{command}"
