"""The console command `resnet-tf`, and what its subcommands share: parser, flags made from fields, one-line errors."""

import argparse
import contextlib
import dataclasses
import importlib
import io
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TextIO, cast

from resnet_tf import __version__
from resnet_tf.errors import UserError, printable
from resnet_tf.files import check_outputs
from resnet_tf.recipes import attribute_texts, floats

COMMANDS = {
    "train": "train a network by a recipe, or go on with a run",
    "launch": "a training as several processes on this machine",
    "preview": "draw images of a data set as the network sees them",
    "evaluate": "score a saved model or a run on a test set",
    "reproduce": "the papers' results in a table; trains what is missing",
    "predict": "classify image files",
    "import-weights": "make a Keras model from a PyTorch checkpoint",
    "compare": "several runs in one table and one figure",
    "tune": "search for good settings by validation accuracy",
    "summary": "parameters and multiply-adds of a network, by stage",
    "export": "write a model in another format and compare it",
}
FIGURES = (".png", ".pdf", ".svg")
# What these make is in files, and takes long.
LASTING = ("train", "reproduce", "tune")


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line and whose flags are not abbreviated.

    Attributes:
        flags: the flag of each argument of the command that was parsed last.
    """

    flags: ClassVar[dict[str, str]] = {}

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and remember the flags, so that errors of the library can be told in them."""
        flags = {action.dest: action.option_strings[-1] for action in self._actions if action.option_strings}
        # Under their own names as well, and what Python's functions call `data`.
        Parser.flags = {flag.lstrip("-").replace("-", "_"): flag for flag in flags.values()} | flags
        Parser.flags.setdefault("data", "--dataset")
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(f"argument {flags.get(name, name)}: the value is empty; give one")
        return found

    def error(self, message: str) -> NoReturn:
        """Print one line that ends in where to find help, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {printable(' '.join(message.split()))} (see {self.prog} --help)\n")


def add_flags(group: Any, cls: type, fields: Iterable[dataclasses.Field], defaults: bool = True) -> None:
    """Add a flag for each of the fields of a class; without `defaults`, one that is not given is None."""
    texts = attribute_texts(cls)
    for field in fields:
        meta, default = field.metadata, field.default if defaults else None
        name = meta.get("flag", field.name)
        if name is None:
            continue
        shown = default is not None and not isinstance(default, bool)
        options: dict[str, Any] = {"dest": field.name, "default": default}
        text = texts[field.name].rstrip(".").replace("`", "").replace("%", "%%")
        options["help"] = text + (" (default: %(default)s)" if shown else "")
        if isinstance(field.default, bool):
            options["action"] = "store_true" if defaults else argparse.BooleanOptionalAction
        else:
            kind = meta.get("parse") or (str if field.default is None else type(field.default))
            options |= {"type": kind, "choices": meta.get("choices")}
            options["metavar"] = meta.get("metavar") or (None if options["choices"] else name.upper())
        group.add_argument(f"--{name.replace('_', '-')}", **options)


def add_train_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of `train` with these names of fields."""
    from resnet_tf.config import OPTIONS, TrainConfig  # here: --help alone does without NumPy, which it imports

    add_flags(parser, TrainConfig, [field for field in OPTIONS if field.name in names])


def add_inference_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of how a model runs."""
    from resnet_tf.config import ANY_PRECISION

    group = parser.add_argument_group("for a model that takes scaled pixels and does not scale them itself")
    group.add_argument("--input-scale", type=ratio, metavar="X", help="times this after --mean, such as 1/255")
    group.add_argument(
        "--mean",
        type=numbers_or_file,
        metavar="R,G,B",
        help="subtracted, 0-255 units; or one number, an image (FILE.npy), in evaluate also pixel-mean: the training "
        "data's mean image",
    )
    group.add_argument("--std", type=floats, metavar="R,G,B", help="divided by, in place of --input-scale")
    parser.add_argument(
        "--precision",
        choices=ANY_PRECISION,
        default="float32",
        help="what it computes in; 16 bits change the results slightly, and auto takes them where they are faster",
    )
    parser.add_argument("--fold-bn", action="store_true", help="fold batch normalization into convolutions first")


def ratio(text: str) -> float:
    """A number such as 0.5 or 1/255; not a number where the denominator is 0."""
    numerator, _, denominator = text.partition("/")
    return float(numerator) / (float(denominator or 1) or math.nan)


def numbers_or_file(text: str) -> tuple[float, ...] | str:
    """Numbers such as 125,123,114, or an .npy file, or "pixel-mean"."""
    return text if text == "pixel-mean" or text.endswith(".npy") else floats(text)


def integers(text: str) -> tuple[int, ...]:
    """The numbers of a flag's value such as 0,1,2; argparse makes its ValueError a line."""
    return tuple(int(part) for part in text.split(","))


