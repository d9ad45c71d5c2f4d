"""Tables of finished runs: beside the papers' errors, and what one change made (ablations)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev, variance
from typing import Any

from resnet_tf.reports.runs import RunResult, Settings, group_by_seed


@dataclass(frozen=True)
class PublishedError:
    """A test error in percent on the original CIFAR-10, with the paper's parameter count and what runs it is of."""

    error: float
    parameters: str
    runs: str = "one run"

    def describe(self, *, original: bool) -> str:
        """The error as a cell in a row of results on the original data, or on other data."""
        return f"{self.error:.2f} ({self.runs}{'' if original else '; original data'})"


PUBLISHED = {
    # arXiv:1512.03385, table 6.
    "resnet20_v1": PublishedError(8.75, "0.27M"),
    "resnet32_v1": PublishedError(7.51, "0.46M"),
    "resnet44_v1": PublishedError(7.17, "0.66M"),
    "resnet56_v1": PublishedError(6.97, "0.85M"),
    "resnet110_v1": PublishedError(6.43, "1.7M", "best of 5, 6.61 ± 0.16"),
    "resnet1202_v1": PublishedError(7.93, "19.4M"),
    # arXiv:1603.05027, table 4, and for resnet110_v2 table 3.
    "resnet164_v1": PublishedError(5.93, "1.7M", "median of 5"),
    "resnet1001_v1": PublishedError(7.61, "10.2M", "median of 5"),
    "resnet110_v2": PublishedError(6.37, "1.7M", "median of 5"),
    "resnet164_v2": PublishedError(5.46, "1.7M", "median of 5"),
    "resnet1001_v2": PublishedError(4.92, "10.2M", "median of 5, 4.89 ± 0.14"),
}
# Standard deviation of the error over five runs of resnet110_v1, in points (1512.03385, table 6).
SEED_DEVIATION = 0.16

_HEAD = ("network", "shortcut", "parameters", "recipe", "split", "data", "seeds", "test error %, last step")
_HEAD += ("test error %, best by validation", "the paper's error %", "difference")
_ABLATION_HEAD = ("change", "runs", "error %", "against", "error %", "difference, points", "chance explains")
_ABLATION_HEAD += ("beyond chance",)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell must not hold a vertical bar."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, with the standard deviation of the sample where there are several values."""
    if not values:
        return "–"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def results_table(results: Iterable[RunResult], more: Sequence[Sequence[str]] = ()) -> str:
    """A Markdown table with a row per group of seeds, and the rows in `more` below."""
    return markdown_table(_HEAD, [*(_result_row(group) for group in group_by_seed(results)), *more])


def _result_row(group: Sequence[RunResult]) -> tuple[str, ...]:
    first = group[0]
    return (
        first.network,
        first.shortcut,
        f"{first.parameters:,}",
        first.recipe_cell,
        first.split_cell,
        first.data_cell,
        ", ".join(f"[{result.seed}]({result.place})" for result in group),
        spread([result.error for result in group]),
        spread([result.best_error for result in group if result.best_error is not None]),
        *_published_cells(group),
    )


def _published_cells(group: Sequence[RunResult]) -> tuple[str, str]:
    """The paper's error, and the difference from it where the two are errors of the same thing."""
    first = group[0]
    if first.dataset != "cifar10":
        return "–", "–"
    published = PUBLISHED.get(first.network)
    if published is None:
        return "not given", "–"
    original = first.source == "original"
    reasons = [] if original else [first.source]
    reasons += [] if first.papers_recipe else ["recipe"]
    reasons += [] if first.default_network else ["network changed"]
    difference = signed(mean(result.error for result in group) - published.error)
    return published.describe(original=original), f"not comparable ({', '.join(reasons)})" if reasons else difference


def signed(points: float) -> str:
    """A difference with its sign, two digits."""
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "−")


@dataclass(frozen=True)
class Ablation:
    """One change, from the first of `sides` to the second.

    `side` gives the side that a run is on and the settings that runs of both sides must share; None for neither.
    """

    title: str
    sides: tuple[str, str]
    side: Callable[[RunResult], tuple[str, Settings] | None]


# The papers' recipes for the two versions differ in the warm-up, shorter ones in its length.
_RECIPE = ("recipe.name", "recipe.warmup", "recipe.warmup_iterations")


def _without(result: RunResult, *keys: str, **instead: Any) -> Settings:
    return {key: value for key, value in result.settings.items() if key not in keys} | instead


def _by_shortcut(result: RunResult) -> tuple[str, Settings]:
    return result.shortcut, _without(result, "builder.shortcut")


def _by_version(result: RunResult) -> tuple[str, Settings]:
    depth, _, version = result.network.partition("_")
    if result.papers_recipe:
        return version, _without(result, *_RECIPE, model=depth, recipe="the papers'")
    return version, _without(result, model=depth)


