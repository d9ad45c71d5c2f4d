"""Results of several runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

_HEAD = ("run", "network", "parameters", "recipe", "seed", "validation %", "test %", "images/s", "time")
_TEXT = (0, 1, 3)  # columns set to the left


@dataclass(frozen=True)
class RunResult:
    """What a run came to; None where it does not say.

    Attributes:
        name: of its folder.
        setting: equal for runs that differ in nothing but the seed.
        network: name and what was changed of it.
        parameters: trainable ones.
        recipe: name of the recipe.
        seed: of the run.
        validation: accuracy of the final model on the validation part, a fraction.
        test: accuracy of the final model on the test part, a fraction.
        images_per_second: median over its epochs.
        seconds: training and evaluations.
    """

    name: str
    setting: str
    network: str
    parameters: int | None
    recipe: str
    seed: int
    validation: float | None
    test: float | None
    images_per_second: float | None
    seconds: float | None


def describe_runs(results: Sequence[RunResult]) -> str:
    """A table with a line per run and, below the runs of one setting that have several seeds, their mean ± deviation.

    The deviation is that of a sample (divided by n − 1).
    """
    lines: list[tuple[str, ...]] = [_HEAD]
    for setting in dict.fromkeys(result.setting for result in results):
        runs = [result for result in results if result.setting == setting]
        lines += [_line(run) for run in runs]
        if len({run.seed for run in runs}) > 1:
            lines.append(_mean_line(runs))
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in _TEXT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a sample of two or more values."""
    return mean(values), stdev(values)


def _line(run: RunResult) -> tuple[str, ...]:
    return (
        run.name,
        run.network,
        "-" if run.parameters is None else f"{run.parameters:,}",
        run.recipe,
        str(run.seed),
        "-" if run.validation is None else f"{100 * run.validation:.2f}",
        "-" if run.test is None else f"{100 * run.test:.2f}",
        "-" if run.images_per_second is None else f"{run.images_per_second:.0f}",
        "-" if run.seconds is None else clock(run.seconds),
    )


def _mean_line(runs: Sequence[RunResult]) -> tuple[str, ...]:
    validation = spread_of([100 * run.validation for run in runs if run.validation is not None], 2)
    test = spread_of([100 * run.test for run in runs if run.test is not None], 2)
    speed = spread_of([run.images_per_second for run in runs if run.images_per_second is not None], 0)
    return (f"mean ± std of {len(runs)}", "", "", "", "", validation, test, speed, "")


def spread_of(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of a sample; a dash where there are fewer than two values."""
    if len(values) < 2:
        return "-"
    middle, deviation = mean_and_deviation(values)
    return f"{middle:.{digits}f} ± {deviation:.{digits}f}"


def clock(seconds: float) -> str:
    """A length of time as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
