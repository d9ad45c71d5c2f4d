"""`resnet-tf compare`: several runs in one table and one figure. Imports no TensorFlow."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.command import Parser
from resnet_tf.errors import UserError
from resnet_tf.reports.compare import RunResult, describe_runs
from resnet_tf.reports.curves import draw_comparison
from resnet_tf.reports.plots import WITHOUT_PLOTS, can_draw, save
from resnet_tf.training.logs import read_history, read_metrics
from resnet_tf.training.run_dir import RunDir, describe_diff

_NOT_A_SETTING = ("seed", "threads", "data.mean", "data.std")
_NAMED = {"model", "recipe.name", "seed"}  # settings that the table shows


def make_parser() -> Parser:
    """The parser of `resnet-tf compare`."""
    parser = Parser(
        prog="resnet-tf compare",
        description="A table of runs, with mean ± standard deviation over seeds, and their curves in one figure.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--output", default="compare.png", metavar="FILE", help="figure (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Print the table and draw the figure.

    Args:
        argv: flags, see `--help`.

    Returns:
        "table": the text that was printed.

    Raises:
        UserError: a folder holds no run, or the figure cannot be written.
    """
    arguments = make_parser().parse_args(argv)
    output = Path(arguments.output)
    if output.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--output {output} has no known ending; allowed: .png, .pdf, .svg")
    folders = [Path(run) for run in arguments.runs]
    table = compare_table(folders)
    print(table)
    courses = [read_history(folder) for folder in folders if read_metrics(folder)]
    if not can_draw():
        print(WITHOUT_PLOTS)
    elif courses:
        try:
            save(draw_comparison(courses), output)
        except OSError as error:
            raise UserError(f"--output {output} cannot be written ({error.strerror}); give another file") from error
        print(f"curves in {output}")
    return {"table": table}


def compare_table(folders: Sequence[Path]) -> str:
    """The table of some runs, and in which settings they differ.

    Raises:
        UserError: a folder holds no run, or a file in it is damaged.
    """
    all_settings = [_settings(folder) for folder in folders]
    results = [_result(folder, settings) for folder, settings in zip(folders, all_settings, strict=True)]
    lines = [describe_runs(results)]
    first = _comparable(all_settings[0])
    seen = {results[0].setting}
    for result, settings in zip(results, all_settings, strict=True):
        if result.setting not in seen:
            seen.add(result.setting)
            lines.append(f"{result.name} differs from {results[0].name}: {describe_diff(first, _comparable(settings))}")
    return "\n".join(lines)


def _settings(folder: Path) -> dict[str, Any]:
    settings = RunDir(folder).settings() if folder.is_dir() else None
    if settings is None or not settings.keys() >= _NAMED:
        raise UserError(f"{folder} holds no run; name the folder that train wrote (--run-dir)")
    return settings


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _NOT_A_SETTING}


def _result(folder: Path, settings: dict[str, Any]) -> RunResult:
    report, rows = RunDir(folder).report() or {}, read_metrics(folder)
    changed = [settings.get("builder.shortcut"), f"width {settings.get('builder.width', 1)}"]
    training = report.get("training", {})
    return RunResult(
        name=folder.resolve().name,
        setting=json.dumps(_comparable(settings), sort_keys=True),
        network=" ".join([settings["model"], *(part for part in changed if part not in (None, "width 1"))]),
        parameters=report.get("parameters"),
        recipe=settings["recipe.name"],
        seed=settings["seed"],
        validation=rows[-1].get("validation_accuracy") if rows else None,
        test=report["test"]["top1"] if report.get("test") else None,
        images_per_second=training.get("median_images_per_second"),
        seconds=training.get("seconds") or (rows[-1].get("seconds") if rows else None),
    )