def _by_residual(result: RunResult) -> tuple[str, Settings] | None:
    depth = result.network.removeprefix("plain").removeprefix("resnet").removesuffix("_v1")
    if result.network.startswith("plain"):
        return "plain", _without(result, "builder.shortcut", model=depth)
    if result.shortcut == "identity" and result.network.endswith("_v1"):
        return "residual", _without(result, "builder.shortcut", model=depth)
    return None


def _by_length(result: RunResult) -> tuple[str, Settings] | None:
    length = "full length" if result.papers_recipe else result.recipe
    return length, _without(result, *_RECIPE, "recipe.iterations")


def _by_precision(result: RunResult) -> tuple[str, Settings]:
    return result.precision, _without(result, "precision")


ABLATIONS = (
    Ablation("projection against identity", ("identity", "projection"), _by_shortcut),
    Ablation("v2 against v1", ("v1", "v2"), _by_version),
    Ablation("residual against plain", ("plain", "residual"), _by_residual),
    Ablation("full length against `quarter`", ("quarter", "full length"), _by_length),
    Ablation("bfloat16 against float32", ("float32", "mixed_bfloat16"), _by_precision),
)


@dataclass(frozen=True)
class AblationResult:
    """Runs of the two sides, of the same seeds in the same order, and the difference chance explains, in points."""

    title: str
    first: Sequence[RunResult]
    second: Sequence[RunResult]
    threshold: float


def ablations_table(results: Sequence[RunResult]) -> str:
    """A Markdown table with a row for each pair of groups that differ in one of `ABLATIONS` alone."""
    return markdown_table(_ABLATION_HEAD, [_ablation_row(found) for found in find_ablations(results)])


def _ablation_row(found: AblationResult) -> tuple[str, ...]:
    cells = []
    for group in (found.second, found.first):
        run = group[0]
        seeds = ", ".join(str(result.seed) for result in group)
        cells += [f"{run.network} ({run.shortcut}, {run.recipe_cell}; seed {seeds})", f"{_mean_error(group):.2f}"]
    difference = _mean_error(found.second) - _mean_error(found.first)
    beyond = "yes" if abs(difference) > found.threshold else "no"
    change = f"{found.title} ({found.first[0].data_cell}, {found.first[0].split_cell})"
    return (change, *cells, signed(difference), f"{found.threshold:.2f}", beyond)


def find_ablations(results: Sequence[RunResult]) -> list[AblationResult]:
    """All pairs of groups that differ in one ablation's change and in nothing else, by runs of the same seeds.

    The seed decides which images are kept for validation, so that equal seeds mean equal splits.
    """
    found = []
    for ablation in ABLATIONS:
        pairs: dict[str, dict[str, dict[int, RunResult]]] = {}
        for result in (result for group in group_by_seed(results) for result in group):
            name, shared = ablation.side(result) or ("", {})
            if name in ablation.sides:
                pairs.setdefault(str(sorted(shared.items())), {}).setdefault(name, {})[result.seed] = result
        for pair in pairs.values():
            first, second = (pair.get(name, {}) for name in ablation.sides)
            seeds = sorted(first.keys() & second.keys())
            if seeds:
                sides = [[side[seed] for seed in seeds] for side in (first, second)]
                found.append(AblationResult(ablation.title, *sides, _threshold(*sides, results)))
    return found


def _threshold(first: Sequence[RunResult], second: Sequence[RunResult], results: Sequence[RunResult]) -> float:
    measured = seed_deviation(result for result in results if result.data_cell == first[0].data_cell)
    deviation = SEED_DEVIATION if measured is None else measured
    return noise_threshold(_mean_error(first), _mean_error(second), first[0].test_images, len(first), deviation)


def _mean_error(group: Sequence[RunResult]) -> float:
    return mean(result.error for result in group)


def noise_threshold(first: float, second: float, test_images: int, seeds: int, seed_deviation: float) -> float:
    """Twice the standard deviation of the difference of two errors (percent), in points.

    Two things add up: the test images are a sample (binomial; that both networks see the same ones makes it less, by
    an amount not known here), and a training is one draw of many, `seeds` of them on each side.
    """
    sampling = sum(error * (100 - error) / test_images for error in (first, second))
    return 2 * math.sqrt(sampling + 2 * seed_deviation**2 / seeds)


def seed_deviation(results: Iterable[RunResult]) -> float | None:
    """Standard deviation of the error over seeds, in points, pooled over all groups with several; None without any."""
    samples = [[result.error for result in group] for group in group_by_seed(results) if len(group) > 1]
    freedom = sum(len(sample) - 1 for sample in samples)
    if not freedom:
        return None
    return math.sqrt(sum((len(sample) - 1) * variance(sample) for sample in samples) / freedom)
