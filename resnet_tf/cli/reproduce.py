"""`resnet-tf reproduce`: the papers' results, trained where they are missing, in one table beside the papers'."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_tf.cli.collect import collect, restore_run
from resnet_tf.cli.command import Parser, integers
from resnet_tf.cli.records import answers, read_results, run_folders, unfinished_folders
from resnet_tf.cli.request import Request, parse_request
from resnet_tf.cli.results_page import PAGE, results_page
from resnet_tf.cli.train_options import make_parser as make_train_parser
from resnet_tf.data.dataset import check_name, load_dataset
from resnet_tf.errors import UserError
from resnet_tf.files import write_text
from resnet_tf.reports.runs import Result, describe_ablations, results_table
from resnet_tf.training.run_dir import SETTINGS

# Given by the flags of this command, or by the folder that it chooses.
_OURS = ("--model", "--seed", "--seeds", "--recipe", "--data-dir", "--dataset", "--run-dir", "--overwrite")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def make_parser() -> Parser:
    """The parser of `resnet-tf reproduce`."""
    parser = Parser(
        prog="resnet-tf reproduce",
        description="Train what is missing of the papers' results on CIFAR-10, go on with what is unfinished, and\n"
        "print all results beside the papers' errors. The same command goes on after any interruption.",
        epilog="Flags of train may follow after --, such as -- --shortcut projection --validation-size 0",
    )
    parser.add_argument(
        "--nets",
        type=_names,
        default=("resnet20_v1", "resnet20_v2"),
        metavar="NET,…",
        help="default: resnet20_v1,resnet20_v2",
    )
    parser.add_argument("--seeds", type=integers, default=(0,), metavar="K,K,…", help="default: 0")
    parser.add_argument("--recipe", help="default: he2015 for v1, he2016 for v2 networks, as in the papers")
    parser.add_argument("--dataset", default="cifar10", help="data set by name (default: %(default)s)")
    parser.add_argument("--data-dir", help="folder or archive with CIFAR; default: Keras' cache, then a download")
    parser.add_argument("--results", default="results", metavar="DIR", help="runs that are kept (default: %(default)s)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where it trains (default: %(default)s)")
    parser.add_argument("train_flags", nargs="*", metavar="-- FLAGS", help="of train, for all runs")
    group = parser.add_argument_group("instead of training")
    others = group.add_mutually_exclusive_group()
    others.add_argument("--plan", action="store_true", help="say what there is and what would be trained, and exit")
    others.add_argument(
        "--markdown", action="store_true", help=f"write {PAGE} into the --results folder, from the runs in it alone"
    )
    others.add_argument(
        "--collect", metavar="RUN", help="copy what is kept of a run, finished or not, into the --results folder"
    )
    group.add_argument("--name", help="of the folder that --collect makes (default: by its settings)")
    return parser


@dataclass(frozen=True)
class PlannedRun:
    """A run that is asked for.

    Attributes:
        request: as train takes it.
        argv: flags of train.
        kept: folder of the finished run, None where it is to be trained.
        unfinished: folder in --results of the run to go on with where there is none in --runs, else None.
    """

    request: Request
    argv: list[str]
    kept: Path | None
    unfinished: Path | None

    def describe(self) -> str:
        """What will be done."""
        what = f"{self.request.model}, recipe {self.request.recipe.name}, seed {self.request.seed}"
        if self.kept is not None:
            return f"{what}: finished, {self.kept}"
        run = Path(self.request.run_dir)
        if (run / SETTINGS).exists():
            return f"{what}: goes on in {run}"
        return f"{what}: {'goes on from ' + str(self.unfinished) if self.unfinished else 'to be trained'} in {run}"


def main(argv: Sequence[str]) -> dict[str, Any] | int:
    """Train what is missing and print the table, or do one of the other things.

    Args:
        argv: flags, see `--help`.

    Returns:
        "table" and "differences" as printed, "plan" with what was asked for, "page" or "folder" with what was written;
        or the exit code 128 + signal when a signal stopped a training.

    Raises:
        UserError: a flag, the data or a folder is not as it must be.
    """
    arguments = make_parser().parse_args(argv)
    place = Path(arguments.results)
    if arguments.name and not arguments.collect:
        raise UserError("--name says what --collect makes; add --collect RUN")
    if arguments.collect:
        folder = collect(Path(arguments.collect), place, arguments.name)
        print(f"kept in {folder}")
        return {"folder": str(folder)}
    if arguments.markdown:
        return _write_page(place)
    wanted = _plan(arguments, place)
    for one in wanted:
        print(one.describe())
    plan = [one.describe() for one in wanted]
    if arguments.plan:
        return {"plan": plan}
    for one in wanted:
        code = _train(one)
        if code:
            return code
    results = _all_results(place, Path(arguments.runs))
    table, differences = results_table(results), describe_ablations(results)
    print(f"{table}\n\n{differences}")
    return {"plan": plan, "table": table, "differences": differences}


def _write_page(place: Path) -> dict[str, Any]:
    if not place.is_dir():
        raise UserError(f"--results {place} does not exist; collect a run into it first (--collect RUN)")
    page = place / PAGE
    try:
        write_text(page, results_page(place))
    except OSError as error:
        raise UserError(f"{page} cannot be written ({error.strerror}); give another --results") from error
    print(f"written to {page}")
    return {"page": str(page)}


def _plan(arguments: Any, place: Path) -> list[PlannedRun]:
    """The runs that are asked for, with what there is of each.

    Raises:
        UserError: a flag is not as it must be, or the data is not there.
    """
    flags = list(arguments.train_flags)
    for flag in _OURS:
        if any(given == flag or given.startswith(f"{flag}=") for given in flags):
            raise UserError(f"{flag} does not go behind --: reproduce sets it itself; see resnet-tf reproduce --help")
    if not arguments.nets or len(set(arguments.nets)) < len(arguments.nets):
        raise UserError("--nets names no network, or one twice; give each once, such as resnet20_v1,resnet20_v2")
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"--seeds {','.join(map(str, arguments.seeds))} names a seed twice; give each once")
    check_name(arguments.dataset, arguments.data_dir)
    asked = [(net, seed) for net in arguments.nets for seed in arguments.seeds]
    made = [_request(arguments, net, seed, flags) for net, seed in asked]
    print(f"reading {arguments.dataset} …")
    from resnet_tf.data.dataset import fingerprint

    data = load_dataset(arguments.dataset, arguments.data_dir)
    digest = fingerprint(data.train)
    kept = [*run_folders(place), *run_folders(Path(arguments.runs))]
    unfinished = unfinished_folders(place)
    return [
        PlannedRun(
            request,
            argv,
            next((folder for folder in kept if answers(folder, request, digest)), None),
            next((folder for folder in unfinished if answers(folder, request, digest)), None),
        )
        for request, argv in made
    ]


def _request(arguments: Any, net: str, seed: int, flags: Sequence[str]) -> tuple[Request, list[str]]:
    argv = ["--model", net, "--dataset", arguments.dataset, "--seed", str(seed), *flags]
    if arguments.recipe:
        argv += ["--recipe", arguments.recipe]
    if arguments.data_dir:
        argv += ["--data-dir", arguments.data_dir]
    parser = make_train_parser()
    usual = Path(parse_request(parser.parse_args(argv)).run_dir).name
    # Runs of other flags must not meet in one folder.
    words = re.sub(r"[^A-Za-z0-9.,]+", "-", " ".join(flags)).strip("-")
    stem, _, _ = usual.rpartition("-seed")
    name = "-".join(part for part in (stem, words) if part)
    argv += ["--run-dir", str(Path(arguments.runs) / f"{name}-seed{seed}")]
    return parse_request(parser.parse_args(argv)), argv


def _train(wanted: PlannedRun) -> int:
    """Train or go on, unless it is finished; the exit code."""
    from resnet_tf.cli.train import main as train

    run = Path(wanted.request.run_dir)
    if wanted.kept is not None:
        return 0
    if wanted.unfinished is not None and not (run / SETTINGS).exists():
        restore_run(wanted.unfinished, run)
    print(f"resnet-tf train {shlex.join(wanted.argv)}")
    outcome = train(wanted.argv)
    return outcome if isinstance(outcome, int) else 0


def _all_results(*places: Path) -> list[Result]:
    """All finished runs; one that is in several places counts once, as it is in the first of them."""
    found: dict[str, Result] = {}
    for place in places:
        for result in read_results(run_folders(place), Path()):
            found.setdefault(f"{sorted(result.settings.items())} {result.seed}", result)
    return list(found.values())
