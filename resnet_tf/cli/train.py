"""`resnet-tf train`: parse, train, print."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.main import Parser, add_flags, integers
from resnet_tf.config import GROUPS, OPTIONS, TrainConfig, make_config
from resnet_tf.errors import UserError
from resnet_tf.models.registry import list_models
from resnet_tf.process import LAUNCHED, load_tensorflow, prefer_onednn, read_cluster_spec, stop_with_launcher
from resnet_tf.recipes import FINE_TUNING, RECIPE_FIELDS, RECIPES, Recipe
from resnet_tf.training.run_dir import RunDir, check_resumable, default_run_dir, describe_report

_OWN_FLAGS = ("list_recipes", "list_models", "seeds")
_TRAIN_IMAGES, _SPEED = 50_000, 1_900  # of CIFAR-10; images/s of ResNet-20 in bfloat16 on two quiet cores, about
_MEASURED = {
    "he2015": "12.9 % error on a JPEG copy of CIFAR-10 (resnet20_v1, one seed)",
    "quarter": "14.0 % error on a JPEG copy of CIFAR-10 (resnet20_v1, one seed)",
    "he2016": "13.3 % error on a JPEG copy of CIFAR-10 (resnet20_v2, one seed)",
    "quick": "11.2 % error on CIFAR-10 (resnet20_v2, one seed), 0.9 % on shapes after 8 epochs",
}


def make_parser() -> Parser:
    """The parser of `resnet-tf train`: a flag for every field of `TrainConfig` and `Recipe`."""
    parser = Parser(
        prog="resnet-tf train",
        description="Train a network by a recipe. The same command goes on with a run that was stopped.",
    )
    parser.add_argument("--list-recipes", action="store_true", help="print the recipes and exit")
    parser.add_argument("--list-models", action="store_true", help="print the networks and exit")
    parser.add_argument("--seeds", type=integers, metavar="K,K,…", help="several runs in turn, one folder each")
    group: Any = parser
    for field in OPTIONS:
        if field.name in GROUPS:
            group = parser.add_argument_group(GROUPS[field.name])
        add_flags(group, TrainConfig, [field])
    group = parser.add_argument_group("recipe fields, overriding the recipe's own")
    add_flags(group, Recipe, RECIPE_FIELDS, defaults=False)
    group.add_argument(
        "--scale-learning-rate",
        action="store_true",
        help="times --batch-size over the recipe's own batch size; --warmup linear then starts at the unscaled one",
    )
    return parser


def parse_options(argv: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments of `resnet_tf.train` that some flags stand for, checked, without loading TensorFlow."""
    return _options(make_parser().parse_args(argv))


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    recipe_fields = {field.name for field in RECIPE_FIELDS} - {"shortcut"}
    options = {
        name: value
        for name, value in vars(arguments).items()
        if name not in _OWN_FLAGS and not (name in recipe_fields and value is None)
    }
    config = make_config(**options)
    return options | {"run_dir": config.run_dir or default_run_dir(config, options["recipe"] is not None)}


def main(argv: Sequence[str]) -> dict[str, Any] | int:
    """Train, or go on with a run, or print the result of a finished one.

    Returns the run's report, with --seeds the reports by seed under "seeds", or the exit code 128 + signal when a
    signal stopped it.
    """
    arguments = make_parser().parse_args(argv)
    if arguments.list_recipes or arguments.list_models:
        print(describe_recipes() if arguments.list_recipes else "\n".join(list_models()))
        return 0
    if arguments.seeds is None:
        return _train(_options(arguments), argv)
    return _train_seeds(arguments, argv)


def _train_seeds(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any] | int:
    """Train with one seed after the other; finished ones are not trained again."""
    if len(set(arguments.seeds)) < len(arguments.seeds):
        raise UserError(f"seeds={','.join(map(str, arguments.seeds))} names a seed twice; give each once")
    cluster = read_cluster_spec()
    if cluster is not None and len(cluster.addresses) > 1:
        raise UserError("seeds=… trains in turn in one process, which several workers cannot; launch them one by one")
    runs = []
    for seed in arguments.seeds:
        folder = None if arguments.run_dir is None else f"{arguments.run_dir}-seed{seed}"
        runs.append(_options(argparse.Namespace(**{**vars(arguments), "seed": seed, "run_dir": folder})))
    reports = {}
    for options in runs:
        print(f"seed {options['seed']}: {options['run_dir']}")
        report = _train(options, argv)
        if isinstance(report, int):
            return report
        reports[options["seed"]] = report
    from resnet_tf.cli.compare import compare_table

    print(compare_table([Path(options["run_dir"]) for options in runs]))
    return {"seeds": reports}


def _train(options: dict[str, Any], argv: Sequence[str]) -> dict[str, Any] | int:
    """Train by some options; the report, or an exit code."""
    run_dir = RunDir(Path(options["run_dir"]))
    if options["overwrite"]:
        run_dir.check()
    elif (report := _finished(options, run_dir)) is not None:
        print(f"{run_dir.path} is finished; --overwrite starts anew")
        print(describe_report(report, run_dir.path))
        return report
    if LAUNCHED in os.environ:
        stop_with_launcher()
    prefer_onednn()
    load_tensorflow()
    from resnet_tf.fitting import train
    from resnet_tf.training.trainer import Stopped

    command = _command(argv)
    arguments = {**options, "threads": options["threads"] or 0, "command": command}
    data = arguments.pop("dataset")
    try:
        result = train(data=data, **arguments)
    except Stopped as stop:
        print(f"{stop}; resume with: {command}")
        return 128 + stop.signal
    return result.report if "settings" in result.report else 0  # the chief reports


def _finished(options: dict[str, Any], run_dir: RunDir) -> dict[str, Any] | None:
    """The report of a run that these options have already made."""
    settings = run_dir.settings()
    if settings is None:
        return None
    asked = make_config(**options).settings()
    if options["precision"] != "auto":
        asked["precision"] = options["precision"]
    if options["threads"]:
        asked["threads"] = options["threads"]
    check_resumable(run_dir, settings, asked)
    return run_dir.report()


def _command(argv: Sequence[str]) -> str:
    kept = [argument for argument in argv if argument != "--overwrite"]
    program = "python train.py" if os.path.basename(sys.argv[0]) == "train.py" else "resnet-tf train"
    if LAUNCHED in os.environ:
        program = f"{os.environ[LAUNCHED]} train"
    return f"{program} {shlex.join(kept)}".strip()


def describe_recipes() -> str:
    """All recipes with the fields in which they differ from the defaults, what they cost and what they reached."""
    lines = []
    for recipe in RECIPES.values():
        minutes = round(
            recipe.length(round(_TRAIN_IMAGES * (1 - recipe.validation_size))) * recipe.batch_size / _SPEED / 60
        )
        cost = f"about {minutes} minutes" if recipe.name != FINE_TUNING else "15 times your images, some minutes"
        lines += [f"{recipe.name}: {recipe.about}", f"    {recipe.describe()}"]
        lines.append(f"    ResNet-20 on two quiet cores: {cost}; measured: {_MEASURED.get(recipe.name, 'nothing yet')}")
    shared = {field.name: field.default for field in RECIPE_FIELDS if field.default is not None}
    lines.append("where nothing else is said: " + ", ".join(f"{key}={value}" for key, value in shared.items()))
    return "\n".join(lines)
