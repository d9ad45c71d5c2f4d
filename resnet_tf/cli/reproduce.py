"""`resnet-tf reproduce`: the papers' results, trained where they are missing, in one table beside the papers'."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_tf.cli import train
from resnet_tf.cli.main import Parser, add_train_flags, integers
from resnet_tf.config import TrainConfig, make_config
from resnet_tf.data.cifar import load_dataset
from resnet_tf.data.dataset import check_name, fingerprint
from resnet_tf.errors import UserError
from resnet_tf.reports.runs import SETTINGS, canonical_settings, read_run, run_folders
from resnet_tf.reports.tables import read_results, results_table

# Given by the flags of this command, or by the folder that it chooses.
_OWN_FLAGS = ("--model", "--seed", "--seeds", "--recipe", "--data-dir", "--dataset", "--run-dir", "--overwrite")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def make_parser() -> Parser:
    """The parser of `resnet-tf reproduce`."""
    parser = Parser(
        prog="resnet-tf reproduce",
        description="Train what is missing of the papers' results on CIFAR-10, resume what is unfinished, and print\n"
        "all results beside the papers' errors. The same command resumes after any interruption.",
        epilog="Flags of train may follow after --, such as -- --shortcut projection --validation-size 0",
    )
    default = "resnet20_v1,resnet20_v2"
    parser.add_argument("--nets", type=_names, default=_names(default), metavar="NET,…", help=f"default: {default}")
    parser.add_argument("--seeds", type=integers, default=(0,), metavar="K,K,…", help="default: 0")
    parser.add_argument("--recipe", help="default: he2015 for v1, he2016 for v2 networks, as in the papers")
    add_train_flags(parser, "dataset", "data_dir")
    parser.add_argument("--results", default="results", metavar="DIR", help="archived runs (default: %(default)s)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where it trains (default: %(default)s)")
    parser.add_argument("train_flags", nargs="*", metavar="-- FLAGS", help="of train, for all runs")
    parser.add_argument("--plan", action="store_true", help="print what is there and what would be trained, and exit")
    return parser


@dataclass(frozen=True)
class PlannedRun:
    """A run that is asked for, with the flags of train that make it, and where it lies if it is finished."""

    config: TrainConfig
    argv: list[str]
    finished: Path | None

    def describe(self) -> str:
        """What the run is and what will be done."""
        run = Path(str(self.config.run_dir))
        state = f"to be {'resumed' if (run / SETTINGS).exists() else 'trained'} in {run}"
        state = f"finished, {self.finished}" if self.finished else state
        return f"{self.config.model}, recipe {self.config.recipe.name}, seed {self.config.seed}: {state}"


def main(argv: Sequence[str]) -> dict[str, Any] | int:
    """Train what is missing and print the table; returns what was printed, or 128 + signal where one stopped it."""
    arguments = make_parser().parse_args(argv)
    planned = _plan(arguments)
    plan = [run.describe() for run in planned]
    print("\n".join(plan))
    if arguments.plan:
        return {"plan": plan}
    for run in planned:
        if run.finished is None:
            print(f"resnet-tf train {shlex.join(run.argv)}")
            outcome = train.main(run.argv)
            if isinstance(outcome, int) and outcome:
                return outcome
    # A run that is in several places counts once, as it is in the last of them.
    places = (Path(arguments.runs), Path(arguments.results))
    results = [result for place in places for result in read_results(place, Path())]
    table = results_table({f"{sorted(result.settings.items())} {result.seed}": result for result in results}.values())
    print(table)
    return {"plan": plan, "table": table}


def _plan(arguments: Any) -> list[PlannedRun]:
    """The runs that are asked for, with what there is of each."""
    for flag in _OWN_FLAGS:
        if any(given.partition("=")[0] == flag for given in arguments.train_flags):
            raise UserError(f"{flag} does not go behind --: reproduce sets it itself; see resnet-tf reproduce --help")
    for flag, values in (("--nets", arguments.nets), ("--seeds", arguments.seeds)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"{flag} {','.join(map(str, values))} is empty or repeats a value; give each once")
    check_name(arguments.dataset, arguments.data_dir)
    configs = [_config(arguments, net, seed) for net in arguments.nets for seed in arguments.seeds]
    print(f"reading {arguments.dataset} …")
    digest = fingerprint(load_dataset(arguments.dataset, arguments.data_dir).train)
    folders = [*run_folders(Path(arguments.results)), *run_folders(Path(arguments.runs))]
    known = [(folder, canonical_settings(read_run(folder)[0]).items()) for folder in folders]
    planned = []
    for config, argv in configs:
        settings = config.settings() | {"data.fingerprint": digest}
        settings |= {} if config.precision == "auto" else {"precision": config.precision}
        wanted = canonical_settings(settings).items()
        finished = next((folder for folder, items in known if all(item in items for item in wanted)), None)
        planned.append(PlannedRun(config, argv, finished))
    return planned


def _config(arguments: Any, net: str, seed: int) -> tuple[TrainConfig, list[str]]:
    flags = arguments.train_flags
    argv = ["--model", net, "--dataset", arguments.dataset, "--seed", str(seed), *flags]
    argv += ["--recipe", arguments.recipe] if arguments.recipe else []
    argv += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    stem, _, _ = Path(train.parse_options(argv)["run_dir"]).name.rpartition("-seed")
    # Runs of other flags must not meet in one folder.
    words = re.sub(r"[^A-Za-z0-9.,]+", "-", " ".join(flags)).strip("-")
    name = "-".join(word for word in (stem, words, f"seed{seed}") if word)
    argv += ["--run-dir", str(Path(arguments.runs) / name)]
    return make_config(**train.parse_options(argv)), argv
