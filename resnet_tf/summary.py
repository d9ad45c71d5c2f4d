"""Parameters and multiply-adds of a network by stage, and its units as boxes to draw."""

import math
import re
from dataclasses import dataclass, replace
from itertools import groupby

import keras
import numpy as np
from keras import layers

from resnet_tf.errors import UserError
from resnet_tf.models.layers import flat_layers

_STAGE = re.compile(r"(stem|head|stage\d+|conv\d+)_")
_UNIT = re.compile(r"((?:stage|conv)\d+_block\d+)_")
_AROUND = re.compile(r"_(shortcut|0)_")
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D)


@dataclass(frozen=True)
class StageSummary:
    """A stage of a network: "input", "stem", "stage1", …, "head", or "network" where no layer's name tells."""

    name: str
    output_shape: tuple[int | None, ...]  # of its last layer, without the batch
    layers: int  # convolutions and dense layers
    parameters: int  # trainable ones
    statistics: int  # those that are not trained, such as moving means
    multiply_adds: int  # of its convolutions and dense layers, for one image


def summarize(model: keras.Model) -> list[StageSummary]:
    """The stages of a functional model in order; UserError where its input size is not known."""
    return [_summarize_stage(name, members) for name, members in _stages(model).items()]


def _stages(model: keras.Model) -> dict[str, list[layers.Layer]]:
    if not isinstance(model, keras.Sequential) and not hasattr(model, "operations"):
        raise UserError(f"a summary needs a functional Keras model, not {type(model).__name__}; save it as one")
    members = flat_layers(model)
    if any(isinstance(layer, layers.TFSMLayer) for layer in members):
        raise UserError("a SavedModel has no layers to sum up; give the .keras or .h5 file that it was made from")
    named = [index for index, layer in enumerate(members) if _stage_of(layer.name)]
    stages: dict[str, list[layers.Layer]] = {}
    name = "input" if named else "network"
    for index, layer in enumerate(members):
        # A layer whose name does not tell belongs to the stage before it, after the last stage to the head.
        name = _stage_of(layer.name) or (name if not named or index < named[-1] else "head")
        stages.setdefault(name, []).append(layer)
    return stages


def _stage_of(layer_name: str) -> str | None:
    match = _STAGE.match(layer_name)
    return match[1] if match else None


def multiply_adds(layer: layers.Layer) -> int:
    """Multiply-adds of a convolution or dense layer for one image, bias left out; 0 for all other layers."""
    if isinstance(layer, layers.SeparableConv2D | layers.SeparableConv1D):
        weights = math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
        return _positions(layer.output.shape, layer) * weights
    if isinstance(layer, layers.Conv2DTranspose | layers.Conv1DTranspose | layers.Conv3DTranspose):
        return _positions(layer.input.shape, layer) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.Dense):
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
    if isinstance(layer, _CONVOLUTIONS):
        return _positions(layer.output.shape, layer) * math.prod(layer.kernel.shape)
    return 0


def describe_summary(stages: list[StageSummary]) -> str:
    """The stages and their totals as a table for a terminal."""
    table = [("stage", "output", "conv + dense", "parameters", "multiply-adds")]
    for stage in stages:
        output = " x ".join("?" if side is None else str(side) for side in stage.output_shape)
        table.append((stage.name, output, str(stage.layers), f"{stage.parameters:,}", f"{stage.multiply_adds:,}"))
    parameters, adds = sum(s.parameters for s in stages), sum(s.multiply_adds for s in stages)
    table.append(("total", "", str(sum(s.layers for s in stages)), f"{parameters:,}", f"{adds:,}"))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    form = "  ".join(f"{{:{'<' if column < 2 else '>'}{width}}}" for column, width in enumerate(widths))
    lines = [form.format(*cells) for cells in table]
    rule = "-" * len(lines[0])
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    statistics = sum(stage.statistics for stage in stages)
    scaled = f"{adds / 1e9:.3f} G" if adds >= 1e9 else f"{adds / 1e6:.2f} M"
    lines.append(
        f"{parameters / 1e6:.2f} M trainable parameters ({statistics:,} moving statistics besides), "
        f"{scaled} multiply-adds an image (convolutions and classifier)"
    )
    return "\n".join(line.rstrip() for line in lines)


