"""Process-wide settings that a block of code borrows: recursion limit and output streams."""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

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


room_for_depth = recursion_limit  # the earlier name, public as well


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Swallow stdout and stderr of the process; if the block raises, print what was swallowed on stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as swallowed:
        for handle in (1, 2):
            os.dup2(swallowed.fileno(), handle)
        failed = True
        try:
            with contextlib.redirect_stdout(sys.__stderr__):
                yield
            failed = False
        finally:
            sys.stderr.flush()
            for handle, original in zip((1, 2), saved, strict=True):
                os.dup2(original, handle)
                os.close(original)
            if failed:
                swallowed.seek(0)
                os.write(2, swallowed.read())
