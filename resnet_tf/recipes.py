"""Training recipes as data: the papers' settings, and ours. Imports no TensorFlow."""

import dataclasses
from typing import Any

from resnet_tf.errors import UserError

SCHEDULES = ("piecewise", "cosine", "onecycle", "plateau", "constant")
WARMUPS = ("none", "iterations", "error", "linear")
DECAYS = ("kernels", "all")
PAD_MODES = ("mean", "black", "reflect")
MONITORS = ("validation-accuracy", "minibatch-loss")
OPTIMIZERS = ("sgd", "adam", "adamw")
CLASS_WEIGHTS = ("none", "balanced")
CHOICES = {
    "schedule": SCHEDULES,
    "warmup": WARMUPS,
    "decay": DECAYS,
    "pad_mode": PAD_MODES,
    "monitor": MONITORS,
    "optimizer": OPTIMIZERS,
    "class_weights": CLASS_WEIGHTS,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a training that is neither the network nor the data.

    Lengths inside a schedule are fractions of the whole, so that a shortened run keeps its proportions.

    Attributes:
        name: what the recipe is called.
        about: one line on where it comes from.
        batch_size: images a step.
        iterations: updates in all; exactly one of `iterations` and `epochs` is set.
        epochs: length in passes over the training part, each of N // batch_size updates.
        learning_rate: the highest learning rate.
        schedule: "piecewise" (times `drop_factor` at each of `drops`), "cosine" (to 0), "onecycle"
            (linear from `start_factor` to 1 over `rise`, then linear to 0), "plateau" (times
            `drop_factor` when `monitor` has not improved for `patience` checks) or "constant".
        drops: fractions of the length at which a piecewise schedule drops.
        drop_factor: what a drop multiplies the learning rate with.
        start_factor: where a one-cycle schedule starts, relative to `learning_rate`.
        rise: fraction of the length in which a one-cycle schedule rises.
        monitor: what a plateau schedule watches: "validation-accuracy" (a check at each
            evaluation) or "minibatch-loss" (a check every 100 iterations, on their mean).
        patience: checks without improvement before a plateau schedule drops.
        warmup: "none", "iterations" (`warmup_iterations` at `warmup_learning_rate`), "error" (at
            `warmup_learning_rate` until the training error over 100 iterations is below 80 %;
            1512.03385 section 4.2) or "linear" (from `warmup_learning_rate` in equal steps to the
            schedule's in `warmup_iterations`; 1706.02677 section 2.2).
        warmup_iterations: length of an "iterations" or "linear" warm-up.
        warmup_learning_rate: learning rate of the warm-up, of a "linear" one the first.
        optimizer: "sgd", "adam" or "adamw"; all take the schedule's learning rate.
        momentum: of SGD.
        nesterov: Nesterov's momentum in place of the plain one.
        weight_decay: λ of the gradient term λ·w, that is of λ · Σ tf.nn.l2_loss(w) in the loss; under AdamW, that of
            w -= learning rate · λ · w beside the update.
        decay: "kernels" (convolutions and classifier) or "all" trainable variables.
        clip_norm: largest norm of all gradients together (decay included); longer ones are scaled down to it. None
            leaves them as they are.
        label_smoothing: share of the target that is spread evenly over all classes.
        class_weights: "none", or "balanced": each class counts as much as the others, however many images it has.
        accumulate: equal parts in which a batch goes through the network, for one update; fits batches into a small
            memory. Batch normalization takes its statistics from each part.
        ema: decay of the exponential moving average of the weights that is validated and saved in their place, or
            None; in the first updates it is lower, (1 + t) / (10 + t) after t of them.
        early_stopping: evaluations without a gain of validation accuracy after which the training ends; 0 for never.
            Where everything trains from some iteration on, they count from there.
        validation_size: part of the training images kept for validation: a fraction below 1,
            or a count; 0 trains on all.
        pad: pixels of padding before the random crop.
        pad_mode: "mean" (zero after normalization), "black" or "reflect".
        shortcut: the builder's shortcut, or None for the network's own.
    """

    name: str
    about: str
    batch_size: int = 128
    iterations: int | None = None
    epochs: float | None = None
    learning_rate: float = 0.1
    schedule: str = "piecewise"
    drops: tuple[float, ...] = (0.5, 0.75)
    drop_factor: float = 0.1
    start_factor: float = 0.1
    rise: float = 0.25
    monitor: str = "validation-accuracy"
    patience: int = 10
    warmup: str = "none"
    warmup_iterations: int = 0
    warmup_learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay: str = "kernels"
    optimizer: str = "sgd"
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    class_weights: str = "none"
    accumulate: int = 1
    ema: float | None = None
    early_stopping: int = 0
    validation_size: float = 0.1
    pad: int = 4
    pad_mode: str = "mean"
    shortcut: str | None = None

    def length(self, images: int) -> int:
        """Updates in all when the training part has this many images."""
        if self.iterations is not None:
            return self.iterations
        return max(1, round((self.epochs or 0) * (images // self.batch_size)))

    def as_dict(self) -> dict[str, Any]:
        """The fields in plain JSON types."""
        fields = dataclasses.asdict(self)
        return {**fields, "drops": list(self.drops)}


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("he2015", "arXiv:1512.03385, section 4.2: 64k iterations, drops at 32k and 48k", iterations=64_000),
        Recipe(
            "he2016",
            "arXiv:1603.05027, appendix: he2015 after 400 iterations at 0.01",
            iterations=64_000,
            warmup="iterations",
            warmup_iterations=400,
        ),
        Recipe(
            "tutorial",
            "the widespread tutorial: Nesterov, 200 epochs with drops at 80 and 120, all training images",
            epochs=200,
            drops=(0.4, 0.6),
            nesterov=True,
            validation_size=0,
            shortcut="projection",
        ),
        Recipe("quarter", "he2015 at a quarter of the length: 16k iterations, drops at 8k and 12k", iterations=16_000),
        Recipe(
            "quick",
            "one-cycle over 20 epochs: 0.025 to 0.25 in the first quarter, then linearly to 0",
            epochs=20,
            learning_rate=0.25,
            schedule="onecycle",
            nesterov=True,
            weight_decay=5e-4,
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: there is none; the message names those that exist.
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} is not known; allowed: {', '.join(RECIPES)}")
    return RECIPES[name]


def default_recipe(model: str) -> str:
    """The paper's recipe for a network: he2016 for pre-activation networks, he2015 for all others."""
    return "he2016" if model.endswith("_v2") else "he2015"


def override(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with some fields replaced; a warm-up shrinks along with a shortened length.

    Raises:
        UserError: a value is out of its range; the message says what is allowed.
    """
    if "iterations" in changes and "epochs" in changes:
        raise UserError("--iterations and --epochs exclude each other: give one of them")
    if "iterations" in changes:
        if recipe.iterations and recipe.warmup_iterations and "warmup_iterations" not in changes:
            scaled = recipe.warmup_iterations * changes["iterations"] / recipe.iterations
            changes["warmup_iterations"] = max(1, round(scaled))
        changes["epochs"] = None
    elif "epochs" in changes:
        changes["iterations"] = None
    changed = dataclasses.replace(recipe, **changes)
    _check(changed)
    return changed


def check_validation(recipe: Recipe, images: int) -> None:
    """Find out whether a recipe can do with this number of validation images.

    Raises:
        UserError: there are none, and it goes by them.
    """
    if images == 0 and recipe.early_stopping:
        raise UserError(
            "--early-stopping goes by the validation accuracy and needs validation images; "
            "use --validation-size above 0"
        )
    if images == 0 and recipe.schedule == "plateau" and recipe.monitor == "validation-accuracy":
        raise UserError(
            "a plateau schedule on the validation accuracy needs validation images; "
            "use --validation-size above 0 or --monitor minibatch-loss"
        )


def scaled(recipe: Recipe, usual: int, start: float | None = None) -> Recipe:
    """The recipe with a learning rate for batches of `usual` images made one for its own (1706.02677, section 2.1).

    A "linear" warm-up begins at `start`, or where that is None at the learning rate as it was; lengths in iterations
    stay as they are.
    """
    rate = recipe.learning_rate * recipe.batch_size / usual
    # 0.1 for three times the images is 0.3, not 0.30000000000000004.
    changes: dict[str, Any] = {"learning_rate": float(f"{rate:.12g}")}
    if recipe.warmup == "linear" and start is None:
        changes["warmup_learning_rate"] = recipe.learning_rate
    return override(recipe, **changes)


def _check(recipe: Recipe) -> None:
    for field, allowed in CHOICES.items():
        if getattr(recipe, field) not in allowed:
            raise UserError(f"--{_flag(field)} {getattr(recipe, field)} is not known; allowed: {', '.join(allowed)}")
    ranges = {
        "batch_size": (1, 1_000_000),
        "learning_rate": (0, 1e6),
        "drop_factor": (0, 1),
        "start_factor": (0, 1),
        "rise": (0, 1),
        "patience": (1, 1_000_000),
        "warmup_iterations": (0, 10**9),
        "warmup_learning_rate": (0, 1e6),
        "momentum": (0, 1),
        "weight_decay": (0, 1e3),
        "clip_norm": (1e-9, 1e9),
        "label_smoothing": (0, 0.99),
        "accumulate": (1, 1_000_000),
        "early_stopping": (0, 1_000_000),
        "validation_size": (0, 10**9),
        "pad": (0, 1000),
        "iterations": (1, 10**9),
        "epochs": (1e-9, 10**6),
    }
    for field, (low, high) in ranges.items():
        value = getattr(recipe, field)
        if value is not None and not low <= value <= high:  # also catches NaN
            raise UserError(f"--{_flag(field)} {value} is out of range; allowed: {low} to {high:g}")
    if recipe.ema is not None and not 0 < recipe.ema < 1:
        raise UserError(f"--ema {recipe.ema} is out of range; allowed: above 0 and below 1, such as 0.999")
    if recipe.batch_size % recipe.accumulate:
        raise UserError(
            f"--accumulate {recipe.accumulate} does not divide the batch size {recipe.batch_size}; give a divisor of it"
        )
    if any(not 0 < drop < 1 for drop in recipe.drops) or list(recipe.drops) != sorted(set(recipe.drops)):
        raise UserError(f"--drops {recipe.drops} must rise and lie between 0 and 1: fractions of the length")
    if recipe.warmup in ("iterations", "linear") and not recipe.warmup_iterations:
        raise UserError(f"--warmup {recipe.warmup} needs its length; add --warmup-iterations N (he2016 has 400)")


def _flag(field: str) -> str:
    return field.replace("_", "-")
