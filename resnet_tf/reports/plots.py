"""Confusion matrix, calibration, example images and the plan of a network as matplotlib figures."""

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf.errors import UserError, optional_import
from resnet_tf.files import replacing
from resnet_tf.reports.metrics import Predictions, calibration_bins, choose_examples, expected_calibration_error

if TYPE_CHECKING:
    from resnet_tf.summary import Box

WITHOUT_PLOTS = "pictures are left out: matplotlib is not installed; pip install 'resnet_tf[plots]'"

# Dark to light, so that the order survives a black-and-white print; lines differ in dashes and markers as well.
INK, SECOND, THIRD, PALE = "#10243e", "#c2410c", "#3b82b6", "#a8b3c2"

# Without dates and versions in it, an unchanged picture is an unchanged file.
_UNDATED = {".pdf": {"CreationDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}
EXAMPLE_TITLES = {"wrong": "the surest mistakes", "right": "right predictions", "random": "random images"}


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


def _shortened(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def save(made: Any, path: Path, dpi: int = 110) -> None:
    """Replace a picture as a whole; the suffix gives the format."""
    with replacing(path) as temporary:
        made.savefig(temporary, dpi=dpi, metadata=_UNDATED.get(path.suffix))


def png(made: Any, dpi: int = 110) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    made.savefig(file, format="png", dpi=dpi, metadata=_UNDATED[".png"])
    return file.getvalue()


def pixels(made: Any, dpi: int = 80) -> NDArray[np.uint8]:
    """The figure as RGB pixels, uint8 (H, W, 3)."""
    made.set_dpi(dpi)
    made.canvas.draw()
    return np.asarray(made.canvas.buffer_rgba())[..., :3].copy()


MATRICES = ("images", "per cent of the true class")


def draw_confusion(confusion: NDArray[np.int64], class_names: Sequence[str], matrices: Sequence[str] = MATRICES) -> Any:
    """Draw counts (C, C) with true classes as rows, and the same in per cent of each true class, or one of the two."""
    few, count = len(class_names) <= 25, len(matrices)
    side = max(3.5, len(class_names) * (0.52 if few else 0.15)) + 1.2
    made = figure(count * side, side + 0.2) if few else figure(side, count * side)
    grid = made.subplots(*((1, count) if few else (count, 1)), squeeze=False)
    counts = np.asarray(confusion)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if few:
        numbers = [str(n) for n in counts.flat]
        percents = [f"{p:.1f}" if p else "0" for p in percent.flat]
    else:
        numbers = [str(n) if n else "" for n in counts.flat]
        percents = [f"{p:.0f}" if p >= 0.5 else "" for p in percent.flat]
    contents = dict(zip(MATRICES, ((counts, numbers), (percent, percents)), strict=True))
    for axes, title in zip(grid.flat, matrices, strict=True):
        _draw_matrix(axes, *contents[title], class_names, few)
        axes.set_title(title, fontsize=12 if few else 18)
        axes.set_xlabel("predicted class", fontsize=10 if few else 15)
        axes.set_ylabel("true class", fontsize=10 if few else 15)
    return made


def _draw_matrix(axes: Any, values: NDArray[Any], texts: list[str], class_names: Sequence[str], few: bool) -> None:
    # The square root lifts the small counts off the diagonal; white is 0, so that gray prints keep the order.
    shades, top = np.sqrt(values), np.sqrt(max(1, values.max()))
    axes.imshow(shades, cmap="Greys", vmin=0, vmax=1.25 * top)
    for ((row, column), shade), text in zip(np.ndenumerate(shades), texts, strict=True):
        if text:
            color = "white" if shade > 0.6 * top else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5 if few else 4.5, color=color)
    names, ticks = [literal(_shortened(name)) for name in class_names], np.arange(len(class_names))
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if few else {"rotation": 90}
    axes.set_xticks(ticks, names, fontsize=9 if few else 6, **slanted)
    axes.set_yticks(ticks, names, fontsize=9 if few else 6)


def draw_calibration(predictions: Predictions, bins: int = 15) -> Any:
    """Draw accuracy over confidence in bins of equal width, and how many images each bin holds."""
    counts, confidence, correct = calibration_bins(predictions.confidences, predictions.right, bins)
    error = expected_calibration_error(predictions.confidences, predictions.right, bins)
    filled, middles = counts > 0, (np.arange(bins) + 0.5) / bins
    accuracy, confidence = correct[filled] / counts[filled], confidence[filled] / counts[filled]
    bars = {"width": 1 / bins, "color": PALE, "edgecolor": INK, "lw": 0.8}
    made = figure(5.6, 6.4)
    upper, lower = made.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(middles[filled], accuracy, label="accuracy of the bin", **bars)
    upper.plot([0, 1], [0, 1], color="black", lw=1, ls="--", label="perfect calibration")
    style = {"color": INK, "ms": 5, "mfc": "white", "clip_on": False, "zorder": 5}
    upper.plot(confidence, accuracy, "o", label="at the bin's mean confidence", **style)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.set_title(f"expected calibration error {100 * error:.2f} % ({bins} bins)", fontsize=11)
    upper.legend(fontsize=9, loc="upper left")
    lower.bar(middles, 100 * counts / max(1, counts.sum()), **bars)
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
    made.suptitle(
        f"{EXAMPLE_TITLES[choice]} ({len(chosen)})" if len(chosen) else f"{EXAMPLE_TITLES[choice]}: there are none"
    )
    grid = list(made.subplots(rows, 6, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for axes, index in zip(grid, chosen, strict=False):
        draw_image(axes, images[index], caption(predictions, index))
    return made


def draw_image(axes: Any, image: NDArray[Any], title: str) -> None:
    """Draw an image (H, W, 3 or 1) pixel by pixel, with a title above."""
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
    axes.set_title(literal(title), fontsize=8, pad=3)


def draw_preview(framed: Sequence[Any], varied: Sequence[Any], names: Sequence[str], title: str) -> Any:
    """Draw images with the names of their classes, eight in a row, and below each what augmentation makes of it."""
    columns, rows = min(8, len(framed)), -(-len(framed) // 8)
    made = figure(max(6, 1.5 * columns), 3.3 * rows + 0.5)
    made.suptitle(literal(title), fontsize=9)
    grid = made.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        draw_image(grid[2 * row, column], framed[index], _shortened(name))
        draw_image(grid[2 * row + 1, column], varied[index], "")
    return made


def caption(predictions: Predictions, index: int) -> str:
    """What an image was taken for, how surely, and, in a second line, whether that is right."""
    names = predictions.class_names
    predicted, true = names[predictions.classes[index]], names[predictions.labels[index]]
    verdict = "right" if predicted == true else f"is {true}"  # words, so that no color has to say it
    return f"{predicted} {100 * predictions.confidences[index]:.0f}\N{NO-BREAK SPACE}%\n{verdict}"


_WIDTH, _COLUMN, _LINE, _GAP = 1.9, 3.4, 0.2, 0.42  # of the boxes of a network, in inches


def draw_network(boxes: Sequence["Box"], title: str) -> Any:
    """Draw units from top to bottom and stages from left to right, with shortcuts to the right of their units."""
    columns = [list(group) for _, group in groupby(boxes, key=_column)]
    height = max(sum(_height(box) + _GAP for box in column) for column in columns) + 0.9
    made = figure(_COLUMN * len(columns), height)
    made.set_layout_engine("none")
    axes = made.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, _COLUMN * len(columns)), ylim=(-height, 0))
    axes.set_axis_off()
    axes.text(0.3, -0.3, title, fontsize=13, weight="bold", va="center")
    end = None
    for index, column in enumerate(columns):
        left, top = 0.3 + index * _COLUMN, -0.9
        middle = left + _WIDTH / 2
        if end is not None:  # from the foot of the column before, up between the two, into the head of this one
            between, foot, head = left - 0.12, end[1] - _GAP * 0.75, top + _GAP * 0.75
            _line(axes, [end, (end[0], foot), (between, foot), (between, head), (middle, head), (middle, top)])
        for box in column:
            bottom = top - _height(box)
            _draw_box(axes, box, left, top, bottom)
            if box is not column[-1]:
                _line(axes, [(middle, bottom), (middle, bottom - _GAP)])
            top, end = bottom - _GAP, (middle, bottom)
    return made


def _column(box: "Box") -> str:
    return "start" if box.stage in ("input", "stem") else box.stage


def _height(box: "Box") -> float:
    return _LINE * (2 + len(box.lines)) + 0.14


def _draw_box(axes: Any, box: "Box", left: float, top: float, bottom: float) -> None:
    right, middle = left + _WIDTH, left + _WIDTH / 2
    axes.fill([left, right, right, left], [top, top, bottom, bottom], fc="#f1f4f8", ec=INK, lw=1)
    title = box.title if box.count == 1 else f"{box.title} (×{box.count})"
    shape = "×".join("?" if side is None else str(side) for side in box.output_shape)
    for line, text in enumerate((title, *box.lines, f"out {shape}")):
        style = {"weight": "bold"} if line == 0 else {"style": "italic"} if line == len(box.lines) + 1 else {}
        y = top - 0.07 - _LINE * (line + 0.5)
        axes.text(middle, y, text, ha="center", va="center", fontsize=8 if line else 7.5, **style)
    if box.shortcut:
        around, branch, level = right + 0.16, top + _GAP * 0.3, bottom - _GAP * 0.3
        _line(axes, [(middle, branch), (around, branch), (around, level), (middle + 0.06, level)])
        plus = {"boxstyle": "circle,pad=0.1", "fc": "white", "ec": INK, "lw": 0.8}
        axes.text(middle, level, "+", ha="center", va="center", fontsize=8, bbox=plus, zorder=5)
        axes.text(around + 0.06, (top + bottom) / 2, box.shortcut, fontsize=7, va="center")


def _line(axes: Any, points: list[tuple[float, float]]) -> None:
    """A line through these points, with an arrowhead at the last."""
    axes.plot(*zip(*points[:-1], strict=True), color=INK, lw=1)
    arrow = {"arrowstyle": "-|>", "color": INK, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=arrow)
