"""`resnet-tf launch`: all workers of a run on one machine."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any

from resnet_tf.cli import train
from resnet_tf.cli.main import Parser
from resnet_tf.errors import UserError
from resnet_tf.process import LAUNCHED, WORKERS_HERE, StopRequest, child_environment

_LOOK = 0.1  # seconds between two looks at the workers
_LAST_LINES = 5
_REFUSED = 2  # exit code of an error of use
_STOPPED = [128 + number for number in StopRequest.SIGNALS]  # exit codes of a run that was stopped and is saved


def make_parser() -> Parser:
    """The parser of `resnet-tf launch`."""
    parser = Parser(
        prog="resnet-tf launch",
        description="Run a training as several processes on this machine, which share each batch. The first one's "
        "output is shown, that of another one if it fails. The same command goes on with a run that was stopped.",
    )
    parser.add_argument("--workers", type=int, required=True, help="how many processes")
    parser.add_argument("command", nargs="...", metavar="-- train …", help="the training and its flags")
    return parser


def main(argv: Sequence[str]) -> int:
    """Start the workers, wait for them, and end all of them when one dies.

    Returns 0 when all did well, otherwise the exit code of the first that did not, 128 + its number for a signal.
    """
    arguments = make_parser().parse_args(argv)
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not 1 <= arguments.workers <= 1024:
        raise UserError(f"--workers {arguments.workers} is out of range; allowed: 1 to 1024")
    if command[:1] != ["train"]:
        raise UserError("launch starts trainings: resnet-tf launch --workers N -- train …")
    program = [sys.executable, "-m", "resnet_tf", *_shared(command)]
    with contextlib.ExitStack() as stack:
        # The chief prints here, the others to files that vanish.
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(arguments.workers - 1)]
        return stack.enter_context(Group(program, [None, *outputs])).wait()


def _shared(command: list[str]) -> list[str]:
    """The command as each worker gets it; UserError where they would not share the run, or `train` would refuse it."""
    parser = Parser(prog="resnet-tf launch", add_help=False)
    parser.add_argument("--strategy", default="multiworker")
    known, others = parser.parse_known_args(command)
    if known.strategy not in ("auto", "multiworker"):
        raise UserError(f"launch shares a run by --strategy multiworker; leave --strategy {known.strategy} out")
    shared = [*others, "--strategy", "multiworker"]
    train.parse_options(shared[1:])  # one line here, and not one from each worker
    return shared


class Group:
    """The processes of a run; leaving the context ends what still runs."""

    def __init__(self, program: Sequence[str], outputs: Sequence[IO[bytes] | None], grace: float = 5.0) -> None:
        """Take what each worker runs, and for each where it prints; None means this process's own output.

        `grace` is how many seconds the others get to end by themselves when one has died.
        """
        self._program, self._outputs, self._grace = program, outputs, grace
        self._workers: list[subprocess.Popen[bytes]] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Group":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._forward)
        addresses = [f"127.0.0.1:{port}" for port in _free_ports(len(self._outputs))]
        for index, output in enumerate(self._outputs):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            environment = {
                "TF_CONFIG": json.dumps(config),
                WORKERS_HERE: str(len(self._outputs)),
                LAUNCHED: f"resnet-tf launch --workers {len(self._outputs)} --",
            }
            # In a session of its own: the terminal's Ctrl-C would otherwise reach it twice. Its stdin stays open while
            # this process lives, so that it hears of any end of it.
            process = subprocess.Popen(
                self._program,
                env=child_environment() | environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )
            self._workers.append(process)
        return self

    def __exit__(self, *error: object) -> None:
        self._end()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self) -> int:
        """Wait until all have ended or one has failed; then end the others and say who it was.

        Returns 0, the exit code that a signal gave all of them, or that of the one that failed.
        """
        while True:
            codes = [process.poll() for process in self._workers]
            ended = [(code, index) for index, code in enumerate(codes) if code is not None]
            failed = [(code > 0, index) for code, index in ended if code not in (0, *_STOPPED)]
            if failed:
                self._end()
                # One that was killed before those that missed it then, and the chief before others.
                return self._blame(min(failed)[1])
            # A worker that has stopped has not failed: the chief may still be saving.
            if len(ended) == len(codes):
                return next((code for code in codes if code), 0)
            time.sleep(_LOOK)

    def _blame(self, index: int) -> int:
        code, output = self._workers[index].returncode, self._outputs[index]
        what = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        # What train has refused, or asks for, it has said itself.
        then = "" if code == _REFUSED else "; the same command goes on from the last checkpoint"
        print(f"resnet-tf launch: worker {index} {what} and the others were ended{then}", file=sys.stderr)
        if output is not None and code > 0:  # one that was killed has said nothing of it
            output.seek(0)
            lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
            print(*(f"    {line}" for line in lines[-_LAST_LINES:]), sep="\n", file=sys.stderr)
        return 128 - code if code < 0 else code

    def _end(self) -> None:
        """End what still runs: by itself, by SIGTERM, by SIGKILL."""
        self._forward(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline and any(process.poll() is None for process in self._workers):
            time.sleep(_LOOK)
        self._forward(signal.SIGKILL)
        for process in self._workers:
            process.wait()

    def _forward(self, number: int, frame: FrameType | None = None) -> None:
        for process in self._workers:
            process.send_signal(number)  # does nothing where it has ended


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