def check_output_file(
    argument: str, file: str | None, endings: tuple[str, ...] = (), inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse an output of another ending, or one that `check_outputs` refuses."""
    if file and endings and not file.endswith(endings):
        raise UserError(f"{argument}={file!r} has no known ending; allowed: {', '.join(endings)}")
    check_outputs({argument: file}, inputs)


@contextlib.contextmanager
def writing(argument: str, file: str) -> Iterator[Path]:
    """A context that writes a file, in which a disk that refuses is an error of use."""
    try:
        yield Path(file)
    except OSError as error:
        raise UserError(f"{argument}={file!r} cannot be written ({error.strerror}); give another file") from error


def in_flags(message: str, flags: dict[str, str]) -> str:
    """A message of the library with `argument=value` told in flags; the flag alone for True and …."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in flags:
            return match[0]
        if value in ("True", "…"):
            return flags[name]
        value = ",".join(value[1:-1].split(", ")).rstrip(",") if value.startswith("(") else value.strip("'\"")
        return f"{flags[name]} {value}"

    return re.sub(r"\b([a-z][a-z0-9_]*)=('[^']*'|\"[^\"]*\"|\([^)]*\)|[^\s,;:)]+)", flag, message)


def run_command(command: Callable[[Sequence[str]], Any], argv: Sequence[str], lasting: bool = False) -> int:
    """Run a command's main function and turn its errors into one line on stderr.

    Returns 0; 2 after a `UserError`; 128 plus the number of the signal that stopped it, that of SIGPIPE where the
    reader of its output has gone (as with `| head`). One that is `lasting` goes on when nobody takes what it prints.
    """
    output = contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout, lasting)))
    with warnings.catch_warnings(), output:
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            code = command(argv)
            _flush_output()
        except UserError as error:
            print(f"resnet-tf: error: {' '.join(in_flags(str(error), Parser.flags).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("resnet-tf: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            _silence(sys.stdout)
            return 128 + signal.SIGPIPE
    return code if isinstance(code, int) else 0


def _show_warning(message: Warning | str, *_: Any) -> None:
    told = in_flags(printable(str(message)), Parser.flags)
    print(f"resnet-tf: warning: {' '.join(told.split())}", file=sys.stderr)


def open_streams() -> None:
    """Give the process standard streams where it was started without, and let stdout show any text as plain text."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:  # closed, as by `>&-`: the next file that is opened would get all that is printed
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _silence(stream: TextIO) -> None:
    """Let what a stream still holds and all that follows vanish; the interpreter would fail over it at its end."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _silence(sys.stdout)
        raise UserError(f"the output cannot be written ({error.strerror}); make room, or send it elsewhere") from error


class _Output:
    """Standard output, on which names in files control no terminal; where it is `lasting`, it never fails."""

    def __init__(self, stream: TextIO, lasting: bool) -> None:
        self._stream, self._lasting = stream, lasting

    def write(self, text: str) -> int:
        self._try(self._stream.write, printable(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[..., Any], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            if not self._lasting:
                raise
            _silence(self._stream)
            if not isinstance(error, BrokenPipeError):  # `| head` wants to hear nothing of it
                with contextlib.suppress(OSError):
                    print(
                        f"resnet-tf: the output cannot be written any more ({error.strerror}); going on",
                        file=sys.stderr,
                    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: arguments after the program's name; None takes those of the process.

    Returns:
        Exit code: 0, 1 for partly done, 2 for an error of use, 128 plus its number after a signal.
    """
    open_streams()
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
