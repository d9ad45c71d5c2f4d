"""Training recipes as data: the papers' settings, and ours. Imports no TensorFlow."""

import dataclasses
import inspect
import numbers
import re
from typing import Any

from resnet_tf.errors import UserError


def setting(
    default: Any, *, choices: tuple[str, ...] | None = None, low: Any = None, high: Any = None, **more: Any
) -> Any:
    """A dataclass field with its choices or its range, `low` and `high` included; what it means is in the docstring.

    Its flag on the command line is made from this: `more` may give "flag" (where that is not the name; None for no
    flag), "parse" (text to value) and "metavar".
    """
    return dataclasses.field(default=default, metadata={"choices": choices, "low": low, "high": high, **more})


def attribute_texts(cls: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def check_fields(instance: Any) -> None:
    """Check every field of a dataclass made with `setting` against its choices and range.

    Raises:
        UserError: a value is not allowed; the message says what is.
    """
    for field in dataclasses.fields(instance):
        name, value, allowed = field.name, getattr(instance, field.name), field.metadata
        if value is None and field.default is None:
            continue
        if allowed.get("choices") and value not in allowed["choices"]:
            raise UserError(f"{name}={value!r} is not known; allowed: {', '.join(allowed['choices'])}", argument=name)
        low, high = allowed.get("low"), allowed.get("high")
        if low is None:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise UserError(f"{name}={value!r} is not a number; allowed: {low} to {high:g}", argument=name)
        if isinstance(low, int) and isinstance(high, int) and value % 1:
            raise UserError(f"{name}={value!r} is not a whole number; allowed: {low} to {high}", argument=name)
        if not low <= value <= high:  # also catches NaN
            shown = high if isinstance(high, int) and high < 10**10 else f"{high:g}"
            raise UserError(f"{name}={value!r} is out of range; allowed: {low} to {shown}", argument=name)


def fraction_or_count(text: str) -> float:
    """A fraction such as 0.1, or a whole number of images."""
    return int(text) if text.isdigit() else float(text)


def floats(text: str) -> tuple[float, ...]:
    """Numbers such as 0.5,0.75; the ValueError of anything else becomes a line of the parser's."""
    return tuple(float(part) for part in text.split(","))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything about a training that is neither the network nor the data.

    Lengths inside a schedule are fractions of the whole, so that a shortened run keeps its proportions.

    Attributes:
        name: what the recipe is called.
        about: one line on where it comes from.
        batch_size: images a step.
        max_batch_share: largest part of the training images that a batch takes; smaller data get smaller batches.
        iterations: steps in all; exactly one of `iterations` and `epochs` is set.
        epochs: length in passes over the training part, each of N // batch_size steps.
        learning_rate: the highest learning rate.
        schedule: "piecewise" (times `drop_factor` at each of `drops`), "cosine" (to 0), "onecycle" (linear from
            `start_factor` to 1 over `rise`, then linear to 0), "plateau" (times `drop_factor` when `monitor` has not
            improved for `patience` checks) or "constant".
        drops: fractions of the length at which a piecewise schedule drops.
        drop_factor: what a drop multiplies the learning rate by.
        start_factor: where a one-cycle schedule starts, relative to `learning_rate`.
        rise: fraction of the length in which a one-cycle schedule rises.
        monitor: what a plateau schedule watches: "validation-accuracy" (a check at each evaluation) or
            "minibatch-loss" (a check every 100 steps, on their mean).
        patience: checks without improvement before a plateau schedule drops.
        warmup: "none", "iterations" (`warmup_iterations` at `warmup_learning_rate`), "error" (at
            `warmup_learning_rate` until the training error over 100 steps is below 80 %; 1512.03385 section 4.2) or
            "linear" (from `warmup_learning_rate` in equal steps to the schedule's in `warmup_iterations`;
            1706.02677 section 2.2).
        warmup_iterations: length of an "iterations" or "linear" warm-up.
        warmup_learning_rate: learning rate of the warm-up, of a "linear" one the first.
        optimizer: "sgd", "adam" or "adamw"; all take the schedule's learning rate.
        momentum: of SGD.
        nesterov: Nesterov momentum in place of the plain one.
        weight_decay: λ of the gradient term λ·w, that is of λ · Σ tf.nn.l2_loss(w) in the loss; under AdamW, that of
            w -= learning rate · λ · w beside the update.
        decay: "kernels" (convolutions and classifier) or "all" trainable variables.
        clip_norm: largest global norm of the gradients (decay included); larger ones are scaled down. None: no limit.
        label_smoothing: share of the target that is spread evenly over all classes.
        class_weights: "none", or "balanced": each class counts as much as the others, however many images it has.
        accumulate: equal microbatches of a batch, for one step with less memory. Batch normalization takes its
            statistics from each.
        ema: decay of the exponential moving average of the weights that is validated and saved in their place, or
            None; in the first steps it is lower, (1 + t) / (10 + t) after t of them.
        min_evaluate_every: fewest steps between evaluations where nobody says how many; an epoch if that is longer.
        early_stopping: evaluations without a better validation accuracy after which the training ends; 0 for never.
            Where everything trains only from some step on, they count from there.
        validation_size: part of the training images kept for validation: a fraction below 1, or a count; 0 trains
            on all.
        pad: pixels of padding before the random crop.
        pad_mode: "mean" (zero after normalization), "black" or "reflect".
        shortcut: the builder's shortcut, or None for the network's own.
    """

    name: str
    about: str = ""
    batch_size: int = setting(128, low=1, high=1_000_000)
    max_batch_share: float = setting(1.0, low=1e-6, high=1.0)
    iterations: int | None = setting(None, low=1, high=10**9, parse=int)
    epochs: float | None = setting(None, low=1e-9, high=1e6, parse=float)
    learning_rate: float = setting(0.1, low=0, high=1e6)
    schedule: str = setting("piecewise", choices=("piecewise", "cosine", "onecycle", "plateau", "constant"))
    drops: tuple[float, ...] = setting((0.5, 0.75), parse=floats)
    drop_factor: float = setting(0.1, low=0, high=1.0)
    start_factor: float = setting(0.1, low=0, high=1.0)
    rise: float = setting(0.25, low=0, high=1.0)
    monitor: str = setting("validation-accuracy", choices=("validation-accuracy", "minibatch-loss"))
    patience: int = setting(10, low=1, high=1_000_000)
    warmup: str = setting("none", choices=("none", "iterations", "error", "linear"))
    warmup_iterations: int = setting(0, low=0, high=10**9)
    warmup_learning_rate: float = setting(0.01, low=0, high=1e6)
    momentum: float = setting(0.9, low=0, high=1.0)
    nesterov: bool = setting(False)
    weight_decay: float = setting(1e-4, low=0, high=1e3)
    decay: str = setting("kernels", choices=("kernels", "all"))
    optimizer: str = setting("sgd", choices=("sgd", "adam", "adamw"))
    clip_norm: float | None = setting(None, low=1e-9, high=1e9, parse=float)
    label_smoothing: float = setting(0.0, low=0, high=0.99)
    class_weights: str = setting("none", choices=("none", "balanced"))
    accumulate: int = setting(1, low=1, high=1_000_000)
    ema: float | None = setting(None, parse=float)
    min_evaluate_every: int = setting(0, low=0, high=10**9)
    early_stopping: int = setting(0, low=0, high=1_000_000)
    validation_size: float = setting(0.1, low=0, high=1e9, parse=fraction_or_count)
    pad: int = setting(4, low=0, high=1000)
    pad_mode: str = setting("mean", choices=("mean", "black", "reflect"))
    shortcut: str | None = setting(None, flag=None)

    def batch_for(self, images: int, multiple: int = 1) -> int:
        """Images a step for a training part of this many: a multiple of some number where that makes it smaller."""
        largest = max(1, int(self.max_batch_share * images) // multiple) * multiple
        return self.batch_size if self.max_batch_share == 1.0 else min(self.batch_size, largest)

    def length(self, images: int) -> int:
        """Steps in all for a training part of this many images."""
        return self.length_of(images // self.batch_for(images, self.accumulate))

    def length_of(self, steps_per_epoch: int) -> int:
        """Steps in all for epochs of this many steps."""
        if self.iterations is not None:
            return self.iterations
        return max(1, round((self.epochs or 0) * steps_per_epoch))

    def as_dict(self) -> dict[str, Any]:
        """The fields in plain JSON types."""
        fields = dataclasses.asdict(self)
        return {**fields, "drops": list(self.drops)}

    def describe(self) -> str:
        """The fields that differ from the defaults, in one line."""
        values = {field.name: getattr(self, field.name) for field in RECIPE_FIELDS}
        return ", ".join(
            f"{field.name}={values[field.name]}" for field in RECIPE_FIELDS if values[field.name] != field.default
        )


# Name and about are not settings.
RECIPE_FIELDS = tuple(field for field in dataclasses.fields(Recipe) if field.name not in ("name", "about"))

FINE_TUNING = "finetune"  # the default for own images and for given weights

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
        Recipe(
            FINE_TUNING,
            "for own images and given weights: one-cycle over 15 epochs, batches of 32",
            batch_size=32,
            max_batch_share=0.25,
            epochs=15,
            learning_rate=0.02,
            schedule="onecycle",
            nesterov=True,
            weight_decay=5e-4,
            min_evaluate_every=50,
        ),
    )
}


def get_recipe(name: str) -> Recipe:
    """The recipe of this name; raises UserError where there is none."""
    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(f"recipe {name!r} is not known; allowed: {', '.join(RECIPES)}", argument="recipe")
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
        raise UserError("iterations=… and epochs=… exclude each other: give one of them", argument="epochs")
    if "iterations" in changes:
        if recipe.iterations and recipe.warmup_iterations and "warmup_iterations" not in changes:
            shortened = recipe.warmup_iterations * changes["iterations"] / recipe.iterations
            changes["warmup_iterations"] = max(1, round(shortened))
        changes["epochs"] = None
    elif "epochs" in changes:
        changes["iterations"] = None
    if isinstance(changes.get("drops"), list):
        changes["drops"] = tuple(changes["drops"])
    changed = dataclasses.replace(recipe, **changes)
    _check(changed)
    return changed


def check_validation(recipe: Recipe, images: int) -> None:
    """Refuse a recipe that goes by the validation accuracy where there are no validation images.

    Raises:
        UserError: that is so.
    """
    if images == 0 and recipe.early_stopping:
        raise UserError(
            f"early_stopping={recipe.early_stopping} goes by the validation accuracy and needs validation images; use "
            "validation_size=… above 0",
            argument="early_stopping",
        )
    if images == 0 and recipe.schedule == "plateau" and recipe.monitor == "validation-accuracy":
        raise UserError(
            "a plateau schedule on the validation accuracy needs validation images; use validation_size=… above 0 or "
            "monitor='minibatch-loss'",
            argument="validation_size",
        )


def scaled(recipe: Recipe, default_batch_size: int, warmup_start: float | None = None) -> Recipe:
    """The recipe with its learning rate scaled from the default batch size to its own (1706.02677, section 2.1).

    A "linear" warm-up begins at `warmup_start`, or where that is None at the learning rate as it was.
    """
    learning_rate = recipe.learning_rate * recipe.batch_size / default_batch_size
    # 0.1 for three times the images is 0.3, not 0.30000000000000004.
    changes: dict[str, Any] = {"learning_rate": float(f"{learning_rate:.12g}")}
    if recipe.warmup == "linear" and warmup_start is None:
        changes["warmup_learning_rate"] = recipe.learning_rate
    return override(recipe, **changes)


def _check(recipe: Recipe) -> None:
    check_fields(recipe)
    if recipe.ema is not None and not 0 < recipe.ema < 1:
        raise UserError(
            f"ema={recipe.ema} is out of range; allowed: above 0 and below 1, such as 0.999", argument="ema"
        )
    if recipe.batch_size % recipe.accumulate:
        raise UserError(
            f"accumulate={recipe.accumulate} does not divide the batch size {recipe.batch_size}; give a divisor of it",
            argument="accumulate",
        )
    drops = recipe.drops if isinstance(recipe.drops, tuple) else (None,)
    if any(not isinstance(x, numbers.Real) or not 0 < x < 1 for x in drops) or list(drops) != sorted(set(drops)):
        raise UserError(
            f"drops={recipe.drops} must rise and lie between 0 and 1: fractions of the length", argument="drops"
        )
    if recipe.warmup in ("iterations", "linear") and not recipe.warmup_iterations:
        raise UserError(
            f"warmup={recipe.warmup!r} needs its length; add warmup_iterations=N (he2016 has 400)",
            argument="warmup_iterations",
        )