def _summarize_stage(name: str, members: list[layers.Layer]) -> StageSummary:
    adds = [multiply_adds(layer) for layer in members]
    return StageSummary(
        name=name,
        output_shape=tuple(members[-1].output.shape[1:]),
        layers=sum(1 for count in adds if count),
        parameters=_size([w for layer in members for w in layer.trainable_variables]),
        statistics=_size([w for layer in members for w in layer.non_trainable_variables]),
        multiply_adds=sum(adds),
    )


def _size(variables: list[keras.Variable]) -> int:
    return int(sum(np.prod(variable.shape, dtype=np.int64) for variable in variables))


def _positions(shape: tuple[int | None, ...], layer: layers.Layer) -> int:
    spatial = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    if any(side is None for side in spatial):
        raise UserError(f"the size that {layer.name} works on is not known; give input_size=…")
    return math.prod(side for side in spatial if side is not None)


@dataclass(frozen=True)
class Box:
    """A unit, or what lies before and after all units, for a diagram."""

    title: str  # name; of the first and the last one where the box stands for several
    stage: str
    lines: tuple[str, ...]  # its convolutions and poolings in order
    shortcut: str | None  # the path around it in words
    output_shape: tuple[int | None, ...]  # without the batch
    count: int = 1  # equal units in a row that the box stands for


def boxes_of(model: keras.Model) -> list[Box]:
    """The boxes of a functional model in order; equal units in a row share one."""
    units: dict[str, list[layers.Layer]] = {}
    for stage, members in _stages(model).items():
        unit = stage
        for layer in members:
            # A layer whose name does not tell belongs to the unit before it, except where no name tells anything.
            if match := _UNIT.match(layer.name):
                unit = match[1]
            elif stage == "network" and _has_kernel(layer):
                unit = layer.name
            units.setdefault(unit, []).append(layer)
    boxes = [_box(title, members) for title, members in units.items()]
    merged = []
    for _, group in groupby(boxes, key=lambda box: (box.stage, box.lines, box.shortcut, box.output_shape)):
        first, *others = group
        title = f"{first.title} … {others[-1].title.rpartition('_')[2]}" if others else first.title
        merged.append(replace(first, title=title, count=1 + len(others)))
    return merged


def _has_kernel(layer: layers.Layer) -> bool:
    return hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel")


def _box(title: str, members: list[layers.Layer]) -> Box:
    around = [layer for layer in members if _AROUND.search(layer.name)]
    lines = tuple(line for layer in members if layer not in around and (line := _describe(layer)))
    shortcut = None
    if any(isinstance(layer, layers.Add) for layer in members):
        projections = [f"projection\n{_describe(layer)}" for layer in around if _has_kernel(layer)]
        shortcut = (projections or ["identity\n(subsampled, padded)" if around else "identity"])[0]
    return Box(title, title.partition("_")[0], lines, shortcut, tuple(members[-1].output.shape[1:]))


def _describe(layer: layers.Layer) -> str:
    """A layer as the papers' tables write it; empty for layers that they leave out."""
    if isinstance(layer, layers.Dense):
        return f"dense, {layer.units}"
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return "global average pool"
    if isinstance(layer, layers.GlobalMaxPooling2D):
        return "global max pool"
    if isinstance(layer, layers.MaxPooling2D):
        return f"max pool {'×'.join(map(str, layer.pool_size))}{_stride(layer)}"
    if isinstance(layer, layers.Conv2D):
        groups = f", {layer.groups} groups" if layer.groups > 1 else ""
        return f"{'×'.join(map(str, layer.kernel_size))}, {layer.filters}{_stride(layer)}{groups}"
    return type(layer).__name__ if _has_kernel(layer) else ""


def _stride(layer: layers.Layer) -> str:
    return f", /{layer.strides[0]}" if layer.strides[0] > 1 else ""
