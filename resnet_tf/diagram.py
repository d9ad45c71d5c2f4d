"""A network as a row of boxes, one per unit, ready to be drawn."""

import re
from dataclasses import dataclass, replace
from itertools import groupby

import keras
from keras import layers

from resnet_tf.summary import flat_layers, stage_of

_UNIT = re.compile(r"((?:stage|conv)\d+_block\d+)_")
_AROUND = re.compile(r"_(shortcut|0)_")
_SHOWN_POOLS = (
    layers.MaxPooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
)


@dataclass(frozen=True)
class Box:
    """A unit, or what lies before and after all units.

    Attributes:
        title: name, and how many equal units the box stands for.
        stage: the stage it is in.
        lines: its convolutions and poolings in order.
        shortcut: the path around it in words, or None.
        output_shape: without the batch.
        count: equal units in a row.
    """

    title: str
    stage: str
    lines: tuple[str, ...]
    shortcut: str | None
    output_shape: tuple[int | None, ...]
    count: int = 1


def boxes_of(model: keras.Model) -> list[Box]:
    """The boxes of a functional model in order; equal units in a row share one."""
    units: dict[str, list[layers.Layer]] = {}
    key = "input"
    for layer in flat_layers(model):
        match = _UNIT.match(layer.name)
        key = match[1] if match else (stage_of(layer.name) or _unnamed_key(layer, key, bool(units)))
        units.setdefault(key, []).append(layer)
    return _merge_equal([_box(title, members) for title, members in units.items()])


def _unnamed_key(layer: layers.Layer, before: str, started: bool) -> str:
    """A layer whose name says nothing goes with what is before it, unless it starts something new."""
    if not started:
        return "input"
    if _UNIT.match(f"{before}_") and (_has_kernel(layer) or isinstance(layer, _SHOWN_POOLS)):
        return "head"
    return layer.name if _has_kernel(layer) and before not in ("head", "stem") else before


def _has_kernel(layer: layers.Layer) -> bool:
    return hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel")


def _box(title: str, members: list[layers.Layer]) -> Box:
    around = [layer for layer in members if _AROUND.search(layer.name)]
    lines = [_describe(layer) for layer in members if layer not in around]
    return Box(
        title=title,
        stage=title.partition("_")[0],
        lines=tuple(line for line in lines if line),
        shortcut=_shortcut(around, members),
        output_shape=tuple(members[-1].output.shape[1:]),
    )


def _shortcut(around: list[layers.Layer], members: list[layers.Layer]) -> str | None:
    if not any(isinstance(layer, layers.Add) for layer in members):
        return None
    projections = [_describe(layer) for layer in around if _has_kernel(layer)]
    if projections:
        return f"projection\n{projections[0]}"
    return "identity\n(subsampled, padded)" if around else "identity"


def _describe(layer: layers.Layer) -> str:
    """A layer as the papers' tables write it; empty for layers that they leave out."""
    if isinstance(layer, layers.Dense):
        return f"dense, {layer.units}"
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return "global average pool"
    if isinstance(layer, layers.GlobalMaxPooling2D):
        return "global max pool"
    if isinstance(layer, layers.MaxPooling2D):
        return f"max pool {_times(layer.pool_size)}{_stride(layer)}"
    if isinstance(layer, layers.Conv2D):
        groups = f", {layer.groups} groups" if layer.groups > 1 else ""
        return f"{_times(layer.kernel_size)}, {layer.filters}{_stride(layer)}{groups}"
    return type(layer).__name__ if _has_kernel(layer) else ""


def _times(size: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in size)


def _stride(layer: layers.Layer) -> str:
    return f", /{layer.strides[0]}" if layer.strides[0] > 1 else ""


def _merge_equal(boxes: list[Box]) -> list[Box]:
    merged = []
    for _, group in groupby(boxes, key=lambda box: (box.stage, box.lines, box.shortcut, box.output_shape)):
        same = list(group)
        title = same[0].title
        if len(same) > 1:
            title = f"{title} … {same[-1].title.rpartition('_')[2]}"
        merged.append(replace(same[0], title=title, count=len(same)))
    return merged
