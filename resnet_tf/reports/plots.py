"""Confusion matrix, calibration and example images as matplotlib figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_tf.errors import UserError, optional_import
from resnet_tf.files import replacing
from resnet_tf.reports import metrics
from resnet_tf.reports.metrics import Predictions, choose_examples

WITHOUT_PLOTS = "pictures are left out: matplotlib is not installed; pip install 'resnet_tf[plots]'"

# Dark to light, so that the order survives a black-and-white print; lines differ in dashes and markers as well.
INK, SECOND, THIRD, PALE = "#10243e", "#c2410c", "#3b82b6", "#a8b3c2"

# Without dates and versions in it, an unchanged picture is an unchanged file.
_UNDATED = {".pdf": {"CreationDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        optional_import("matplotlib.figure", "plots")
    except UserError:
        return False
    return True


def figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    made = optional_import("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")
    optional_import("matplotlib.backends.backend_agg", "plots").FigureCanvasAgg(made)
    return made


def literal(name: str) -> str:
    """A name as matplotlib writes it letter by letter: between two dollar signs it would read a formula."""
    return name.replace("$", r"\$")


def save(made: Any, path: Path, dpi: int = 110) -> None:
    """Replace a picture as a whole; the suffix gives the format.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        made.savefig(temporary, dpi=dpi, metadata=_UNDATED.get(path.suffix))


def pixels(made: Any, dpi: int = 80) -> NDArray[np.uint8]:
    """The figure as RGB pixels, uint8 (H, W, 3)."""
    made.set_dpi(dpi)
    made.canvas.draw()
    return np.asarray(made.canvas.buffer_rgba())[..., :3].copy()


class Pictures(Protocol):
    """Images by index: an array of them, or whatever reads them when they are asked for."""

    def __getitem__(self, index: int, /) -> Any:
        """Image `index`, uint8 (H, W, 3 or 1)."""
        ...


_FEW = 25  # classes up to which cells are large; above, everything is set small and only cells with images get a number
_CAPTIONS = {"wrong": "the surest mistakes", "right": "right predictions", "random": "random images"}


def draw_confusion(confusion: NDArray[np.int64], class_names: Sequence[str]) -> Any:
    """Counts, and shares of each true class in per cent; rows are true classes.

    Few classes stand side by side, many one above the other, so that a page need not shrink them.

    Args:
        confusion: images per (true, predicted) class, (C, C).
        class_names: names of the C classes.
    """
    few = len(class_names) <= _FEW
    side = max(3.5, len(class_names) * (0.52 if few else 0.15)) + 1.2
    made = figure(2 * side, side + 0.2) if few else figure(side, 2 * side)
    first, second = made.subplots(*((1, 2) if few else (2, 1)))
    counts = np.asarray(confusion)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 8.5 if few else 4.5
    _draw_matrix(first, counts, [[f"{n}" if n or few else "" for n in row] for row in counts], class_names, size)
    percent = [[_percent(share, few) for share in row] for row in shares]
    _draw_matrix(second, shares, percent, class_names, size)
    for axes, title in ((first, "images"), (second, "per cent of the true class")):
        axes.set_title(title, fontsize=12 if few else 18)
        axes.set_xlabel("predicted class", fontsize=10 if few else 15)
        axes.set_ylabel("true class", fontsize=10 if few else 15)
    return made


def draw_calibration(predictions: Predictions, bins: int = 15) -> Any:
    """Accuracy over confidence in bins of equal width, and how many images each bin holds."""
    counts, sure, hit = metrics.calibration_bins(predictions.confidences, predictions.right, bins)
    error = metrics.expected_calibration_error(predictions.confidences, predictions.right, bins)
    filled = counts > 0
    middles, width = (np.arange(bins) + 0.5) / bins, 1 / bins
    made = figure(5.6, 6.4)
    upper, lower = made.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    accuracy = hit[filled] / counts[filled]
    upper.bar(middles[filled], accuracy, width, color=PALE, edgecolor=INK, lw=0.8, label="accuracy of the bin")
    upper.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="perfect calibration")
    upper.plot(
        sure[filled] / counts[filled],
        accuracy,
        "o",
        color=INK,
        ms=5,
        mfc="white",
        clip_on=False,
        zorder=5,
        label="at the bin's mean confidence",
    )
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.set_title(f"expected calibration error {100 * error:.2f} % ({bins} bins)", fontsize=11)
    upper.legend(fontsize=9, loc="upper left")
    lower.bar(middles, 100 * counts / max(1, counts.sum()), width, color=PALE, edgecolor=INK, lw=0.8)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="images (%)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return made


def draw_examples(images: Pictures, predictions: Predictions, choice: str, rows: int = 4) -> Any:
    """A grid of images with what was predicted, how surely, and what is true.

    Args:
        images: gives image i of the set, uint8 (H, W, 3 or 1); an array (N, H, W, 3 or 1) will do.
        predictions: what was said of them.
        choice: "wrong", "right" or "random", as in `choose_examples`.
        rows: rows of six images.
    """
    chosen = choose_examples(predictions, choice, 6 * rows)
    rows = max(1, -(-len(chosen) // 6))
    made = figure(9.6, 2.1 * rows + 0.4)
    made.suptitle(f"{_CAPTIONS[choice]} ({len(chosen)})" if len(chosen) else f"{_CAPTIONS[choice]}: there are none")
    for axes, index in zip(made.subplots(rows, 6, squeeze=False).flat, [*chosen, *[-1] * 6 * rows], strict=False):
        axes.set_axis_off()
        if index < 0:
            continue
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


def _percent(share: float, few: bool) -> str:
    if not few:
        return f"{share:.0f}" if share >= 0.5 else ""
    return f"{share:.1f}" if share else "0"


def _draw_matrix(axes: Any, values: NDArray[Any], texts: list[list[str]], names: Sequence[str], size: float) -> None:
    # The square root lifts the small counts off the diagonal; light is little, so that gray prints keep the order.
    axes.imshow(np.sqrt(values), cmap="Greys", vmin=0, vmax=1.25 * np.sqrt(max(1, values.max())))
    dark = np.sqrt(values) > 0.6 * np.sqrt(max(1, values.max()))
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            if text:
                color = "white" if dark[row, column] else "black"
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)
    names, places = [literal(name) for name in names], np.arange(len(names))
    label_size = 9 if len(names) <= _FEW else 6
    axes.set_xticks(places, names, rotation=90 if len(names) > _FEW else 45, fontsize=label_size)
    if len(names) <= _FEW:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names, fontsize=label_size)
