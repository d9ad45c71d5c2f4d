"""Runs train.py in a process that dies at a chosen file operation.

usage: victim.py TRAIN_PY FOLDER OPERATION FLAGS…

Every write, flush to disk, rename and removal below FOLDER is an operation, counted from 0. At
number OPERATION the process kills itself with SIGKILL, a write after half of its bytes; -1 never
does. The number of operations is printed on stdout at the end as "operations: N".
"""

import builtins
import io
import os
import runpy
import signal
import sys
from pathlib import Path

real_open, real_fsync, real_replace, real_unlink = builtins.open, os.fsync, os.replace, os.unlink


class Reaper:
    """Counts operations and kills the process at one of them."""

    def __init__(self, folder: str, operation: int) -> None:
        self.folder = os.path.abspath(folder)
        self.operation = operation
        self.count = 0

    def watches(self, path) -> bool:
        try:
            return os.path.abspath(os.fspath(path)).startswith(self.folder + os.sep)
        except TypeError:  # a file descriptor
            return False

    def is_next(self) -> bool:
        self.count += 1
        return self.count - 1 == self.operation

    def pass_or_die(self) -> None:
        if self.is_next():
            os.kill(os.getpid(), signal.SIGKILL)


class DyingFile:
    """A binary file whose writes are operations."""

    def __init__(self, file, reaper: Reaper) -> None:
        self._file = file
        self._reaper = reaper

    def write(self, data):
        if self._reaper.is_next():
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
    def dying_open(path, mode="r", *args, **options):
        writes = any(letter in mode for letter in "wax+") and reaper.watches(path)
        if writes:
            reaper.pass_or_die()
        file = real_open(path, mode, *args, **options)
        return DyingFile(file, reaper) if writes and "b" in mode else file

    def dying_fsync(handle):
        reaper.pass_or_die()
        return real_fsync(handle)

    def dying_replace(source, target, **options):
        if reaper.watches(target):
            reaper.pass_or_die()
        return real_replace(source, target, **options)

    def dying_unlink(path, **options):
        if reaper.watches(path):
            reaper.pass_or_die()
        return real_unlink(path, **options)

    builtins.open = io.open = dying_open
    os.fsync, os.replace, os.unlink = dying_fsync, dying_replace, dying_unlink


def main() -> None:
    train_py, folder, operation, *flags = sys.argv[1:]
    sys.path.insert(0, str(Path(train_py).resolve().parent))
    reaper = Reaper(folder, int(operation))
    patch(reaper)
    sys.argv = [train_py, *flags, "--run-dir", folder]
    try:
        runpy.run_path(train_py, run_name="__main__")
    finally:
        print(f"operations: {reaper.count}", flush=True)


if __name__ == "__main__":
    main()
