"""A table of image files: where each is and which class it has."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Paths of N image files with their classes, int32 (N,), and what the classes are called."""

    paths: tuple[str, ...]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of files, N."""
        return len(self.paths)

    def take(self, indices: ArrayLike) -> "ImageFiles":
        """Return the files at `indices`, in that order; the classes stay as they are."""
        chosen = np.asarray(indices, np.int64)
        return ImageFiles(tuple(self.paths[i] for i in chosen.tolist()), self.labels[chosen], self.class_names)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names by code point, but runs of digits as numbers: "2" before "10", "img9" before "img10"."""

    return sorted(names, key=_natural_key)


def _natural_key(name: str) -> tuple[list[tuple[int, str]], str]:
    # Text and digits alternate, so that numbers only meet numbers: the longer is the larger, zeros in front aside.
    # The name itself settles "1" and "01".
    pieces = re.split(r"([0-9]+)", name)
    numbers = [piece.lstrip("0") for piece in pieces]
    return [(len(numbers[i]), numbers[i]) if i % 2 else (0, pieces[i]) for i in range(len(pieces))], name
