"""`resnet-tf tune`: parse, tune, print."""

import shlex
from collections.abc import Sequence
from typing import Any

from resnet_tf.cli.evaluate import DATA_DIR_HELP
from resnet_tf.cli.main import Parser, integers
from resnet_tf.config import PRECISIONS, SHORTCUTS
from resnet_tf.data.dataset import DATASETS
from resnet_tf.errors import optional_import
from resnet_tf.process import load_tensorflow

_TRAIN_FLAGS = ("model", "dataset", "data_dir", "recipe", "epochs", "seed", "shortcut")


def _range(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    return low, high


def make_parser() -> Parser:
    """The parser of `resnet-tf tune`."""
    parser = Parser(
        prog="resnet-tf tune",
        description="Search for good settings by validation accuracy; the test set is not read. "
        "The same command goes on with a search that was stopped.",
    )
    parser.add_argument("--trials", type=int, required=True, help="finished trials to come to")
    parser.add_argument("--study-dir", help="default: runs/tune-<model>-<dataset>")
    parser.add_argument("--model", default="resnet20_v2", help="network by name (default: %(default)s)")
    parser.add_argument("--shortcut", choices=SHORTCUTS, help="default: the network's or the recipe's own")
    parser.add_argument("--dataset", default="cifar10", help=f"{', '.join(DATASETS)} (default: %(default)s)")
    parser.add_argument("--data-dir", help=DATA_DIR_HELP)
    parser.add_argument("--recipe", default="quick", help="all that is not searched for (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="length of a trial (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search and of every trial (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N (default: auto)")
    parser.add_argument("--precision", choices=("auto", *PRECISIONS), default="auto", help="default: fastest native")
    parser.add_argument("--threads", type=int, default=0, help="threads an operation may use (default: one per core)")
    group = parser.add_argument_group("where to look")
    for name, kind, metavar, default in (
        ("learning_rate", _range, "LOW,HIGH", (0.01, 1.0)),
        ("weight_decay", _range, "LOW,HIGH", (1e-5, 1e-3)),
        ("batch_size", integers, "N,N,…", (64, 128, 256)),
        ("width", integers, "N,N,…", (1,)),
    ):
        text = f"default: {','.join(f'{value:g}' for value in default)}"
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=metavar, default=default, help=text)
    return parser


def main(argv: Sequence[str]) -> dict[str, Any] | int:
    """Search, and print the best settings as a train command; or return the exit code 128 + signal."""
    arguments = vars(make_parser().parse_args(argv))
    optional_import("optuna", "tune")
    load_tensorflow()
    from resnet_tf.training.trainer import Stopped
    from resnet_tf.tuning import tune

    try:
        result = tune(**arguments, log=print)
    except Stopped as stop:
        print(f"trial stopped by signal {stop.signal}; the same command goes on")
        return 128 + stop.signal
    values = {key: arguments[key] for key in _TRAIN_FLAGS if arguments[key] is not None} | result.best
    flags = [
        part
        for key, value in values.items()
        for part in (f"--{key.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))
    ]
    command = f"resnet-tf train {shlex.join(flags)}"
    print(
        f"{result.trials} trials finished ({result.pruned} of them pruned); best is trial {result.number} with "
        f"validation accuracy {100 * result.accuracy:.2f} %:\n{command}"
    )
    return {
        "trials": result.trials,
        "pruned": result.pruned,
        "accuracy": result.accuracy,
        "settings": result.best,
        "command": command,
    }
