"""Training curves of one run or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf.reports.plots import INK, PALE, SECOND, THIRD, figure, literal, save


@dataclass(frozen=True, eq=False)
class TrainingHistory:
    """What a run left behind of its course.

    Attributes:
        name: what the run is called in a legend.
        losses: training cross-entropy of every update, nats, float (N,).
        rates: learning rate of every update, float (N,).
        rows: one mapping per evaluation: iteration, train_accuracy (a fraction, as trained), validation_loss,
            validation_accuracy, train_eval_accuracy and more; a missing value is None.
        steps_per_epoch: updates an epoch.
    """

    name: str
    losses: NDArray[np.float64]
    rates: NDArray[np.float64]
    rows: Sequence[dict[str, Any]]
    steps_per_epoch: float

    def column(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Iterations and values of the rows that have a value for `key`; both float (n,)."""
        pairs = [(row["iteration"], row[key]) for row in self.rows if row.get(key) is not None]
        values = np.array(pairs, np.float64).reshape(-1, 2)
        return values[:, 0], values[:, 1]


def find_drops(rates: NDArray[np.float64]) -> list[int]:
    """Updates at which a constant learning rate falls; a schedule that slides down has none."""
    if len(rates) < 3:
        return []
    falls = (rates[2:] < rates[1:-1]) & (rates[1:-1] == rates[:-2])
    return [int(index) + 2 for index in np.flatnonzero(falls)]


