"""Results of finished runs beside the papers' numbers."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean
from typing import Any

from resnet_tf.reports.compare import mean_and_deviation, spread_of

ORIGINAL = "arXiv:1512.03385, table 6"
PREACTIVATION = "arXiv:1603.05027, tables 3 and 4"
BASELINE = "arXiv:1603.05027, table 4"


@dataclass(frozen=True)
class Figure:
    """A published test error.

    Attributes:
        error: in percent, on the original CIFAR-10.
        parameters: the count as the paper gives it.
        runs: what the error is of.
        source: where it stands.
    """

    error: float
    parameters: str
    runs: str
    source: str


FIGURES = {
    "resnet20_v1": Figure(8.75, "0.27M", "one run", ORIGINAL),
    "resnet32_v1": Figure(7.51, "0.46M", "one run", ORIGINAL),
    "resnet44_v1": Figure(7.17, "0.66M", "one run", ORIGINAL),
    "resnet56_v1": Figure(6.97, "0.85M", "one run", ORIGINAL),
    "resnet110_v1": Figure(6.43, "1.7M", "best of 5, 6.61 ± 0.16", ORIGINAL),
    "resnet1202_v1": Figure(7.93, "19.4M", "one run", ORIGINAL),
    "resnet164_v1": Figure(5.93, "1.7M", "median of 5", BASELINE),
    "resnet1001_v1": Figure(7.61, "10.2M", "median of 5", BASELINE),
    "resnet110_v2": Figure(6.37, "1.7M", "median of 5", PREACTIVATION),
    "resnet164_v2": Figure(5.46, "1.7M", "median of 5", PREACTIVATION),
    "resnet1001_v2": Figure(4.92, "10.2M", "median of 5, 4.89 ± 0.14", PREACTIVATION),
}

# Standard deviation of the error, in points, over five runs of resnet110_v1 (table 6): what chance does to a training.
SEED_DEVIATION = 0.16


HEAD = (
    "network",
    "shortcut",
    "parameters",
    "recipe",
    "split",
    "data",
    "seeds",
    "test error %, last step",
    "test error %, best by validation",
    "the paper's error %",
    "difference",
)
_DATA = ("cifar10", "cifar100")
_SOURCES = ("original", "JPEG copy")


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        place: of its folder, relative to the page that links to it.
        settings: what decided the result, but for the seed; equal for runs that only differ in it.
        network: name.
        shortcut: the one that it was built with.
        own: whether that, the width and the biases are the named network's own.
        parameters: trainable ones.
        recipe: name.
        changes: settings in which the run departs from that recipe, as `field=value`.
        papers_recipe: whether the recipe is the papers' own for this network, and nothing was changed.
        train_images, validation_images, test_images: how many.
        dataset: name.
        source: which variant of the data, in words.
        seed: of the run.
        precision: policy.
        last: test error in percent after the last update.
        best: test error in percent of the model that was best by validation, None without one.
    """

    place: str
    settings: dict[str, Any]
    network: str
    shortcut: str
    own: bool
    parameters: int
    recipe: str
    changes: tuple[str, ...]
    papers_recipe: bool
    train_images: int
    validation_images: int
    test_images: int
    dataset: str
    source: str
    seed: int
    precision: str
    last: float
    best: float | None

    @property
    def data(self) -> str:
        """The data in words."""
        names = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "shapes": "`shapes`"}
        return f"{names.get(self.dataset, self.dataset)}, {self.source}"

    @property
    def split(self) -> str:
        """Images to train on and to validate on."""
        return f"{self.train_images:,} / {self.validation_images:,}"

    @property
    def recipe_cell(self) -> str:
        """The recipe, what was changed of it, and the precision."""
        return ", ".join([f"`{self.recipe}`", *self.changes, self.precision])


def groups(results: Iterable[Result]) -> list[list[Result]]:
    """Runs that differ in nothing but their seeds, together: original data first, then by network and recipe."""
    ordered = sorted(results, key=lambda result: (*_order(result), result.seed, result.place))
    return [list(group) for _, group in groupby(ordered, key=_order)]


