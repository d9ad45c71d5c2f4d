"""What belongs to the whole process: recursion limit, output streams, signals, and the import of TensorFlow."""

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from resnet_tf.errors import UserError

FRAMES_PER_CONVOLUTION = 20  # ResNet-1202 builds, saves and loads within 20,000 frames

_lock = threading.Lock()
_limits_before: list[int] = []  # one for each block that is inside recursion_limit now, in whatever thread


@contextlib.contextmanager
def recursion_limit(depth: int) -> Iterator[None]:
    """Raise the interpreter's recursion limit for a network of `depth` convolutions while the block runs.

    The limit is one for all threads. The block that is last to end puts back what was there before the first.
    """
    with _lock:
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(max(before, FRAMES_PER_CONVOLUTION * depth))
        _limits_before.append(before)
    try:
        yield
    finally:
        with _lock:
            original = _limits_before.pop()
            if not _limits_before:
                sys.setrecursionlimit(original)


@contextlib.contextmanager
def suppress_output(handles: Sequence[int] = (1, 2)) -> Iterator[None]:
    """Swallow stdout and stderr of the process, or one of them; if the block raises, print it on stderr after all."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    saved = [os.dup(handle) for handle in handles]
    with tempfile.TemporaryFile() as swallowed:
        for handle in handles:
            os.dup2(swallowed.fileno(), handle)
        failed = True
        try:
            with contextlib.redirect_stdout(sys.__stderr__ if 1 in handles else sys.stdout):
                yield
            failed = False
        finally:
            sys.stderr.flush()
            for handle, original in zip(handles, saved, strict=True):
                os.dup2(original, handle)
                os.close(original)
            if failed:
                swallowed.seek(0)
                os.write(2, swallowed.read())


@contextlib.contextmanager
def only_python_on_stderr() -> Iterator[None]:
    """Swallow what C libraries print on stderr, but not what Python does; for the main thread of a command."""
    if sys.stderr is None or sys.stderr is not sys.__stderr__:  # closed, a notebook's or a test's
        yield
        return
    with contextlib.ExitStack() as stack:
        visible = stack.enter_context(open(os.dup(2), "w", buffering=1, errors="backslashreplace"))
        stack.enter_context(contextlib.redirect_stderr(visible))
        stack.enter_context(suppress_output((2,)))
        yield


def load_tensorflow() -> None:
    """Import TensorFlow and Keras without the lines that they print at start-up; call it before anything else does.

    TensorFlow's later remarks below errors are silenced as well, unless TF_CPP_MIN_LOG_LEVEL is set.

    Raises:
        UserError: Keras is set to another backend than TensorFlow, or one of them cannot be imported.
    """
    # Several lines come from C++ before any setting can hide them, so stderr is redirected at the level of the file
    # descriptor (tensorflow issue 100442). What was swallowed is shown when the import fails.
    if "tensorflow" in sys.modules and "keras" in sys.modules:
        return
    backend = _keras_backend()
    if backend != "tensorflow":
        raise UserError(
            f"Keras is set to the backend {backend!r} (KERAS_BACKEND or keras.json); the commands need 'tensorflow': "
            "set KERAS_BACKEND=tensorflow"
        )
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = os.environ.get("TF_CPP_MIN_LOG_LEVEL") or "3"
    missing = None
    with suppress_output((2,)):
        try:
            importlib.import_module("keras")
            importlib.import_module("tensorflow").config.list_physical_devices()
        except ImportError as error:
            missing = error
    if missing is not None:
        raise UserError(f"TensorFlow or Keras cannot be imported ({missing}); reinstall them") from missing


def _keras_backend() -> str:
    """The backend that Keras will take, read as Keras reads it: the variable first, then keras.json."""
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    path = Path(os.environ.get("KERAS_HOME") or Path("~").expanduser() / ".keras") / "keras.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


class StopRequest:
    """Context in which the first signal asks for a stop and a second one, but a hang-up, ends the process at once.

    `signal` is the number of the one that came, or None. Only Python's main thread can handle signals: in others this
    context does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                # nohup has hang-ups ignored, and so they stay.
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGHUP:
                return  # a terminal that closes may send several
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