def smooth(values: NDArray[np.float64], width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Running mean over `width` neighbors, without reaching over the ends.

    Returns:
        Positions (the middle of each window, counted from 1 like iterations) and means, float (N − width + 1,).
    """
    width = max(1, min(width, len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means = (sums[width:] - sums[:-width]) / width
    return np.arange(len(means), dtype=np.float64) + (width + 1) / 2, means


def envelope(values: NDArray[np.float64], points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest of each stretch of a long series, so that drawing it costs the same at any length.

    Returns:
        Positions counted from 1 and values, at most 2 · `points` each; a short series is returned as it is.
    """
    if len(values) <= 2 * points:
        return np.arange(1, len(values) + 1, dtype=np.float64), np.asarray(values, np.float64)
    edges = np.linspace(0, len(values), points + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
    return np.repeat(edges + 1.0, 2), np.stack([low, high], axis=1).ravel()


_POINTS = 1500  # stretches that a long series is drawn in; a picture has no more columns
_COLOURS = (INK, SECOND, THIRD, "#7c3f8c", "#4d7c0f", "#8a6d3b", "#be185d", "#0f766e")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "os^Dvx+*"


def draw_curves(course: TrainingHistory) -> Any:
    """Losses, accuracies and learning rate of a run over its iterations, as a figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    made = figure(8.5, 9)
    loss, accuracy, rate = made.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    _draw_losses(loss, course)
    _draw_accuracies(accuracy, course)
    rate.plot(np.arange(1, len(course.rates) + 1), course.rates, color=INK, lw=1.5)
    rate.set(ylabel="learning rate", xlabel="iteration")
    if find_drops(course.rates):  # steps by a factor show on a logarithmic scale, slides on a linear one
        rate.set_yscale("log")
        rate.margins(y=0.2)
    else:
        rate.set_ylim(bottom=0)
    _mark_drops((loss, accuracy, rate), course)
    _epochs_above(loss, course.steps_per_epoch)
    made.suptitle(literal(course.name))
    return made


def save_curves(course: TrainingHistory, folder: Path) -> None:
    """Write curves.png and curves.pdf into a folder.

    Raises:
        UserError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    made = draw_curves(course)
    save(made, folder / "curves.png")
    save(made, folder / "curves.pdf")


def draw_comparison(courses: Sequence[TrainingHistory]) -> Any:
    """Smoothed training losses and accuracies of several runs over each other, as a figure.

    Raises:
        UserError: matplotlib is not installed.
    """
    made = figure(9, 8 + 0.12 * len(courses))
    loss, accuracy = made.subplots(2, 1, sharex=True)
    for index, course in enumerate(courses):
        style = {"color": _COLOURS[index % len(_COLOURS)], "ls": _DASHES[index % len(_DASHES)], "lw": 1.4}
        name = literal(course.name)
        smoothed = smooth(course.losses, _width(course)) if course.losses.size else course.column("train_loss")
        loss.plot(*smoothed, label=name, **style)
        validated = course.column("validation_accuracy")
        x, y = validated if len(validated[0]) else course.column("train_accuracy")
        marked = {"marker": _MARKERS[index % len(_MARKERS)], "ms": 4, "markevery": max(1, len(x) // 12)}
        label = name if len(validated[0]) else f"{name} (training: it has no validation)"
        accuracy.plot(x, 100 * y, label=label, **style, **marked)
    loss.set(ylabel="training loss, smoothed (nats)", yscale="log")
    _plain_ticks(loss)
    accuracy.set(ylabel="validation accuracy (%)", xlabel="iteration")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.margins(x=0.01)
    accuracy.legend(fontsize=8, loc="lower right")
    return made


def _draw_losses(axes: Any, course: TrainingHistory) -> None:
    x, y = envelope(course.losses, _POINTS)
    axes.plot(x, y, color=PALE, lw=0.6, label="training, each iteration", rasterized=True)
    width = _width(course)
    axes.plot(*smooth(course.losses, width), color=INK, lw=1.6, label=f"training, mean of {width}")
    x, y = course.column("validation_loss")
    if len(x):
        axes.plot(x, y, color=SECOND, lw=1.4, ls="--", marker="o", ms=4, mfc="white", label="validation")
    axes.set(ylabel="cross-entropy (nats)", yscale="log")
    _plain_ticks(axes)
    axes.legend(fontsize=9, loc="upper right")
    axes.grid(alpha=0.3, which="both")


def _draw_accuracies(axes: Any, course: TrainingHistory) -> None:
    for key, label, style in (
        ("train_accuracy", "training, as trained", {"color": INK, "ls": "-", "marker": "."}),
        ("train_eval_accuracy", "training, inference mode", {"color": THIRD, "ls": ":", "marker": "^", "mfc": "white"}),
        ("validation_accuracy", "validation", {"color": SECOND, "ls": "--", "marker": "o", "mfc": "white"}),
    ):
        x, y = course.column(key)
        if len(x):
            axes.plot(x, 100 * y, lw=1.4, ms=4, markevery=max(1, len(x) // 40), label=label, **style)
    axes.set(ylabel="accuracy (%)")
    axes.legend(fontsize=9, loc="lower right")
    axes.grid(alpha=0.3)


def _plain_ticks(axes: Any) -> None:
    """0.5 instead of 5 · 10⁻¹, also between the decades, as far as there is room."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    wide = high > 100 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_drops(all_axes: Sequence[Any], course: TrainingHistory) -> None:
    drops = find_drops(course.rates)
    for axes in all_axes:
        for drop in drops:
            axes.axvline(drop, color="black", lw=0.9, ls=(0, (2, 3)))
    for drop in drops:
        all_axes[-1].annotate(
            f"drop at {drop}",
            (drop, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, -4),
            textcoords="offset points",
            fontsize=8,
            ha="right",
            va="top",
            rotation=90 if len(drops) > 4 else 0,
        )


def _epochs_above(axes: Any, steps_per_epoch: float) -> None:
    above = axes.secondary_xaxis("top", functions=(lambda i: i / steps_per_epoch, lambda e: e * steps_per_epoch))
    above.set_xlabel("epoch")


def _width(course: TrainingHistory) -> int:
    """Half an epoch, but at most a fiftieth of the course."""
    return max(1, min(round(course.steps_per_epoch / 2), len(course.losses) // 50))
