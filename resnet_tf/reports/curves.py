"""Training curves of one run or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf.reports.plots import INK, PALE, SECOND, THIRD, figure, literal, save

_POINTS = 1500  # stretches that a long series is drawn in; a picture has no more columns
_COLORS = (INK, SECOND, THIRD, "#7c3f8c", "#4d7c0f", "#8a6d3b", "#be185d", "#0f766e")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = "os^Dvx+*"
_VALIDATION = {"color": SECOND, "ls": "--", "marker": "o", "mfc": "white"}
_INFERENCE = {"color": THIRD, "ls": ":", "marker": "^", "mfc": "white"}


@dataclass(frozen=True, eq=False)
class TrainingHistory:
    """Loss (nats) and learning rate of every step, float (N,), and one mapping of metrics per evaluation."""

    name: str
    losses: NDArray[np.float64]
    learning_rates: NDArray[np.float64]
    history: Sequence[dict[str, Any]]
    steps_per_epoch: float

    def column(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values, float (n,), of the evaluations that have a value for `key`."""
        pairs = [(metrics["iteration"], metrics[key]) for metrics in self.history if metrics.get(key) is not None]
        values = np.array(pairs, np.float64).reshape(-1, 2)
        return values[:, 0], values[:, 1]

    @property
    def window(self) -> int:
        """Steps to smooth over: half an epoch, but at most a fiftieth of the run."""
        return max(1, min(round(self.steps_per_epoch / 2), len(self.losses) // 50))


def find_drops(learning_rates: NDArray[np.float64]) -> list[int]:
    """Steps at which a constant learning rate falls; a schedule that slides down has none."""
    if len(learning_rates) < 3:
        return []
    before, last, now = learning_rates[:-2], learning_rates[1:-1], learning_rates[2:]
    return [int(index) + 2 for index in np.flatnonzero((now < last) & (last == before))]


def smooth(values: NDArray[np.float64], width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Running mean, float (N − width + 1,), and the middle of each window, counted from 1 like steps."""
    width = max(1, min(width, len(values)))
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    means = (sums[width:] - sums[:-width]) / width
    return np.arange(len(means), dtype=np.float64) + (width + 1) / 2, means


def envelope(values: NDArray[np.float64], points: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions, from 1, and lowest and highest values of stretches of a long series; a short one as it is."""
    if len(values) <= 2 * points:
        return np.arange(1, len(values) + 1, dtype=np.float64), np.asarray(values, np.float64)
    edges = np.linspace(0, len(values), points + 1).astype(int)[:-1]
    low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
    return np.repeat(edges + 1.0, 2), np.stack([low, high], axis=1).ravel()


def save_curves(run: TrainingHistory, folder: Path) -> None:
    """Write curves.png and curves.pdf into a folder."""
    made = draw_curves(run)
    for suffix in ("png", "pdf"):
        save(made, folder / f"curves.{suffix}")


def draw_curves(run: TrainingHistory) -> Any:
    """Draw losses, accuracies and learning rate of a run over its steps."""
    made = figure(8.5, 9)
    loss, accuracy, learning_rate = made.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.2))
    loss.plot(*envelope(run.losses, _POINTS), color=PALE, lw=0.6, label="training, each iteration", rasterized=True)
    loss.plot(*smooth(run.losses, run.window), color=INK, lw=1.6, label=f"training, mean of {run.window}")
    loss.set(ylabel="cross-entropy (nats)", yscale="log")
    for axes, key, scale, label, style in (
        (loss, "validation_loss", 1, "validation", _VALIDATION),
        (accuracy, "train_accuracy", 100, "training, as trained", {"color": INK, "marker": "."}),
        (accuracy, "train_eval_accuracy", 100, "training, inference mode", _INFERENCE),
        (accuracy, "validation_accuracy", 100, "validation", _VALIDATION),
    ):
        x, y = run.column(key)
        if len(x):
            axes.plot(x, scale * y, lw=1.4, ms=4, markevery=max(1, len(x) // 40), label=label, **style)
    _plain_ticks(loss)
    accuracy.set(ylabel="accuracy (%)")
    loss.legend(fontsize=9, loc="upper right")
    accuracy.legend(fontsize=9, loc="lower right")
    loss.grid(alpha=0.3, which="both")
    accuracy.grid(alpha=0.3)
    learning_rate.plot(np.arange(1, len(run.learning_rates) + 1), run.learning_rates, color=INK, lw=1.5)
    learning_rate.set(ylabel="learning rate", xlabel="iteration")
    drops = find_drops(run.learning_rates)
    if drops:  # drops by a factor show on a logarithmic scale, slides on a linear one
        learning_rate.set_yscale("log")
        learning_rate.margins(y=0.2)
    else:
        learning_rate.set_ylim(bottom=0)
    text = {"fontsize": 8, "ha": "right", "va": "top", "rotation": 90 if len(drops) > 4 else 0}
    text |= {"xycoords": ("data", "axes fraction"), "xytext": (-4, -4), "textcoords": "offset points"}
    for drop in drops:
        for axes in (loss, accuracy, learning_rate):
            axes.axvline(drop, color="black", lw=0.9, ls=(0, (2, 3)))
        learning_rate.annotate(f"drop at {drop}", (drop, 1), **text)
    steps = run.steps_per_epoch
    loss.secondary_xaxis("top", functions=(lambda i: i / steps, lambda e: e * steps)).set_xlabel("epoch")
    made.suptitle(literal(run.name))
    return made


def _plain_ticks(axes: Any) -> None:
    """0.5 instead of 5 · 10⁻¹, also between the decades, as far as there is room."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_comparison(runs: Sequence[TrainingHistory]) -> Any:
    """Draw smoothed training losses and accuracies of several runs over each other."""
    made = figure(9, 8 + 0.12 * len(runs))
    loss, accuracy = made.subplots(2, 1, sharex=True)
    for index, run in enumerate(runs):
        style = {"color": _COLORS[index % len(_COLORS)], "ls": _DASHES[index % len(_DASHES)], "lw": 1.4}
        name = literal(run.name)
        loss.plot(*(smooth(run.losses, run.window) if run.losses.size else run.column("train_loss")), **style)
        validated = len(run.column("validation_accuracy")[0])
        x, y = run.column("validation_accuracy" if validated else "train_accuracy")
        label = name if validated else f"{name} (training: it has no validation)"
        marked = {"marker": _MARKERS[index % len(_MARKERS)], "ms": 4, "markevery": max(1, len(x) // 12)}
        accuracy.plot(x, 100 * y, label=label, **style, **marked)
    loss.set(ylabel="training loss, smoothed (nats)", yscale="log")
    _plain_ticks(loss)
    accuracy.set(ylabel="validation accuracy (%)", xlabel="iteration")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.margins(x=0.01)
    accuracy.legend(fontsize=8, loc="lower right")
    return made
