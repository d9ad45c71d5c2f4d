"""Tables of finished runs: beside the papers' errors, and what one change made (ablations)."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev, variance

from resnet_tf.reports.runs import RunResult, group_by_seed


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
    # arXiv:1603.05027, table 4 (v1), tables 3 and 4 (v2).
    "resnet164_v1": PublishedError(5.93, "1.7M", "median of 5"),
    "resnet1001_v1": PublishedError(7.61, "10.2M", "median of 5"),
    "resnet110_v2": PublishedError(6.37, "1.7M", "median of 5"),
    "resnet164_v2": PublishedError(5.46, "1.7M", "median of 5"),
    "resnet1001_v2": PublishedError(4.92, "10.2M", "median of 5, 4.89 ± 0.14"),
}
# Standard deviation of the error over five runs of resnet110_v1, in points (1512.03385, table 6).
SEED_DEVIATION = 0.16

_HEAD = (
    *("network", "shortcut", "parameters", "recipe", "split", "data", "seeds"),
    *("test error %, last step", "test error %, best by validation", "the paper's error %", "difference"),
)
_ABLATION_HEAD = (
    *("change", "data", "split", "seeds", "run", "error %", "against", "error %"),
    *("difference, points", "chance explains", "beyond chance"),
)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell must not hold a vertical bar."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean, with the standard deviation of the sample where there are several values."""
    if not values:
        return "–"
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


def results_table(results: Iterable[RunResult]) -> str:
    """A Markdown table with a row per group of seeds."""
    return markdown_table(_HEAD, [_result_row(group) for group in group_by_seed(results)])


def _result_row(group: Sequence[RunResult]) -> tuple[str, ...]:
    first = group[0]
    return (
        first.network,
        first.shortcut,
        f"{first.parameters:,}",
        first.recipe,
        first.split,
        first.data,
        ", ".join(f"[{result.seed}]({result.place})" for result in group),
        spread([result.error for result in group]),
        spread([result.best_error for result in group if result.best_error is not None]),
        *_published_cells(group),
    )


def _published_cells(group: Sequence[RunResult]) -> tuple[str, str]:
    """The paper's error, and the difference from it where the two are errors of the same thing."""
    first = group[0]
    source = first.settings["data.source"]
    if first.settings["dataset"] != "cifar10":
        return "–", "–"
    published = PUBLISHED.get(first.network)
    if published is None:
        return "not given", "–"
    original = source == "original"
    reasons = [] if original else [source]
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

    `side` names the side that a run is on. Runs of both sides may differ in the `free` settings and in no others; where
    the model is free, the networks must be of one depth.
    """

    title: str
    sides: tuple[str, str]
    side: Callable[[RunResult], str | None]
    free: tuple[str, ...]

    def shared_settings(self, result: RunResult) -> str:
        """What runs of both sides have in common, as a key."""
        shared = {key: value for key, value in result.settings.items() if key not in self.free}
        shared["depth"] = re.sub(r"^(plain|resnet)|_v[12]$", "", result.network)
        return str(sorted(shared.items()))


def _version(result: RunResult) -> str:
    return result.network.rpartition("_")[2]


def _residual_or_plain(result: RunResult) -> str | None:
    if result.shortcut == "identity" and _version(result) == "v1":
        return "residual"
    return "plain" if result.network.startswith("plain") else None


# The papers' recipes for the two versions differ in the warm-up, shorter ones in its length.
_RECIPE = ("recipe.name", "recipe.warmup", "recipe.warmup_iterations")
ABLATIONS = (
    Ablation(
        "projection against identity", ("identity", "projection"), lambda run: run.shortcut, ("builder.shortcut",)
    ),
    Ablation(
        "v2 against v1, the papers' recipes",
        ("v1", "v2"),
        lambda run: _version(run) if run.papers_recipe else None,
        ("model", *_RECIPE),
    ),
    Ablation("v2 against v1", ("v1", "v2"), _version, ("model",)),
    Ablation("residual against plain", ("plain", "residual"), _residual_or_plain, ("model", "builder.shortcut")),
    Ablation(
        "full length against `quarter`",
        ("quarter", "full length"),
        lambda run: "full length" if run.papers_recipe else run.settings["recipe.name"],
        (*_RECIPE, "recipe.iterations"),
    ),
    Ablation(
        "bfloat16 against float32",
        ("float32", "mixed_bfloat16"),
        lambda run: run.settings["precision"],
        ("precision",),
    ),
)


@dataclass(frozen=True)
class AblationResult:
    """Runs of the two sides, of the same seeds in the same order; errors in percent, threshold in points."""

    title: str
    first: Sequence[RunResult]
    second: Sequence[RunResult]
    first_error: float
    second_error: float
    threshold: float


def find_ablations(results: Sequence[RunResult]) -> list[AblationResult]:
    """All pairs of groups that differ in one ablation's change and in nothing else, by runs of the same seeds.

    The seed decides which images are kept for validation, so that equal seeds mean equal splits.
    """
    found = []
    for ablation in ABLATIONS:
        pairs: dict[str, dict[str | None, dict[int, RunResult]]] = {}
        for group in group_by_seed(results):
            for result in group:
                pair = pairs.setdefault(ablation.shared_settings(result), {})
                pair.setdefault(ablation.side(result), {})[result.seed] = result
        for pair in pairs.values():
            first, second = (pair.get(side, {}) for side in ablation.sides)
            if seeds := sorted(first.keys() & second.keys()):
                sides = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
                found.append(_compare(ablation.title, *sides, results))
    return found


def _compare(
    title: str, first: Sequence[RunResult], second: Sequence[RunResult], results: Sequence[RunResult]
) -> AblationResult:
    one, other = (mean(result.error for result in side) for side in (first, second))
    deviation = seed_deviation(result for result in results if result.data == first[0].data)
    deviation = SEED_DEVIATION if deviation is None else deviation
    threshold = noise_threshold(one, other, first[0].test_images, len(first), deviation)
    return AblationResult(title, first, second, one, other, threshold)


def ablations_table(results: Sequence[RunResult]) -> str:
    """A Markdown table with a row for each pair of groups that differ in one of `ABLATIONS` alone."""
    rows = []
    for found in find_ablations(results):
        first, second, difference = found.first[0], found.second[0], found.second_error - found.first_error
        seeds = ", ".join(str(result.seed) for result in found.first)
        row = [found.title, first.data, first.split, seeds]
        for run, error in ((second, found.second_error), (first, found.first_error)):
            row += [f"{run.network} ({run.shortcut}, {run.recipe})", f"{error:.2f}"]
        beyond = "yes" if abs(difference) > found.threshold else "no"
        rows.append([*row, signed(difference), f"{found.threshold:.2f}", beyond])
    return markdown_table(_ABLATION_HEAD, rows)


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
