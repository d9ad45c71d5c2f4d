"""What a network consists of: parameters and multiply-adds by stage."""

import math
import re
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers

from resnet_tf.errors import UserError

_STAGE = re.compile(r"(stem|head|stage\d+|conv\d+)_")


@dataclass(frozen=True)
class StageSummary:
    """A stage of a network.

    Attributes:
        name: "input", "stem", "stage1", …, "head"; a layer whose name says nothing belongs to the stage before
            it, after the last stage to "head"; "network" where no name says anything.
        output_shape: of its last layer, without the batch.
        layers: number of convolutions and dense layers.
        parameters: trainable ones.
        statistics: those that are not trained, such as moving means.
        multiply_adds: of its convolutions and dense layers, for one image.
    """

    name: str
    output_shape: tuple[int | None, ...]
    layers: int
    parameters: int
    statistics: int
    multiply_adds: int


def summarize(model: keras.Model) -> list[StageSummary]:
    """The stages of a functional model, in order.

    Raises:
        UserError: the model is not functional, or its input size is not known.
    """
    if not hasattr(model, "operations"):
        raise UserError(f"a summary needs a functional Keras model, not {type(model).__name__}; save it as one")
    found = flat_layers(model)
    named = [index for index, layer in enumerate(found) if stage_of(layer.name)]
    stages: dict[str, list[layers.Layer]] = {}
    name = "input" if named else "network"
    for index, layer in enumerate(found):
        name = stage_of(layer.name) or (name if not named or index < named[-1] else "head")
        stages.setdefault(name, []).append(layer)
    return [_summary(name, members) for name, members in stages.items()]


def flat_layers(model: keras.Model) -> list[layers.Layer]:
    """The layers of a model and of the models in it, in the order in which they run."""
    found: list[layers.Layer] = []
    for layer in model.layers:
        found += flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found


def stage_of(layer_name: str) -> str | None:
    """The stage that a layer's name says it is in, if it says so."""
    match = _STAGE.match(layer_name)
    return match[1] if match else None


def multiply_adds(layer: layers.Layer) -> int:
    """Multiply-adds of a convolution or dense layer for one image, bias left out; 0 for all other layers.

    Raises:
        UserError: the height and width that the layer works on are not known.
    """
    if isinstance(layer, layers.SeparableConv2D | layers.SeparableConv1D):
        return _positions(layer.output.shape, layer) * (
            math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape)
        )
    if isinstance(layer, layers.Conv2DTranspose | layers.Conv1DTranspose | layers.Conv3DTranspose):
        return _positions(layer.input.shape, layer) * math.prod(layer.kernel.shape)
    if isinstance(layer, layers.Dense):
        return math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
    if isinstance(
        layer, layers.Conv1D | layers.Conv2D | layers.Conv3D | layers.DepthwiseConv1D | layers.DepthwiseConv2D
    ):
        return _positions(layer.output.shape, layer) * math.prod(layer.kernel.shape)
    return 0


def describe_summary(stages: list[StageSummary]) -> str:
    """The stages and their totals as a table for a terminal."""
    rows = [("stage", "output", "conv + dense", "parameters", "multiply-adds")]
    for stage in stages:
        output = " x ".join("?" if side is None else str(side) for side in stage.output_shape)
        rows.append((stage.name, output, str(stage.layers), f"{stage.parameters:,}", f"{stage.multiply_adds:,}"))
    parameters, adds = sum(s.parameters for s in stages), sum(s.multiply_adds for s in stages)
    rows.append(("total", "", str(sum(s.layers for s in stages)), f"{parameters:,}", f"{adds:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines[1:1] = ["-" * len(lines[0])]
    lines[-1:-1] = ["-" * len(lines[0])]
    statistics = sum(stage.statistics for stage in stages)
    lines.append(
        f"{parameters / 1e6:.2f} M trainable parameters ({statistics:,} moving statistics besides), "
        f"{_scaled(adds)} multiply-adds an image (convolutions and classifier)"
    )
    return "\n".join(line.rstrip() for line in lines)


def _scaled(count: int) -> str:
    return f"{count / 1e9:.3f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _summary(name: str, members: list[layers.Layer]) -> StageSummary:
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
    """Pixels of a feature map."""
    spatial = shape[1:-1] if layer.data_format == "channels_last" else shape[2:]
    if any(side is None for side in spatial):
        raise UserError(
            f"the size that {layer.name} works on is not known; give --input-size so that multiply-adds can be counted"
        )
    return math.prod(side for side in spatial if side is not None)
