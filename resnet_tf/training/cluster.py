"""Which machines share a run, as TF_CONFIG says it, and what ends a worker that waits for others in vain.

Run as a program (`python -m resnet_tf.training.cluster PROCESS SECONDS OWN_INDEX ADDRESS…`), it is the watchdog of one
process. Imports no TensorFlow.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from resnet_tf.errors import UserError

PEER_TIMEOUT = "RESNET_TF_PEER_TIMEOUT"  # seconds within which all workers must have started
LAUNCHED = "RESNET_TF_LAUNCHED"  # what the command that resumes begins with
WORKERS_HERE = "RESNET_TF_WORKERS_HERE"  # how many processes of a run share this machine's cores


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
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
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
    program = [sys.executable, "-m", "resnet_tf.training.cluster"]
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
