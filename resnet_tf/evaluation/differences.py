"""What two kinds of runs differ by, and how much of that chance alone may be."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from resnet_tf.evaluation.compare import mean_and_deviation
from resnet_tf.evaluation.results import Result, groups, signed
from resnet_tf.papers import SEED_DEVIATION

# What a side of a comparison is called, and what the runs of both sides have in common; None for runs of neither.
Side = Callable[[Result], tuple[str, dict[str, Any]] | None]

# The papers' recipes for the two versions differ in the warm-up, a shorter one in its length.
_RECIPE = ("recipe.name", "recipe.warmup", "recipe.warmup_iterations")
_LENGTH = (*_RECIPE, "recipe.iterations")


@dataclass(frozen=True)
class Comparison:
    """A question to the runs: what a change from the first of `sides` to the second does."""

    title: str
    sides: tuple[str, str]
    side: Side


def _without(result: Result, *keys: str, **instead: Any) -> dict[str, Any]:
    return {key: value for key, value in result.settings.items() if key not in keys} | instead


def _by_shortcut(result: Result) -> tuple[str, dict[str, Any]] | None:
    return result.shortcut, _without(result, "builder.shortcut")


def _by_version(result: Result) -> tuple[str, dict[str, Any]] | None:
    depth, _, version = result.network.partition("_")
    if result.papers_recipe:
        return version, _without(result, *_RECIPE, model=depth, recipe="the papers'")
    return version, _without(result, model=depth)


def _by_residual(result: Result) -> tuple[str, dict[str, Any]] | None:
    if result.network.startswith("plain"):
        return "plain", _without(result, "builder.shortcut", model=result.network.removeprefix("plain"))
    if result.shortcut == "identity" and result.network.endswith("_v1"):
        depth = result.network.removeprefix("resnet").removesuffix("_v1")
        return "residual", _without(result, "builder.shortcut", model=depth)
    return None


def _by_length(result: Result) -> tuple[str, dict[str, Any]] | None:
    if result.papers_recipe:
        return "full length", _without(result, *_LENGTH)
    return ("quarter", _without(result, *_LENGTH)) if result.recipe == "quarter" else None


def _by_precision(result: Result) -> tuple[str, dict[str, Any]] | None:
    return result.precision, _without(result, "precision")


COMPARISONS = (
    Comparison("Projection against identity", ("identity", "projection"), _by_shortcut),
    Comparison("v2 against v1", ("v1", "v2"), _by_version),
    Comparison("Residual against plain", ("plain", "residual"), _by_residual),
    Comparison("Full length against `quarter`", ("quarter", "full length"), _by_length),
    Comparison("bfloat16 against float32", ("float32", "mixed_bfloat16"), _by_precision),
)


@dataclass(frozen=True)
class Difference:
    """Two groups of runs on the same split.

    Attributes:
        first, second: runs of the two sides, of the same seeds in the same order.
        first_error, second_error: their mean errors in percent.
        chance: what a difference has to exceed, in points, see `chance_of`.
    """

    first: Sequence[Result]
    second: Sequence[Result]
    first_error: float
    second_error: float
    chance: float

    @property
    def points(self) -> float:
        """Mean error of the second minus that of the first."""
        return self.second_error - self.first_error


def describe_differences(results: Sequence[Result]) -> str:
    """A list item for each difference that the runs show, and for each question that they do not answer."""
    lines = []
    for comparison in COMPARISONS:
        found = find_differences(comparison, results)
        lines += [_sentence(comparison, difference) for difference in found]
        if not found:
            lines.append(f"- **{comparison.title}:** no two runs here that differ in this alone, on the same split.")
    return "\n".join(lines)


def find_differences(comparison: Comparison, results: Sequence[Result]) -> list[Difference]:
    """All pairs of groups that differ in what is compared and in nothing else, by runs of the same seeds.

    The seed decides which images are kept for validation, so that equal seeds mean equal splits.
    """
    sides: dict[str, dict[str, dict[int, Result]]] = {}
    for group in groups(results):
        for result in group:
            placed = comparison.side(result)
            if placed is not None and placed[0] in comparison.sides:
                name, shared = placed
                sides.setdefault(str(sorted(shared.items())), {}).setdefault(name, {})[result.seed] = result
    found = []
    for pair in sides.values():
        first, second = (pair.get(name, {}) for name in comparison.sides)
        seeds = sorted(first.keys() & second.keys())
        if seeds:
            found.append(_difference([first[seed] for seed in seeds], [second[seed] for seed in seeds], results))
    return found


def chance_of(first: float, second: float, test_images: int, seeds: int, seed_deviation: float) -> float:
    """Twice the standard deviation of the difference of two errors (percent), in points.

    Two parts: that the test images are a sample (binomial; that both networks see the same images makes it less, by
    an amount that is not known here), and that a training is one draw of many, `seeds` of them on each side.
    """
    sampling = sum(error * (100 - error) / test_images for error in (first, second))
    return 2 * math.sqrt(sampling + 2 * seed_deviation**2 / seeds)


def seed_deviation(results: Iterable[Result]) -> float | None:
    """Standard deviation of the error over seeds, in points, pooled over all groups with several; None without any."""
    samples = [[result.last for result in group] for group in groups(results) if len(group) > 1]
    freedom = sum(len(sample) - 1 for sample in samples)
    if not freedom:
        return None
    return math.sqrt(sum((len(sample) - 1) * mean_and_deviation(sample)[1] ** 2 for sample in samples) / freedom)


def _difference(first: Sequence[Result], second: Sequence[Result], results: Sequence[Result]) -> Difference:
    data = first[0].data
    measured = seed_deviation(result for result in results if result.data == data)
    one, other = mean(result.last for result in first), mean(result.last for result in second)
    deviation = SEED_DEVIATION if measured is None else measured
    chance = chance_of(one, other, first[0].test_images, len(first), deviation)
    return Difference(first, second, one, other, chance)


def _sentence(comparison: Comparison, difference: Difference) -> str:
    first, second = difference.first[0], difference.second[0]
    seeds = [result.seed for result in difference.first]
    several = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    if abs(difference.points) <= difference.chance:
        verdict = f"With {count} each, less than about {difference.chance:.1f} points cannot be told from chance: "
        verdict += "this shows neither a difference nor that there is none."
    else:
        verdict = f"This is more than chance alone explains (about {difference.chance:.1f} points with {count} each); "
        verdict += "its size is no more certain than that."
    return (
        f"- **{comparison.title}:** "
        f"{_name(second)} {difference.second_error:.2f} % error against "
        f"{_name(first)} {difference.first_error:.2f} %, "
        f"{signed(difference.points)} points ({first.data}, split {first.split}, {several}). {verdict}"
    )


def _name(result: Result) -> str:
    return f"{result.network} ({result.shortcut}, {result.recipe_cell})"
