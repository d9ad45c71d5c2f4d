"""Ends a process whose fellow workers do not come; runs by itself, from this file, and needs nothing but Python.

usage: watchdog.py PROCESS SECONDS OWN_INDEX ADDRESS…

TensorFlow waits for the workers of a cluster in C++ for an hour or so, holding the interpreter's lock, and is deaf to
SIGTERM meanwhile: neither a thread nor a signal handler of the process itself can end that. This one does, unless
its stdin is closed before.
"""

import os
import select
import signal
import socket
import sys


def is_listening(address: str) -> bool:
    """Whether something listens at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def main() -> None:
    process, seconds, own = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if select.select([sys.stdin], [], [], seconds)[0]:
        return  # all are there, or the process has ended
    missing = [f"{n} ({a})" for n, a in enumerate(sys.argv[4:]) if n != own and not is_listening(a)]
    who = f"worker {', '.join(missing)}" if missing else "some worker"
    print(
        f"resnet-tf: error: {who} did not answer within {seconds:g} s (RESNET_TF_PEER_TIMEOUT); "
        "start all workers that TF_CONFIG names, each with the same flags",
        file=sys.stderr,
        flush=True,
    )
    os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
