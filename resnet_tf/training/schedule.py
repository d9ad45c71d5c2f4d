"""The learning rate as a pure function of the step and of a small state that checkpoints keep."""

import math
from dataclasses import dataclass
from typing import Any

from resnet_tf.recipes import Recipe

CHECK_EVERY = 100  # steps averaged for one look at the minibatch loss or the training error
WARM_ERROR = 0.8  # the warm-up by error ends below this (1512.03385, section 4.2)


@dataclass(eq=False)
class Schedule:
    """Learning rates of a run, with `unfreeze_learning_rate` in place of the recipe's from step `unfreeze_at` on.

    `state` is JSON-able; it changes only under "plateau" schedules and the warm-up by error.
    """

    recipe: Recipe
    iterations: int
    unfreeze_at: int | None = None
    unfreeze_learning_rate: float | None = None

    def __post_init__(self) -> None:
        self.state: dict[str, Any] = {"warm": self.recipe.warmup != "error", "factor": 1.0, "best": None}
        self.state |= {"checks_without_gain": 0, "loss_sum": 0.0, "error_sum": 0.0, "count": 0}

    @property
    def needs_batches(self) -> bool:
        """Whether the result of each step must be known before the next one's learning rate."""
        on_loss = self.recipe.schedule == "plateau" and self.recipe.monitor == "minibatch-loss"
        return on_loss or not self.state["warm"]

    def learning_rate(self, step: int) -> float:
        """Learning rate of step 0, 1, …"""
        recipe, factor = self.recipe, self.state["factor"]
        if not self.state["warm"] or (recipe.warmup == "iterations" and step < recipe.warmup_iterations):
            return recipe.warmup_learning_rate * factor
        is_unfrozen = self.unfreeze_at is not None and step >= self.unfreeze_at
        highest = self.unfreeze_learning_rate if is_unfrozen else None
        value = (recipe.learning_rate if highest is None else highest) * self._shape(step / self.iterations)
        if recipe.warmup == "linear" and step < recipe.warmup_iterations:
            low = recipe.warmup_learning_rate
            value = low + (value - low) * step / recipe.warmup_iterations
        return float(f"{value * factor:.12g}")  # 0.1 dropped twice is 0.001, not 0.0010000000000000002

    def _shape(self, done: float) -> float:
        """What the schedule multiplies the highest learning rate with when this fraction of the run is done."""
        recipe = self.recipe
        if recipe.schedule == "piecewise":
            return recipe.drop_factor ** sum(done >= drop for drop in recipe.drops)
        if recipe.schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if recipe.schedule == "onecycle":
            if done < recipe.rise:
                return recipe.start_factor + (1.0 - recipe.start_factor) * done / recipe.rise
            return (1.0 - done) / (1.0 - recipe.rise) if recipe.rise < 1 else 1.0
        return 1.0

    def observe_batch(self, loss: float, error: float) -> None:
        """Note one step's cross-entropy and error (fraction wrong)."""
        state = self.state
        state["loss_sum"] += loss
        state["error_sum"] += error
        state["count"] += 1
        if state["count"] < CHECK_EVERY:
            return
        if state["error_sum"] / CHECK_EVERY < WARM_ERROR:
            state["warm"] = True
        if self.recipe.schedule == "plateau" and self.recipe.monitor == "minibatch-loss":
            self._check_plateau(-state["loss_sum"] / CHECK_EVERY)
        state.update(loss_sum=0.0, error_sum=0.0, count=0)

    def observe_validation(self, accuracy: float) -> None:
        if self.recipe.schedule == "plateau" and self.recipe.monitor == "validation-accuracy":
            self._check_plateau(accuracy)

    def _check_plateau(self, value: float) -> None:
        state = self.state
        if state["best"] is None or value > state["best"]:
            state.update(best=value, checks_without_gain=0)
            return
        state["checks_without_gain"] += 1
        if state["checks_without_gain"] >= self.recipe.patience:
            state.update(factor=state["factor"] * self.recipe.drop_factor, checks_without_gain=0)