def results_table(results: Iterable[Result], more: Sequence[Sequence[str]] = ()) -> str:
    """A Markdown table with a line per group, and the rows in `more` below."""
    return markdown_table(HEAD, [*(_row(group) for group in groups(results)), *more])


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell must not hold a vertical bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _order(result: Result) -> tuple[Any, ...]:
    return (
        _place(result.dataset, _DATA),
        _place(result.source, _SOURCES),
        len(result.network),
        result.network,
        result.shortcut,
        result.recipe,
        result.changes,
        -result.train_images,
        str(sorted(result.settings.items())),
    )


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def _row(group: Sequence[Result]) -> tuple[str, ...]:
    first = group[0]
    return (
        first.network,
        first.shortcut,
        f"{first.parameters:,}",
        first.recipe_cell,
        first.split,
        first.data,
        ", ".join(f"[{result.seed}]({result.place})" for result in group),
        spread([result.last for result in group]),
        spread([result.best for result in group if result.best is not None]),
        *_paper(group),
    )


def spread(values: Sequence[float]) -> str:
    """The mean, with the standard deviation of the sample where there are several values."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return spread_of(values, 2)


def _paper(group: Sequence[Result]) -> tuple[str, str]:
    """The paper's error, and the difference from it where the two are errors of the same thing."""
    first = group[0]
    if first.dataset != "cifar10":
        return "–", "–"
    figure = FIGURES.get(first.network)
    if figure is None:
        return "not given", "–"
    reasons = [first.source] if first.source != "original" else []
    reasons += ["recipe"] if not first.papers_recipe else []
    reasons += ["network changed"] if not first.own else []
    published = f"{figure.error:.2f} ({figure.runs}{'' if first.source == 'original' else '; original data'})"
    if reasons:
        return published, f"not comparable ({', '.join(reasons)})"
    return published, signed(mean(result.last for result in group) - figure.error)


def signed(points: float) -> str:
    """A difference with its sign, two digits."""
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "−")


# What a side of a comparison is called, and what the runs of both sides have in common; None for runs of neither.
Side = Callable[[Result], tuple[str, dict[str, Any]] | None]

# The papers' recipes for the two versions differ in the warm-up, a shorter one in its length.
_RECIPE = ("recipe.name", "recipe.warmup", "recipe.warmup_iterations")
_LENGTH = (*_RECIPE, "recipe.iterations")


@dataclass(frozen=True)
class Ablation:
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


ABLATIONS = (
    Ablation("Projection against identity", ("identity", "projection"), _by_shortcut),
    Ablation("v2 against v1", ("v1", "v2"), _by_version),
    Ablation("Residual against plain", ("plain", "residual"), _by_residual),
    Ablation("Full length against `quarter`", ("quarter", "full length"), _by_length),
    Ablation("bfloat16 against float32", ("float32", "mixed_bfloat16"), _by_precision),
)


@dataclass(frozen=True)
class AblationResult:
    """Two groups of runs on the same split.

    Attributes:
        first, second: runs of the two sides, of the same seeds in the same order.
        first_error, second_error: their mean errors in percent.
        chance: what a difference has to exceed, in points, see `noise_threshold`.
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


def describe_ablations(results: Sequence[Result]) -> str:
    """A list item for each difference that the runs show, and for each question that they do not answer."""
    lines = []
    for comparison in ABLATIONS:
        found = find_ablations(comparison, results)
        lines += [_sentence(comparison, difference) for difference in found]
        if not found:
            lines.append(f"- **{comparison.title}:** no two runs here that differ in this alone, on the same split.")
    return "\n".join(lines)


def find_ablations(comparison: Ablation, results: Sequence[Result]) -> list[AblationResult]:
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


def noise_threshold(first: float, second: float, test_images: int, seeds: int, seed_deviation: float) -> float:
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


def _difference(first: Sequence[Result], second: Sequence[Result], results: Sequence[Result]) -> AblationResult:
    data = first[0].data
    measured = seed_deviation(result for result in results if result.data == data)
    one, other = mean(result.last for result in first), mean(result.last for result in second)
    deviation = SEED_DEVIATION if measured is None else measured
    chance = noise_threshold(one, other, first[0].test_images, len(first), deviation)
    return AblationResult(first, second, one, other, chance)


def _sentence(comparison: Ablation, difference: AblationResult) -> str:
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
