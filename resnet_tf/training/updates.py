"""The updates of a run, one or several in a call."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from resnet_tf.training.contracts import Batch, Switch
from resnet_tf.training.steps import TrainStep


class Updates:
    """Hands batches to the compiled update that is in force."""

    def __init__(self, step: TrainStep, steps: TrainStep | None, per_call: int, switch: Switch | None) -> None:
        """Take one update, several in one call where `per_call` is above 1, and what changes them during the run."""
        self._step, self._steps = step, steps or step
        self._per_call, self._switch = per_call, switch

    def groups(self, batches: Iterable[Batch], start: int, is_boundary: Callable[[int], bool]) -> Iterator[list[Batch]]:
        """Batches of one call each, from update `start` on; none reaches over the switch or a boundary.

        `is_boundary` is asked about a number of updates done.
        """
        group = []
        for done, batch in enumerate(batches, start=start + 1):
            group.append(batch)
            at_switch = self._switch is not None and done == self._switch.at
            if len(group) == self._per_call or at_switch or is_boundary(done):
                yield group
                group = []

    def run(self, start: int, group: list[Batch], rates: np.ndarray) -> Any:
        """Results (n, 3) of the n updates from `start` on, at the learning rates (n,)."""
        if self._switch is not None:
            self._step, self._steps = self._switch.functions(start)
        if len(group) == 1:
            return self._step(*group[0], rates[0])[None]
        first, second = (np.stack(part) for part in zip(*group, strict=True))
        return self._steps(first, second, rates)
