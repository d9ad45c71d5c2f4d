"""Starts trainings in children of a process that has imported TensorFlow and not started it, and has them die.

A line of JSON on stdin asks for one: the folder in which `run` lies, flags, what kills it and after how many seconds,
and whether it draws. A line on stdout says how it ended. Every write, flush to the disk, rename and removal in the
run's folder, and the begin and the end of each evaluation, is an operation. `kill` is its number, or PART:N for
operation N on files with that part in their names; a write dies after half of its bytes, and where no such operation
comes, the report dies. All kills are SIGKILL, to the whole of the process.
"""

import builtins
import contextlib
import io
import json
import os
import signal
import sys
import time
import traceback

real_open, real_fsync, real_replace, real_unlink = builtins.open, os.fsync, os.replace, os.unlink


class Reaper:
    """Counts operations and kills the process at one of them."""

    def __init__(self, folder: str, kill: str) -> None:
        self.folder = os.path.abspath(folder)
        self.part, _, number = kill.rpartition(":")
        self.left = int(number)
        self.count = 0

    def watches(self, path) -> bool:
        try:
            return os.path.abspath(os.fspath(path)).startswith(self.folder + os.sep)
        except TypeError:  # a file descriptor
            return False

    def is_next(self, path) -> bool:
        self.count += 1
        if self.left < 10**8 and "report.json" in os.path.basename(path):
            return True  # what was to kill it did not come: better late than never
        if self.part not in os.path.basename(path):
            return False
        self.left -= 1
        return self.left == -1

    def pass_or_die(self, path) -> None:
        if self.is_next(path):
            os.kill(os.getpid(), signal.SIGKILL)


class DyingFile:
    """A binary file whose writes are operations."""

    def __init__(self, file, path, reaper: Reaper) -> None:
        self._file, self._path, self._reaper = file, path, reaper

    def write(self, data):
        if self._reaper.is_next(self._path):
            view = memoryview(data).cast("B") if not isinstance(data, bytes | bytearray) else data
            self._file.write(view[: len(view) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __iter__(self):
        return iter(self._file)


def patch(reaper: Reaper) -> None:
    from resnet_tf import fitting

    def dying_open(path, mode="r", *args, **options):
        writes = any(letter in mode for letter in "wax+") and reaper.watches(path)
        if writes:
            reaper.pass_or_die(os.fspath(path))
        file = real_open(path, mode, *args, **options)
        return DyingFile(file, os.fspath(path), reaper) if writes and "b" in mode else file

    def dying_fsync(handle):
        reaper.pass_or_die(os.readlink(f"/proc/self/fd/{handle}"))
        return real_fsync(handle)

    def dying_replace(source, target, **options):
        if reaper.watches(target):
            reaper.pass_or_die(os.fspath(target))
        return real_replace(source, target, **options)

    def dying_unlink(path, **options):
        if reaper.watches(path):
            reaper.pass_or_die(os.fspath(path))
        return real_unlink(path, **options)

    def dying_evaluator(*arguments):
        evaluate = make_evaluator(*arguments)

        def evaluate_or_die():
            reaper.pass_or_die("evaluation")
            result = evaluate()
            reaper.pass_or_die("evaluation")
            return result

        return evaluate_or_die

    builtins.open = io.open = dying_open
    os.fsync, os.replace, os.unlink = dying_fsync, dying_replace, dying_unlink
    make_evaluator, fitting.make_evaluator = fitting.make_evaluator, dying_evaluator


def train(folder, flags, kill, draws) -> int:
    """The child: train in `folder`/run, with all that is printed in `folder`/output."""
    os.chdir(folder)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    reaper = Reaper("run", kill)
    patch(reaper)
    if not draws:
        sys.modules["matplotlib.figure"] = None  # as without the extra plots
    from resnet_tf.cli.main import main

    sys.argv = ["train.py"]
    code = main(["train", *flags, "--run-dir", "run"])
    print(f"operations: {reaper.count}", flush=True)
    return code


def wait(child: int, seconds: float | None) -> int:
    """How a child ended, -9 if it was killed; where it takes longer than that, it is."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        pid, status = os.waitpid(child, os.WNOHANG if deadline else 0)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            deadline = None
        time.sleep(0.01)


def serve() -> None:
    # All that a training imports: TensorFlow starts with its first operation, in the child.
    with contextlib.suppress(ImportError):  # without the extra plots
        import matplotlib.figure  # noqa: F401
    import resnet_tf.cli.main
    import resnet_tf.cli.train
    import resnet_tf.fitting  # noqa: F401
    from resnet_tf.data import shapes

    made = []
    for line in sys.stdin:
        asked = json.loads(line)
        if "shapes" in asked["flags"] and not made:
            made.append(shapes.load_shapes())  # once, as it takes seconds
            shapes.load_shapes = lambda: made[0]
        child = os.fork()
        if child == 0:
            code = 70
            try:
                code = train(asked["folder"], asked["flags"], asked["kill"], asked["draws"])
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(json.dumps({"code": wait(child, asked["seconds"])}), flush=True)


if __name__ == "__main__":
    serve()
