"""What the training loop asks of its surroundings, and how it ends early."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.training.step import Batch

Validate = Callable[[], tuple[float, float]]


class Loader(Protocol):
    """What the loop asks of the data."""

    steps_per_epoch: int
    batch_size: int

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """What an update takes before its learning rate, for the steps start … stop - 1, in order."""
        ...


class Peers(Protocol):
    """The processes that share a run."""

    workers: int

    @property
    def is_chief(self) -> bool:
        """Whether this one writes what the run writes."""
        ...

    def gather(self, numbers: Sequence[float]) -> np.ndarray:
        """The numbers of every worker, float64 (workers, n), the chief's first."""
        ...

    def from_chief(self, payload: bytes) -> bytes:
        """The chief's bytes."""
        ...


class Logger(Protocol):
    """Where the loop's progress goes."""

    def progress(self, step: int, results: np.ndarray, learning_rate: float) -> None:
        """Results (n, 3) of the updates before `step`."""
        ...

    def evaluated(self, row: dict[str, Any]) -> None:
        """A new row of the metrics."""
        ...

    def log(self, line: str) -> None:
        """A line for the terminal and the log."""
        ...


class Stopped(Exception):  # noqa: N818
    """A signal asked for a stop, and the run is saved.

    Attributes:
        signal: the signal's number.
        step: updates done.
    """

    def __init__(self, signal: int, step: int) -> None:
        """Note the signal and the updates done."""
        super().__init__(f"stopped by signal {signal} after {step} iterations")
        self.signal = signal
        self.step = step


class Diverged(UserError):  # noqa: N818
    """The loss became infinite or NaN."""


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often the loop looks up from its steps.

    Attributes:
        evaluate: iterations between evaluations; None means once an epoch.
        checkpoint_iterations: iterations between checkpoints, or None.
        checkpoint_seconds: seconds between checkpoints, or None.
    """

    evaluate: int | None = None
    checkpoint_iterations: int | None = None
    checkpoint_seconds: float | None = 300.0


@dataclasses.dataclass
class MetricTotals:
    """Sums over the updates since the last evaluation."""

    loss: float = 0.0
    l2: float = 0.0
    accuracy: float = 0.0
    updates: int = 0
    seconds: float = 0.0

    def add(self, results: np.ndarray) -> None:
        """Add the results (n, 3) of n updates."""
        # One by one, so that the sums do not depend on where the blocks end.
        for loss, l2, accuracy in results.tolist():
            self.loss += loss
            self.l2 += l2
            self.accuracy += accuracy
        self.updates += len(results)

    def means(self) -> dict[str, float]:
        """Means an update, by the names of the metrics' columns."""
        return {
            "train_loss": self.loss / self.updates,
            "train_l2": self.l2 / self.updates,
            "train_accuracy": self.accuracy / self.updates,
        }
