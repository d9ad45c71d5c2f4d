"""Confusion matrix, calibration and example images as matplotlib figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf.errors import UserError, optional_import
from resnet_tf.files import replacing
from resnet_tf.reports.metrics import Predictions, calibration_bins, choose_examples, expected_calibration_error

WITHOUT_PLOTS = "pictures are left out: matplotlib is not installed; pip install 'resnet_tf[plots]'"

# Dark to light, so that the order survives a black-and-white print; lines differ in dashes and markers as well.
INK, SECOND, THIRD, PALE = "#10243e", "#c2410c", "#3b82b6", "#a8b3c2"

# Without dates and versions in it, an unchanged picture is an unchanged file.
_UNDATED = {".pdf": {"CreationDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        optional_import("matplotlib.figure", "plots")
    except UserError:
        return False
    return True


def figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches; UserError where matplotlib is not installed."""
    made = optional_import("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")
    optional_import("matplotlib.backends.backend_agg", "plots").FigureCanvasAgg(made)
    return made


def literal(name: str) -> str:
    """A name that matplotlib draws letter by letter, not as a formula between dollar signs."""
    return name.replace("$", r"\$")


def save(made: Any, path: Path, dpi: int = 110) -> None:
    """Replace a picture as a whole; the suffix gives the format."""
    with replacing(path) as temporary:
        made.savefig(temporary, dpi=dpi, metadata=_UNDATED.get(path.suffix))


def pixels(made: Any, dpi: int = 80) -> NDArray[np.uint8]:
    """The figure as RGB pixels, uint8 (H, W, 3)."""
    made.set_dpi(dpi)
    made.canvas.draw()
    return np.asarray(made.canvas.buffer_rgba())[..., :3].copy()


_FEW = 25  # classes up to which cells are large; above, everything is set small and only cells with images get a number
_TITLES = {"wrong": "the surest mistakes", "right": "right predictions", "random": "random images"}


def draw_confusion(confusion: NDArray[np.int64], class_names: Sequence[str]) -> Any:
    """Draw counts (C, C) with true classes as rows, and the same in per cent of each true class.

    Few classes stand side by side, many one above the other, so that a page need not shrink them.
    """
    few = len(class_names) <= _FEW
    side = max(3.5, len(class_names) * (0.52 if few else 0.15)) + 1.2
    made = figure(2 * side, side + 0.2) if few else figure(side, 2 * side)
    first, second = made.subplots(*((1, 2) if few else (2, 1)))
    counts = np.asarray(confusion)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _draw_matrix(first, counts, lambda n: f"{n}" if n or few else "", class_names)
    _draw_matrix(second, percent, _percent_short if few else _percent_whole, class_names)
    for axes, title in ((first, "images"), (second, "per cent of the true class")):
        axes.set_title(title, fontsize=12 if few else 18)
        axes.set_xlabel("predicted class", fontsize=10 if few else 15)
        axes.set_ylabel("true class", fontsize=10 if few else 15)
    return made


def _percent_short(value: float) -> str:
    return f"{value:.1f}" if value else "0"


def _percent_whole(value: float) -> str:
    return f"{value:.0f}" if value >= 0.5 else ""


def _draw_matrix(axes: Any, values: NDArray[Any], text_of: Any, class_names: Sequence[str]) -> None:
    few = len(class_names) <= _FEW
    # The square root lifts the small counts off the diagonal; white is 0, so that gray prints keep the order.
    shades, top = np.sqrt(values), np.sqrt(max(1, values.max()))
    axes.imshow(shades, cmap="Greys", vmin=0, vmax=1.25 * top)
    for (row, column), value in np.ndenumerate(values):
        if text := text_of(value):
            color = "white" if shades[row, column] > 0.6 * top else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5 if few else 4.5, color=color)
    names, ticks = [literal(name) for name in class_names], np.arange(len(class_names))
    axes.set_xticks(ticks, names, rotation=45 if few else 90, fontsize=9 if few else 6)
    axes.set_yticks(ticks, names, fontsize=9 if few else 6)
    if few:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def draw_calibration(predictions: Predictions, bins: int = 15) -> Any:
    """Draw accuracy over confidence in bins of equal width, and how many images each bin holds."""
    counts, confidence, correct = calibration_bins(predictions.confidences, predictions.right, bins)
    error = expected_calibration_error(predictions.confidences, predictions.right, bins)
    filled, middles, width = counts > 0, (np.arange(bins) + 0.5) / bins, 1 / bins
    accuracy, confidence = correct[filled] / counts[filled], confidence[filled] / counts[filled]
    made = figure(5.6, 6.4)
    upper, lower = made.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(middles[filled], accuracy, width, color=PALE, edgecolor=INK, lw=0.8, label="accuracy of the bin")
    upper.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="perfect calibration")
    style = {"color": INK, "ms": 5, "mfc": "white", "clip_on": False, "zorder": 5}
    upper.plot(confidence, accuracy, "o", label="at the bin's mean confidence", **style)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.set_title(f"expected calibration error {100 * error:.2f} % ({bins} bins)", fontsize=11)
    upper.legend(fontsize=9, loc="upper left")
    lower.bar(middles, 100 * counts / max(1, counts.sum()), width, color=PALE, edgecolor=INK, lw=0.8)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images (%)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return made


def draw_examples(images: Any, predictions: Predictions, choice: str, rows: int = 4) -> Any:
    """Draw rows of six images with what was predicted, how surely, and what is true; `choice` as `choose_examples`.

    `images[i]` is image i, uint8 (H, W, 3 or 1): an array, or whatever reads images when they are asked for.
    """
    chosen = choose_examples(predictions, choice, 6 * rows)
    rows = max(1, -(-len(chosen) // 6))
    made = figure(9.6, 2.1 * rows + 0.4)
    made.suptitle(f"{_TITLES[choice]} ({len(chosen)})" if len(chosen) else f"{_TITLES[choice]}: there are none")
    grid = list(made.subplots(rows, 6, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, chosen, strict=False):
        picture = images[index]
        axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", interpolation="nearest")
        axes.set_title(_caption(predictions, index), fontsize=8, pad=3)
    return made


def _caption(predictions: Predictions, index: int) -> str:
    """What was predicted and what is true; words say which is wrong, so that no color has to."""
    names, percent = predictions.class_names, 100 * predictions.confidences[index]
    predicted, true = names[predictions.classes[index]], names[predictions.labels[index]]
    verdict = "right" if predicted == true else f"is {true}"
    return literal(f"{predicted} {percent:.0f} %\n{verdict}")
