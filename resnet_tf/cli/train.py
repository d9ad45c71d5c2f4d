"""`resnet-tf train`: from flags to a finished run folder."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.command import load_tensorflow
from resnet_tf.cli.compare import compare_table
from resnet_tf.cli.launch import LAUNCHED
from resnet_tf.cli.request import Request, parse_request
from resnet_tf.cli.train_options import describe_recipes, make_parser
from resnet_tf.errors import UserError
from resnet_tf.training.cluster import read_cluster_spec, stop_with_launcher
from resnet_tf.training.run_dir import RunDir, check_resumable


def main(argv: Sequence[str]) -> dict[str, Any] | int:
    """Train, or go on with a run, or print the result of a finished one.

    Args:
        argv: flags, see `--help`.

    Returns:
        The run's report, with --seeds the reports by seed under "seeds", or the exit code 128 + signal when a
        signal stopped it.

    Raises:
        UserError: a flag, a file or the run folder is not as it must be.
    """
    arguments = make_parser().parse_args(argv)
    if arguments.list_recipes or arguments.list_models:
        from resnet_tf.models.registry import list_models

        print(describe_recipes() if arguments.list_recipes else "\n".join(list_models()))
        return 0
    if arguments.seeds is not None:
        return _train_seeds(arguments, argv)
    return _train(parse_request(arguments), argv)


def _train_seeds(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any] | int:
    """Train with one seed after the other; finished ones are not trained again."""
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"--seeds {','.join(map(str, arguments.seeds))} names a seed twice; give each once")
    cluster = read_cluster_spec()
    if cluster is not None and len(cluster.addresses) > 1:
        raise UserError("--seeds trains in turn in one process, which several workers cannot; launch them one by one")
    requests = []
    for seed in arguments.seeds:
        folder = None if arguments.run_dir is None else f"{arguments.run_dir}-seed{seed}"
        requests.append(parse_request(argparse.Namespace(**{**vars(arguments), "seed": seed, "run_dir": folder})))
    reports = {}
    for request in requests:
        print(f"seed {request.seed}: {request.run_dir}")
        report = _train(request, argv)
        if isinstance(report, int):
            return report
        reports[request.seed] = report
    print(compare_table([Path(request.run_dir) for request in requests]))
    return {"seeds": reports}


def _train(request: Request, argv: Sequence[str]) -> dict[str, Any] | int:
    """Train what a request asks for; the report, or an exit code."""
    folder = RunDir(Path(request.run_dir))
    if request.overwrite:
        folder.check()
    report = None if request.overwrite else _finished(request, folder)
    if report is not None:
        print(f"{folder.path} is finished; --overwrite starts anew")
        print(summary(report))
        return report
    if LAUNCHED in os.environ:
        stop_with_launcher()
    load_tensorflow()
    from resnet_tf.cli.job import run_job
    from resnet_tf.training.trainer import Stopped

    try:
        report = run_job(request, folder)
    except Stopped as stop:
        print(f"{stop}; resume with: {_command(argv)}")
        return 128 + stop.signal
    if report is None:
        return 0  # the chief reports
    print(summary(report))
    return report


def _finished(request: Request, folder: RunDir) -> dict[str, Any] | None:
    """The report of a run that these flags have already made."""
    settings = folder.settings()
    if settings is None:
        return None
    asked = request.settings()
    if request.precision != "auto":
        asked["precision"] = request.precision
    if request.threads:
        asked["threads"] = request.threads
    check_resumable(folder, settings, asked)
    return folder.report()


def _command(argv: Sequence[str]) -> str:
    kept = [argument for argument in argv if argument != "--overwrite"]
    program = "python train.py" if os.path.basename(sys.argv[0]) == "train.py" else "resnet-tf train"
    if LAUNCHED in os.environ:
        program = f"{os.environ[LAUNCHED]} train"
    return f"{program} {shlex.join(kept)}".strip()


def summary(report: dict[str, Any]) -> str:
    """The result of a run in a line or two."""
    settings, test = report["settings"], report["test"]
    if test is None:
        lines = [f"no test images; {_validation(report)} after {report['iterations']} iterations"]
    else:
        lines = [
            f"test accuracy {100 * test['top1']:.2f} % (loss {test['loss']:.4f}, {test['images']} images, "
            f"{settings['data.source']}) after {report['iterations']} iterations"
        ]
    if "best" in report:
        best = report["best"]
        of_test = "" if best["test"] is None else f", test {100 * best['test']['top1']:.2f} %"
        lines.append(
            f"best by validation: iteration {best['iteration']}, "
            f"validation {100 * best['validation_accuracy']:.2f} %{of_test}"
        )
    return "\n".join(lines)


def _validation(report: dict[str, Any]) -> str:
    accuracy = report["training"]["last_validation_accuracy"]
    if accuracy is None:
        return "and no validation images: nothing is known of its accuracy"
    return f"validation accuracy {100 * accuracy:.2f} % ({report['validation_images']} images)"
