"""Process-wide settings that a block of code borrows: recursion limit and output streams."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

FRAMES_PER_CONVOLUTION = 20  # ResNet-1202 builds, saves and loads within 20,000 frames


@contextlib.contextmanager
def recursion_limit(depth: int) -> Iterator[None]:
    """Raise the interpreter's recursion limit for a network of `depth` convolutions, and restore it after."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, FRAMES_PER_CONVOLUTION * depth))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


@contextlib.contextmanager
def suppress_output() -> Iterator[None]:
    """Swallow stdout and stderr of the process; where the block raises, show what was swallowed on stderr."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as noise:
        for handle in (1, 2):
            os.dup2(noise.fileno(), handle)
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
                noise.seek(0)
                os.write(2, noise.read())
