"""What belongs to the whole process: recursion limit, output streams, signals, the import of TensorFlow, other workers.

Run as a program (`python -m resnet_tf.process PROCESS SECONDS OWN_INDEX ADDRESS…`), it is the watchdog of one process
that waits for the other workers of its run. Imports no TensorFlow by itself.
"""

import contextlib
import dataclasses
import importlib
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from resnet_tf.errors import UserError

PEER_TIMEOUT = "RESNET_TF_PEER_TIMEOUT"  # seconds within which all workers must have started
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"  # TensorFlow's own, which it reads when it is imported
LAUNCHED = "RESNET_TF_LAUNCHED"  # what the command that resumes begins with
WORKERS_HERE = "RESNET_TF_WORKERS_HERE"  # how many processes of a run share this machine's cores
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
    """Swallow what C libraries print on stderr, but not what Python does; does nothing in other than the main thread.

    The stream is the whole process', and threads that put it aside by turns would leave it aside.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or sys.stderr is None or sys.stderr is not sys.__stderr__:  # closed, a notebook's or a test's
        yield
        return
    with contextlib.ExitStack() as stack:
        visible = stack.enter_context(open(os.dup(2), "w", buffering=1, errors="backslashreplace"))
        stack.enter_context(contextlib.redirect_stderr(visible))
        stack.enter_context(suppress_output((2,)))
        yield


def prefer_onednn() -> None:
    """Have TensorFlow, when it is imported, compute by oneDNN on x86 processors, unless its variable is set.

    By default it does so only on those with VNNI; on others ResNet-20 trains at half the speed then. It is for networks
    of this package alone: without VNNI oneDNN returns wrong gradients for the kernels of strided 1x1 convolutions of
    fewer than 8 channels (oneDNN issue 6035).
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.setdefault(ONEDNN, "1")


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


@dataclasses.dataclass(frozen=True)
class ClusterSpec:
    """The workers of a run in their order, and which of them this process is; number 0 is the chief."""

    addresses: tuple[str, ...]
    index: int


def read_cluster_spec() -> ClusterSpec | None:
    """The cluster of TF_CONFIG; None where it is not set or names no worker."""
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
        jobs = config.get("cluster") or {}
        chiefs, workers = jobs.get("chief", []), jobs.get("worker", [])
        addresses = tuple(map(str, [*chiefs, *workers]))
        if not addresses:
            return None
        task = config["task"]
        index = int(task["index"]) + {"chief": 0, "worker": len(chiefs)}[task["type"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"invalid TF_CONFIG ({type(error).__name__}: {error}); expected JSON such as "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    if not 0 <= index < len(addresses):
        raise UserError(f"TF_CONFIG calls this task number {index} of {len(addresses)}; give 0 to {len(addresses) - 1}")
    return ClusterSpec(addresses, index)


def child_environment() -> dict[str, str]:
    """The environment of this process, in which `python -m resnet_tf` is this package."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def stop_with_launcher() -> None:
    """Send this process a SIGTERM once the launcher, which holds its stdin open, is gone, even by SIGKILL."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def startup_watchdog(cluster: ClusterSpec) -> Iterator[None]:
    """End the process, with a line on who is missing, unless the block is through in RESNET_TF_PEER_TIMEOUT seconds.

    TensorFlow waits for other workers in C++ for an hour or so, holding the interpreter's lock, and is deaf to SIGTERM
    meanwhile: no thread or signal handler of the process itself can end that, so that another process has to.
    """
    text = os.environ.get(PEER_TIMEOUT) or "300"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"invalid {PEER_TIMEOUT} {text}; expected a number of seconds above 0")
    program = [sys.executable, "-m", "resnet_tf.process"]
    arguments = map(str, (os.getpid(), seconds, cluster.index, *cluster.addresses))
    with subprocess.Popen([*program, *arguments], stdin=subprocess.PIPE, env=child_environment()) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()


def _watch(process: int, seconds: float, own_index: int, addresses: list[str]) -> None:
    """Kill a process after these seconds, unless stdin is closed before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if select.select([sys.stdin], [], [], seconds)[0]:
        return  # all are there, or the process has ended
    missing = [f"{n} ({a})" for n, a in enumerate(addresses) if n != own_index and not _is_listening(a)]
    who = f"worker {', '.join(missing)}" if missing else "some worker"
    message = f"resnet-tf: error: {who} did not answer within {seconds:g} s ({PEER_TIMEOUT}); "
    message += "start all workers that TF_CONFIG names, each with the same flags"
    print(message, file=sys.stderr, flush=True)
    os.kill(process, signal.SIGKILL)


def _is_listening(address: str) -> bool:
    """Whether something listens at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    _watch(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
