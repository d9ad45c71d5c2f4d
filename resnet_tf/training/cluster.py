"""Which machines share a run, as TF_CONFIG says it. Imports no TensorFlow."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

from resnet_tf.errors import UserError
from resnet_tf.training import watchdog

PEER_TIMEOUT = "RESNET_TF_PEER_TIMEOUT"
WORKERS_HERE = "RESNET_TF_WORKERS_HERE"  # how many processes of a run share this machine's cores
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # that a run answers by saving and stopping
DEFAULT_PEER_TIMEOUT = "300"  # seconds within which all workers must have started


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


def stop_with_launcher() -> None:
    """Send this process a SIGTERM once the launcher, which holds its stdin open, is gone, even by SIGKILL."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def startup_watchdog(cluster: ClusterSpec) -> Iterator[None]:
    """End the process, with a line on who is missing, unless the block is through in RESNET_TF_PEER_TIMEOUT seconds."""
    text = os.environ.get(PEER_TIMEOUT) or DEFAULT_PEER_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"invalid {PEER_TIMEOUT} {text}; expected a number of seconds above 0")
    arguments = (os.getpid(), seconds, cluster.index, *cluster.addresses)
    with subprocess.Popen([sys.executable, watchdog.__file__, *map(str, arguments)], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()
