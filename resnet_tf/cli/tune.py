"""`resnet-tf tune`: parse, tune, print."""

import shlex
from collections.abc import Sequence
from typing import Any

from resnet_tf.cli.main import Parser, add_train_flags, integers
from resnet_tf.errors import optional_import
from resnet_tf.process import load_tensorflow, prefer_onednn

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
    parser.add_argument("--recipe", default="quick", help="all that is not searched for (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="length of a trial (default: the recipe's)")
    add_train_flags(parser, "model", "dataset", "data_dir", "seed", "shortcut", "device", "precision", "threads")
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
    arguments["threads"] = arguments["threads"] or 0
    optional_import("optuna", "tune")
    prefer_onednn()
    load_tensorflow()
    from resnet_tf.training.trainer import Stopped
    from resnet_tf.tuning import tune

    try:
        result = tune(data=arguments["dataset"], **{k: v for k, v in arguments.items() if k != "dataset"}, log=print)
    except Stopped as stop:
        print(f"trial stopped by signal {stop.signal}; the same command goes on")
        return 128 + stop.signal
    values = {key: arguments[key] for key in _TRAIN_FLAGS if arguments[key] is not None} | result.best
    flags = []
    for key, value in values.items():
        flags += [f"--{key.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    command = f"resnet-tf train {shlex.join(flags)}"
    print(
        f"{result.trials} trials finished ({result.pruned} of them pruned); best is trial {result.number} with "
        f"validation accuracy {100 * result.accuracy:.2f} %:\n{command}"
    )
    found = {"trials": result.trials, "pruned": result.pruned, "accuracy": result.accuracy}
    return found | {"settings": result.best, "command": command}
