"""`resnet-tf tune`: a search for the learning rate, weight decay, batch size and width."""

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli import train_options
from resnet_tf.cli.command import Parser, integers, load_tensorflow
from resnet_tf.cli.request import Request, parse_request
from resnet_tf.cli.study import Report, SearchSpace, finished, open_study, run_study
from resnet_tf.data.dataset import DATASETS
from resnet_tf.errors import UserError, optional_import
from resnet_tf.training.run_dir import RunDir, describe_diff

_TRAIN_FLAGS = ("model", "dataset", "data_dir", "recipe", "epochs", "seed", "shortcut")
_RUN_FLAGS = ("device", "precision", "threads")


def _range(text: str) -> tuple[float, float]:
    low, high = (float(part) for part in text.split(","))
    return low, high


def make_parser() -> Parser:
    """The parser of `resnet-tf tune`."""
    space = SearchSpace()
    parser = Parser(
        prog="resnet-tf tune",
        description="Search for good settings by validation accuracy; the test set is not read. "
        "The same command goes on with a search that was stopped.",
    )
    parser.add_argument("--trials", type=int, required=True, help="finished trials to come to")
    parser.add_argument("--study-dir", help="default: runs/tune-<model>-<dataset>")
    parser.add_argument("--model", default="resnet20_v2", help="network by name (default: %(default)s)")
    parser.add_argument(
        "--shortcut", choices=train_options.SHORTCUTS, help="default: the network's or the recipe's own"
    )
    parser.add_argument("--dataset", default="cifar10", help=f"{', '.join(DATASETS)} (default: %(default)s)")
    parser.add_argument("--data-dir", help="folder or archive with CIFAR; default: Keras' cache, then a download")
    parser.add_argument("--recipe", default="quick", help="all that is not searched for (default: %(default)s)")
    parser.add_argument("--epochs", type=float, help="length of a trial (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the search and of every trial (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N (default: auto)")
    parser.add_argument("--precision", choices=train_options.PRECISIONS, default="auto", help="default: fastest native")
    parser.add_argument("--threads", type=int, default=0, help="threads an operation may use (default: one per core)")
    group = parser.add_argument_group("where to look")
    for name, kind, about in (
        ("learning_rate", _range, "LOW,HIGH"),
        ("weight_decay", _range, "LOW,HIGH"),
        ("batch_size", integers, "N,N,…"),
        ("width", integers, "N,N,…"),
    ):
        default = getattr(space, name)
        text = f"default: {','.join(f'{value:g}' for value in default)}"
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=about, default=default, help=text)
    return parser


def main(argv: Sequence[str]) -> dict[str, Any] | int:
    """Search, and print the best settings as a train command.

    Args:
        argv: flags, see `--help`.

    Returns:
        trials, pruned, accuracy, settings and command of the best, or the exit code 128 + signal.

    Raises:
        UserError: optuna is missing, a flag is not as it must be, or the study's folder belongs to another search.
    """
    arguments = make_parser().parse_args(argv)
    space = _space(arguments)
    optional_import("optuna", "tune")
    folder = RunDir(Path(arguments.study_dir or f"runs/tune-{arguments.model}-{arguments.dataset}"))
    _request(arguments, _middle(space), folder.path)
    settings = {key: getattr(arguments, key) for key in _TRAIN_FLAGS if key != "data_dir"} | {
        f"space.{key}": list(value) for key, value in vars(space).items()
    }
    known = folder.settings()
    if known is not None and known != settings:
        raise UserError(
            f"{folder.path} belongs to another search: {describe_diff(known, settings)}; give another --study-dir"
        )
    load_tensorflow()
    from resnet_tf.cli.trial import Trials
    from resnet_tf.training.trainer import Stopped

    folder.lock()
    try:
        if known is None:
            folder.create(settings)
        study = open_study(folder.path / "study.db", arguments.seed)
        before = len(finished(study))
        if before:
            print(f"going on after {before} finished trials")
        trials = Trials(_request(arguments, _middle(space), folder.path))

        def objective(number: int, chosen: dict[str, Any], report: Report) -> float | None:
            request = _request(arguments, chosen, folder.path / f"trial{number:04d}")
            print(f"trial {number}: {_words(chosen)}")
            value = trials.run(request, report)
            shutil.rmtree(Path(request.run_dir) / "checkpoints", ignore_errors=True)
            print(f"trial {number}: " + ("pruned" if value is None else f"validation accuracy {100 * value:.2f} %"))
            return value

        run_study(study, space, arguments.trials, objective)
        return _report(study, arguments)
    except Stopped as stop:
        print(f"trial stopped by signal {stop.signal}; the same command goes on")
        return 128 + stop.signal
    finally:
        folder.release()


def _space(arguments: argparse.Namespace) -> SearchSpace:
    for name in ("learning_rate", "weight_decay"):
        low, high = getattr(arguments, name)
        if not 0 < low < high:
            raise UserError(
                f"--{name.replace('_', '-')} {low:g},{high:g} is no range; give two numbers, 0 < low < high"
            )
    if arguments.trials < 1:
        raise UserError(f"--trials {arguments.trials} is out of range; give 1 or more")
    return SearchSpace(arguments.learning_rate, arguments.weight_decay, arguments.batch_size, arguments.width)


def _middle(space: SearchSpace) -> dict[str, Any]:
    """Some settings of the space, to check the other flags with before anything starts."""
    return {
        "learning_rate": space.learning_rate[0],
        "weight_decay": space.weight_decay[0],
        "batch_size": min(space.batch_size),
        "width": min(space.width),
    }


def _train_argv(arguments: argparse.Namespace, chosen: dict[str, Any]) -> list[str]:
    values = {key: getattr(arguments, key) for key in _TRAIN_FLAGS} | chosen
    pairs = [(f"--{key.replace('_', '-')}", value) for key, value in values.items() if value is not None]
    return [part for flag, value in pairs for part in (flag, f"{value:g}" if isinstance(value, float) else str(value))]


def _request(arguments: argparse.Namespace, chosen: dict[str, Any], folder: Path) -> Request:
    argv = [*_train_argv(arguments, chosen), "--run-dir", str(folder)]
    argv += [part for key in _RUN_FLAGS for part in (f"--{key}", str(getattr(arguments, key)))]
    request = parse_request(train_options.make_parser().parse_args(argv))
    if request.recipe.validation_size == 0:
        raise UserError(f"--recipe {arguments.recipe} keeps no validation images to search by; give another one")
    return request


def _report(study: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    done = finished(study)
    complete = [trial for trial in done if trial.value is not None and trial.state.name == "COMPLETE"]
    best = max(complete, key=lambda trial: trial.value)
    chosen = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in best.params.items()}
    command = f"python train.py {shlex.join(_train_argv(arguments, chosen))}"
    print(
        f"{len(done)} trials finished ({len(done) - len(complete)} of them pruned); best is trial {best.number} with "
        f"validation accuracy {100 * best.value:.2f} %:\n{command}"
    )
    return {
        "trials": len(done),
        "pruned": len(done) - len(complete),
        "accuracy": best.value,
        "settings": chosen,
        "command": command,
    }


def _words(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in chosen.items())
