"""`resnet-tf compare`: several runs in one table and one figure. Imports no TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.main import FIGURES, Parser, check_output_file, writing
from resnet_tf.reports.curves import draw_comparison
from resnet_tf.reports.plots import WITHOUT_PLOTS, can_draw, save
from resnet_tf.reports.runs import compare_runs
from resnet_tf.training.logs import read_history, read_metrics


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
    """Print the table, draw the figure, and return the table's text as "table"."""
    arguments = make_parser().parse_args(argv)
    check_output_file("output", arguments.output, FIGURES)
    folders = [Path(run) for run in arguments.runs]
    table = compare_table(folders)
    print(table)
    histories = [read_history(folder) for folder in folders if read_metrics(folder)]
    if not can_draw():
        print(WITHOUT_PLOTS)
    elif histories:
        with writing("output", arguments.output) as output:
            save(draw_comparison(histories), output)
        print(f"curves in {output}")
    return {"table": table}


def compare_table(folders: Sequence[Path]) -> str:
    """The table of some runs, and in which settings they differ."""
    return compare_runs(folders, [read_metrics(folder) for folder in folders])
