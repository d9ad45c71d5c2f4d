"""The course of a training as arrays: what the curves are drawn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Course:
    """What a run left behind of its course.

    Attributes:
        name: what the run is called in a legend.
        losses: training cross-entropy of every update, nats, float (N,).
        rates: learning rate of every update, float (N,).
        rows: one mapping per evaluation: iteration, train_accuracy (a fraction, as trained), validation_loss,
            validation_accuracy, train_eval_accuracy and more; a missing value is None.
        steps_per_epoch: updates an epoch.
    """

    name: str
    losses: NDArray[np.float64]
    rates: NDArray[np.float64]
    rows: Sequence[dict[str, Any]]
    steps_per_epoch: float

    def column(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Iterations and values of the rows that have a value for `key`; both float (n,)."""
        pairs = [(row["iteration"], row[key]) for row in self.rows if row.get(key) is not None]
        values = np.array(pairs, np.float64).reshape(-1, 2)
        return values[:, 0], values[:, 1]


def find_drops(rates: NDArray[np.float64]) -> list[int]:
    """Updates at which a constant learning rate falls; a schedule that slides down has none."""
    if len(rates) < 3:
        return []
    falls = (rates[2:] < rates[1:-1]) & (rates[1:-1] == rates[:-2])
    return [int(index) + 2 for index in np.flatnonzero(falls)]


def smooth(values: NDArray[np.float64], width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Running mean over `width` neighbours, without reaching over the ends.

    Returns:
        Positions (the middle of each window, counted from 1 like iterations) and means, float (N − width + 1,).
    """
    width = max(1, min(width, len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means = (sums[width:] - sums[:-width]) / width
    return np.arange(len(means), dtype=np.float64) + (width + 1) / 2, means


def envelope(values: NDArray[np.float64], points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest of each stretch of a long series, so that drawing it costs the same at any length.

    Returns:
        Positions counted from 1 and values, at most 2 · `points` each; a short series is returned as it is.
    """
    if len(values) <= 2 * points:
        return np.arange(1, len(values) + 1, dtype=np.float64), np.asarray(values, np.float64)
    edges = np.linspace(0, len(values), points + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
    return np.repeat(edges + 1.0, 2), np.stack([low, high], axis=1).ravel()
