"""Standard output that cannot take everything: no reader, no room, or an encoding that lacks a character."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from resnet_tf.errors import UserError


def escape_unprintable() -> None:
    """Let stdout show what its encoding lacks, and file names that are no text, as escapes instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def silence(stream: TextIO) -> None:
    """Let what a stream still holds and all that follows vanish; the interpreter would fail over it at its end."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


def flush_output() -> None:
    """Write out what stdout still holds.

    Raises:
        BrokenPipeError: its reader has gone.
        UserError: it cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        raise UserError(f"the output cannot be written ({error.strerror}); make room, or send it elsewhere") from error


@contextlib.contextmanager
def going_on_unheard() -> Iterator[None]:
    """A context in which printing on stdout never fails, for work whose results are in files."""
    with contextlib.redirect_stdout(cast(TextIO, _Lasting(sys.stdout))):
        yield


class _Lasting:
    """A stream that falls silent where it would fail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        silence(self._stream)
        if isinstance(error, BrokenPipeError):
            return  # `| head` wants to hear nothing of it
        with contextlib.suppress(OSError):
            print(f"resnet-tf: the output cannot be written any more ({error.strerror}); going on", file=sys.stderr)
