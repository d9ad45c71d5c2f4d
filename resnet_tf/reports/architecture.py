"""Draw a network: a column of boxes per stage, shortcuts to the right of the units they go around."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from resnet_tf.reports.plots import INK, figure

if TYPE_CHECKING:
    from resnet_tf.summary import Box

_WIDTH, _COLUMN, _LINE, _GAP = 1.9, 3.4, 0.2, 0.42  # inches
_PLUS = {"boxstyle": "circle,pad=0.1", "fc": "white", "ec": INK, "lw": 0.8}


def draw_network(boxes: Sequence["Box"], title: str) -> Any:
    """Draw units from top to bottom and stages from left to right, as a figure."""
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
        x, y = 0.3 + index * _COLUMN, -0.9
        if end is not None:
            _connect_columns(axes, end, (x + _WIDTH / 2, y))
        for box in column:
            bottom = y - _height(box)
            _draw_box(axes, box, x, y, bottom)
            if box is not column[-1]:
                _arrow(axes, (x + _WIDTH / 2, bottom), (x + _WIDTH / 2, bottom - _GAP))
            y, end = bottom - _GAP, (x + _WIDTH / 2, bottom)
    return made


def _column(box: "Box") -> str:
    return "start" if box.stage in ("input", "stem") else box.stage


def _height(box: "Box") -> float:
    return _LINE * (2 + len(box.lines)) + 0.14


def _draw_box(axes: Any, box: "Box", x: float, top: float, bottom: float) -> None:
    axes.fill([x, x + _WIDTH, x + _WIDTH, x], [top, top, bottom, bottom], fc="#f1f4f8", ec=INK, lw=1)
    title = box.title if box.count == 1 else f"{box.title} (×{box.count})"
    shape = "×".join("?" if side is None else str(side) for side in box.output_shape)
    for line, text in enumerate((title, *box.lines, f"out {shape}")):
        style = {"weight": "bold"} if line == 0 else {"style": "italic"} if line == len(box.lines) + 1 else {}
        position = (x + _WIDTH / 2, top - 0.07 - _LINE * (line + 0.5))
        axes.text(*position, text, ha="center", va="center", fontsize=8 if line else 7.5, **style)
    if box.shortcut:
        right = x + _WIDTH + 0.16
        level = bottom - _GAP * 0.3
        axes.plot([x + _WIDTH / 2, right, right], [top + _GAP * 0.3, top + _GAP * 0.3, level], color=INK, lw=1)
        _arrow(axes, (right, level), (x + _WIDTH / 2 + 0.06, level))
        axes.text(x + _WIDTH / 2, level, "+", ha="center", va="center", fontsize=8, bbox=_PLUS, zorder=5)
        axes.text(right + 0.06, (top + bottom) / 2, box.shortcut, fontsize=7, va="center")


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1, "shrinkA": 0, "shrinkB": 0})


def _connect_columns(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From the foot of a column, up between the columns, into the head of the next."""
    between, foot, head = end[0] - _WIDTH / 2 - 0.12, start[1] - _GAP * 0.75, end[1] + _GAP * 0.75
    axes.plot([start[0], start[0], between, between, end[0]], [start[1], foot, foot, head, head], color=INK, lw=1)
    _arrow(axes, (end[0], head), end)
