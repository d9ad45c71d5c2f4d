"""What all commands share: one-line errors, and TensorFlow without its start-up noise."""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from resnet_tf.cli.output import flush_output, going_on_unheard, silence
from resnet_tf.errors import UserError


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line and whose flags are not abbreviated."""

    def __init__(self, **options: Any) -> None:
        """Take the arguments of `argparse.ArgumentParser`."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Print one line that ends in where to find help, and exit with code 2."""
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: error: {line} (see {self.prog} --help)\n")


def integers(text: str) -> tuple[int, ...]:
    """The numbers of a flag's value such as 0,1,2; argparse makes its ValueError a line."""
    return tuple(int(part) for part in text.split(","))


def floats(text: str) -> tuple[float, ...]:
    """Likewise, such as 0.5,0.75."""
    return tuple(float(part) for part in text.split(","))


def run_command(command: Callable[[Sequence[str]], Any], argv: Sequence[str], unheard: bool = False) -> int:
    """Run a command's main function and turn its errors into one line on stderr.

    Args:
        command: main function.
        argv: its arguments.
        unheard: whether it goes on when nobody takes what it prints.

    Returns:
        0; 2 after a `UserError`; 128 plus the number of the signal that stopped it, that of SIGPIPE where the
        reader of its output has gone (as with `| head`).
    """
    with going_on_unheard() if unheard else contextlib.nullcontext():
        try:
            code = command(argv)
            flush_output()
        except UserError as error:
            print(f"resnet-tf: error: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("resnet-tf: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            silence(sys.stdout)
            return 128 + signal.SIGPIPE
    return code if isinstance(code, int) else 0


def load_tensorflow() -> None:
    """Import TensorFlow and Keras without the lines that they print at start-up.

    Several of those come from C++ before any setting can hide them, so stderr is redirected at the
    level of the file descriptor while they are imported (tensorflow issue 100442). What was
    swallowed is shown when the import fails.

    Raises:
        UserError: Keras is set to another backend, or cannot be imported.
    """
    if "tensorflow" in sys.modules and "keras" in sys.modules:
        return
    backend = _keras_backend()
    if backend != "tensorflow":
        raise UserError(
            f"Keras is set to the backend {backend!r} (KERAS_BACKEND or keras.json); the commands need 'tensorflow': "
            "set KERAS_BACKEND=tensorflow"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 2)
        try:
            import keras  # noqa: F401
            import tensorflow as tf

            tf.config.list_physical_devices()
        except ImportError as error:
            raise UserError(f"TensorFlow or Keras cannot be imported ({error}); reinstall them") from error
        except BaseException:
            noise.seek(0)
            os.write(saved, noise.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _keras_backend() -> str:
    """The backend that Keras will take, read as Keras reads it: the variable first, then keras.json."""
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    path = Path(os.environ.get("KERAS_HOME") or Path("~").expanduser() / ".keras") / "keras.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"
