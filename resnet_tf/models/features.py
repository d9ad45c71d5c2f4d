"""Backbones: the outputs of a network's stages, for detection and segmentation."""

import re
from collections.abc import Sequence

import keras

from resnet_tf.errors import UserError
from resnet_tf.process import recursion_limit


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
