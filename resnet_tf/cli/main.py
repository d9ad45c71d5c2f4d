"""The console command `resnet-tf`."""

import importlib
import sys
from collections.abc import Sequence

from resnet_tf import __version__
from resnet_tf.cli.command import Parser, escape_unprintable, run_command

COMMANDS = {
    "train": "train a network by a recipe, or go on with a run",
    "launch": "a training as several processes on this machine",
    "evaluate": "score a saved model or a run on a test set",
    "reproduce": "the papers' results in a table; trains what is missing",
    "predict": "classify image files",
    "import-weights": "make a Keras model from a PyTorch checkpoint",
    "compare": "several runs in one table and one figure",
    "tune": "search for good settings by validation accuracy",
    "summary": "parameters and multiply-adds of a network, by stage",
    "export": "write a model in another format and compare it",
}
# What these make is in files, and takes long.
LASTING = ("train", "reproduce", "tune")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: arguments after the program's name; None takes those of the process.

    Returns:
        Exit code: 0, 1 for partly done, 2 for an error of use, 128 plus its number after a signal.
    """
    escape_unprintable()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="resnet-tf", description="Residual networks for TensorFlow 2 and Keras 3.")
    parser.add_argument("--version", action="version", version=f"resnet-tf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, about in COMMANDS.items():
        commands.add_parser(name, help=about, add_help=False)
    chosen = parser.parse_args(arguments[:1]).command
    module = importlib.import_module(f"resnet_tf.cli.{chosen.replace('-', '_')}")
    return run_command(module.main, arguments[1:], lasting=chosen in LASTING)


def entry_point() -> None:
    """Run the console command and exit with its code."""
    raise SystemExit(main())
