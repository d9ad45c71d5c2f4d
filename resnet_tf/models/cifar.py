"""The CIFAR networks of He et al. 2015 (section 4.2) and 2016 (appendix): three stages of 16, 32 and 64 channels."""

import functools
from collections.abc import Sequence
from typing import Any

import keras

from resnet_tf.errors import UserError
from resnet_tf.models.blocks import (
    SHORTCUTS,
    batch_norm,
    bottleneck_block,
    check_choice,
    check_positive,
    conv,
    relu,
    residual_block,
)
from resnet_tf.models.layers import POOLINGS, head, model_input
from resnet_tf.pretrained.keras_file import open_weights
from resnet_tf.process import recursion_limit

STAGE_FILTERS = (16, 32, 64)
LAYERS_PER_UNIT = {"basic": 2, "bottleneck": 3}


def blocks_per_stage(depth: int, block: str) -> int:
    """Units in each of the three stages of a network of 6n+2 (basic) or 9n+2 (bottleneck) layers."""
    check_choice("block", block, tuple(LAYERS_PER_UNIT))
    per_n = 3 * LAYERS_PER_UNIT[block]
    if not isinstance(depth, int) or depth < per_n + 2 or (depth - 2) % per_n:
        examples = ", ".join(str(per_n * n + 2) for n in (1, 2, 3, 5, 9, 18))
        raise UserError(
            f"depth={depth!r} does not exist for {block} blocks; allowed: {per_n}n+2, that is {examples}, …",
            argument="depth",
        )
    return (depth - 2) // per_n


def cifar_resnet(
    depth: int,
    *,
    version: int = 2,
    block: str = "basic",
    shortcut: str | None = None,
    identity_padding: str | None = None,
    classes: int | None = None,
    input_shape: Sequence[int | None] = (32, 32, 3),
    width: int = 1,
    use_bias: bool = False,
    include_top: bool = True,
    weights: str | None = None,
    pooling: str | None = None,
    classifier_activation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> keras.Model:
    """ResNet for small images (1512.03385 section 4.2; 1603.05027 section 5 and appendix).

    Args:
        depth: 6n+2 with basic blocks (20, 32, 44, 56, 110, 1202), 9n+2 with bottlenecks (164, 1001).
        version: 1 for the original, 2 for the pre-activation network.
        block: "basic" or "bottleneck".
        shortcut: "identity" (option A), "projection" (B), "projection_all" (C), "none" (plain network);
            None takes that of the weights, or else the papers' choice: identity for basic,
            projection for bottleneck networks.
        identity_padding: where option A puts its zero channels: "center" (half before, half after) or "end" (all
            after, as fb.resnet.torch); None takes that of the weights, or else "center".
        classes: outputs of the classifier; None takes as many as the weights have, or else 10. With weights for
            another number, the classifier is new and all other layers have the weights.
        input_shape: (height, width, channels), sides of at least 8 or None.
        width: multiplies the channels of all stages but the stem (wide ResNets, arXiv:1605.07146).
        use_bias: give the convolutions a bias.
        include_top: end with global average pooling and the classifier.
        weights: None; a PyTorch checkpoint (see `resnet-tf import-weights`); or a .keras or .weights.h5 file.
        pooling: without top: None (feature map), "avg" or "max" (features).
        classifier_activation: None for logits, "softmax" for probabilities.
        mean: per-channel mean in 0-255 units; the model then takes raw RGB pixels, uint8 or float.
            None takes what the weights were trained with, or no normalization without weights.
        std: per-channel standard deviation in 0-255 units; goes with `mean`.
        name: name of the model; None composes one.

    Returns:
        A plain functional `keras.Model` of stock layers.

    Raises:
        UserError: an argument is not one of those allowed, or the weights cannot be read or do not fit the network.
    """
    check_choice("version", version, (1, 2))
    check_choice("pooling", pooling, POOLINGS)
    blocks = blocks_per_stage(depth, block)
    opened = None if weights is None else open_weights(weights, None)
    if opened is not None:
        shortcut = shortcut or opened.shortcut
        identity_padding = identity_padding or opened.identity_padding
        mean, std = opened.constants(mean, std)
    if shortcut is None:
        shortcut = "identity" if block == "basic" else "projection"
    check_choice("shortcut", shortcut, SHORTCUTS)
    if classes is None:
        classes = (opened and opened.classes) or 10
    check_positive(width=width, classes=classes)
    # The authors' resnet-1k-layers strides the first 1x1 convolution of a CIFAR bottleneck.
    unit: Any = residual_block if block == "basic" else functools.partial(bottleneck_block, stride_on="1x1")
    with recursion_limit(depth):
        inputs, x = model_input(input_shape, 8, mean, std)
        x = conv(x, STAGE_FILTERS[0], 3, use_bias=use_bias, name="stem_conv")
        if version == 1:
            x = relu(batch_norm("stem_bn")(x), "stem_relu")
        for stage, filters in enumerate(STAGE_FILTERS, start=1):
            for index in range(1, blocks + 1):
                x = unit(
                    x,
                    filters * width,
                    stride=2 if stage > 1 and index == 1 else 1,
                    version=version,
                    shortcut=shortcut,
                    identity_padding=identity_padding or "center",
                    preactivation="both" if (stage, index) == (1, 1) else "branch",
                    use_bias=use_bias,
                    name=f"stage{stage}_block{index}",
                )
        if version == 2:
            x = relu(batch_norm("head_bn")(x), "head_relu")
        outputs = head(x, include_top=include_top, pooling=pooling, classes=classes, activation=classifier_activation)
        model = keras.Model(inputs, outputs, name=name or f"resnet{depth}_v{version}")
    if opened is not None:
        opened.load_into(model, new_head=opened.needs_new_head(model))
    return model
