"""Room for Keras, which walks a model's graph recursively, to handle very deep networks."""

import contextlib
import sys
from collections.abc import Iterator

FRAMES_PER_CONVOLUTION = 20  # ResNet-1202 builds, saves and loads within 20,000 frames


@contextlib.contextmanager
def room_for_depth(depth: int) -> Iterator[None]:
    """Raise the interpreter's recursion limit for a network of `depth` convolutions, and restore it after."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, FRAMES_PER_CONVOLUTION * depth))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
