"""Both ends of every network, input and classifier, and the outputs of its stages."""

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from resnet_tf.errors import UserError
from resnet_tf.process import recursion_limit

POOLINGS = (None, "avg", "max")


def model_input(
    input_shape: Sequence[int | None], min_side: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Any, Any]:
    """The model's input (height, width, channels), sides at least `min_side` or None, and the tensor the stem takes."""
    shape = tuple(input_shape)
    sides_fit = len(shape) == 3 and all(side is None or side >= min_side for side in shape[:2])
    if not sides_fit or shape[2] is None or shape[2] < 1:
        raise UserError(
            f"input_shape={shape} does not fit; allowed: (height, width, channels), sides at least {min_side} or None",
            argument="input_shape",
        )
    if (mean is None) != (std is None):
        raise UserError("mean and std go together: give both or neither", argument="mean" if std is None else "std")
    inputs = keras.Input(shape, name="images")
    return inputs, inputs if mean is None or std is None else normalization(inputs, mean, std)


def normalization(x: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """(x - mean) / std per channel (0-255 units), in float32, as the first layer of a model that takes raw pixels."""
    channels = x.shape[-1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise UserError(
            f"mean and std need {channels} values each, std above 0; got mean={mean!r}, std={std!r}",
            argument="mean" if len(mean) != channels else "std",
        )
    # Shaped (1, 1, channels): Keras turns a flat list into (channels, 1, 1) where keras.json says channels_first.
    scale = [[[1.0 / float(s) for s in std]]]
    offset = [[[-float(m) / float(s) for m, s in zip(mean, std, strict=True)]]]
    return layers.Rescaling(scale, offset, dtype="float32", name="normalization")(x)


def head(x: Any, *, include_top: bool, pooling: str | None, classes: int, activation: str | None) -> Any:
    """Global pooling and the classifier, in float32 under every policy; neither leaves the feature map."""
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(data_format="channels_last", name="head_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(data_format="channels_last", name="head_pool")(x)
    if not include_top:
        return x
    # It starts like torch.nn.Linear in fb.resnet.torch.
    return layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        dtype="float32",
        name="head_logits" if activation is None else "head_predictions",
    )(x)


def feature_extractor(model: keras.Model, stages: Sequence[int] = (2, 3, 4, 5)) -> keras.Model:
    """A model with the inputs and variables of `model` that returns the feature maps of some stages.

    Args:
        model: a network of this package. Stages are counted as in the papers: 1 to 3 in CIFAR networks,
            2 to 5 (conv2_x to conv5_x) in ImageNet networks.
        stages: stages wanted, in the order of the outputs.

    Returns:
        A `keras.Model` with a list of outputs (batch, height, width, channels), one per stage. Those of
        version 1 come after a ReLU; those of version 2 are sums before the next normalization, and
        `model.get_layer("head_relu").output` is the normalized form of the last one.

    Raises:
        UserError: the network does not have one of the stages, or none were asked for.
    """
    outputs = stage_outputs(model)
    unknown = [stage for stage in stages if stage not in outputs]
    if unknown or not stages:
        raise UserError(
            f"stages={tuple(stages)} does not fit {model.name}; allowed: one or more of "
            f"{', '.join(map(str, sorted(outputs))) or 'none, it has no layers named stage…'}",
            argument="stages",
        )
    with recursion_limit(len(model.layers)):
        maps = [model.get_layer(outputs[stage]).output for stage in stages]
        return keras.Model(model.input, maps, name=f"{model.name}_features")


def stage_outputs(model: keras.Model) -> dict[int, str]:
    """The name of the layer that each stage ends in, such as {2: "stage2_block3_relu3", …}."""
    outputs: dict[int, str] = {}
    for layer in model.layers:
        # Layers come in topological order, so the last of a stage's is its output: _relu{k} in version 1, _add in
        # version 2, _conv{k} in a plain network of version 2. A shortcut's may come late too, and are no output.
        match = re.fullmatch(r"stage(\d+)_block\d+_(?:add|relu\d+|conv\d+)", layer.name)
        if match:
            outputs[int(match[1])] = layer.name
    return outputs
