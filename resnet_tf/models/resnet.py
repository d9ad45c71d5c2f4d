"""The networks of He et al. 2015 and 2016 for CIFAR and for ImageNet, with ResNeXt and wide ones, from their units."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import layers

from resnet_tf.errors import UserError
from resnet_tf.models.blocks import (
    SHORTCUTS,
    STRIDES_ON,
    NormLayer,
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

BASIC, BOTTLENECK = "basic", "bottleneck"
# Of CIFAR: 1512.03385, section 4.2; 1603.05027, appendix.
CIFAR_FILTERS = (16, 32, 64)
LAYERS_PER_UNIT = {BASIC: 2, BOTTLENECK: 3}
# Of ImageNet, conv2_x to conv5_x: 1512.03385, table 1; 200 is from fb.resnet.torch.
IMAGENET_FILTERS = (64, 128, 256, 512)
IMAGENET_DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
    152: (BOTTLENECK, (3, 8, 36, 3)),
    200: (BOTTLENECK, (3, 24, 36, 3)),
}
V2_ONLY = (200,)
STEMS = ("7x7", "3x3")


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
        x = conv(x, CIFAR_FILTERS[0], 3, use_bias=use_bias, name="stem_conv")
        if version == 1:
            x = relu(batch_norm("stem_bn")(x), "stem_relu")
        for stage, filters in enumerate(CIFAR_FILTERS, start=1):
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


def imagenet_resnet(
    depth: int,
    *,
    version: int = 1,
    stem: str = "7x7",
    shortcut: str | None = None,
    identity_padding: str | None = None,
    classes: int | None = None,
    input_shape: Sequence[int | None] = (224, 224, 3),
    include_top: bool = True,
    weights: str | None = None,
    pooling: str | None = None,
    classifier_activation: str | None = None,
    groups: int = 1,
    width_per_group: int = 64,
    replace_stride_with_dilation: Sequence[bool] = (False, False, False),
    zero_init_residual: bool = False,
    norm_layer: NormLayer | None = None,
    stride_on: str = "3x3",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    name: str | None = None,
) -> keras.Model:
    """ResNet for large images (1512.03385 section 4.1, 1603.05027, ResNeXt 1611.05431, wide 1605.07146).

    Args:
        depth: 18 and 34 (basic blocks), 50, 101 and 152 (bottlenecks); 200 in version 2.
        version: 1 for the original, 2 for the pre-activation network as in fb.resnet.torch.
        stem: "7x7" (convolution and pooling, which make the image four times smaller), or "3x3" for small images
            (one convolution of stride 1, no pooling), as kuangliu/pytorch-cifar's ResNets have it.
        shortcut: as in `residual_block`; None is projection.
        identity_padding: as in `residual_block`; None takes that of the weights, or else "center".
        classes: outputs of the classifier; None takes as many as the weights have, or else 1000. With weights for
            another number, the classifier is new and all other layers have the weights.
        input_shape: (height, width, channels), sides of at least 32 (stem "3x3": 8) or None.
        include_top: end with global average pooling and the classifier.
        weights: None; a PyTorch checkpoint (see `resnet-tf import-weights`); a .keras or .weights.h5 file; or
            "imagenet" for torchvision's published file.
        pooling: without top: None (feature map), "avg" or "max" (features).
        classifier_activation: None for logits, "softmax" for probabilities.
        groups: groups of the 3x3 convolutions of bottlenecks (ResNeXt).
        width_per_group: channels of a group in stage 2, doubling with every stage.
        replace_stride_with_dilation: for stages 3, 4 and 5, whether to keep the resolution and
            spread the kernels instead; the features are those of the strided network, and those between them.
        zero_init_residual: start every unit of version 1 as its shortcut (1706.02677).
        norm_layer: callable (name, gamma_initializer) -> layer in place of batch normalization.
        stride_on: "3x3" (fb.resnet.torch, torchvision) or "1x1" (the paper's own code).
        mean: per-channel mean in 0-255 units; the model then takes raw RGB pixels, uint8 or float.
            None takes what the weights were trained with, or no normalization without weights.
        std: per-channel standard deviation in 0-255 units; goes with `mean`.
        name: name of the model; None composes one.

    Returns:
        A plain functional `keras.Model` of stock layers, with stages 2 to 5 (conv2_x to conv5_x).

    Raises:
        UserError: an argument is not one of those allowed, or the weights cannot be read or do not fit the network.
    """
    check_choice("version", version, (1, 2))
    check_choice("depth", depth, tuple(d for d in IMAGENET_DEPTHS if version == 2 or d not in V2_ONLY))
    check_choice("pooling", pooling, POOLINGS)
    check_choice("stride_on", stride_on, STRIDES_ON)
    check_choice("stem", stem, STEMS)
    block, units = IMAGENET_DEPTHS[depth]
    check_positive(groups=groups, width_per_group=width_per_group)
    if block == BASIC and (groups != 1 or width_per_group != 64):
        raise UserError(
            f"groups={groups} and width_per_group={width_per_group} go with bottlenecks (depth 50 and more) only",
            argument="groups" if groups != 1 else "width_per_group",
        )
    if len(replace_stride_with_dilation) != 3:
        raise UserError(
            f"replace_stride_with_dilation={replace_stride_with_dilation!r} needs a truth value for stages 3, 4 and 5",
            argument="replace_stride_with_dilation",
        )
    norm = norm_layer or batch_norm
    unit: Any = functools.partial(_bottleneck, groups=groups, width_per_group=width_per_group, stride_on=stride_on)
    if block == BASIC:
        unit = residual_block
    opened = None
    if weights is not None:
        published = _torchvision_name(depth, version, groups, width_per_group, stride_on) if stem == "7x7" else None
        opened = open_weights(weights, published)
        identity_padding = identity_padding or opened.identity_padding
        mean, std = opened.constants(mean, std)
    unit = functools.partial(
        unit,
        version=version,
        shortcut=shortcut or "projection",
        identity_padding=identity_padding or "center",
        zero_init=zero_init_residual,
        norm_layer=norm,
    )
    if classes is None:
        classes = (opened and opened.classes) or 1000
    check_positive(classes=classes)
    with recursion_limit(depth):
        inputs, x = model_input(input_shape, 32 if stem == "7x7" else 8, mean, std)
        x = _stem(x, stem, norm)
        x = _stages(x, units, replace_stride_with_dilation, unit)
        if version == 2:
            x = relu(norm("head_bn", "ones")(x), "head_relu")
        outputs = head(x, include_top=include_top, pooling=pooling, classes=classes, activation=classifier_activation)
        model = keras.Model(inputs, outputs, name=name or f"imagenet_resnet{depth}_v{version}")
    if opened is not None:
        opened.load_into(model, new_head=opened.needs_new_head(model))
    return model


def _torchvision_name(depth: int, version: int, groups: int, width_per_group: int, stride_on: str) -> str | None:
    """What torchvision calls such a network, if it has one."""
    if version != 1 or stride_on != "3x3":
        return None
    if groups > 1:
        return f"resnext{depth}_{groups}x{width_per_group}d"
    return f"resnet{depth}" if width_per_group == 64 else f"wide_resnet{depth}_{width_per_group / 64:g}"


def _stem(x: Any, stem: str, norm: NormLayer) -> Any:
    """7x7 convolution and 3x3 pooling, each halving the picture (conv1 of table 1), or one 3x3 convolution."""
    size, stride = (7, 2) if stem == "7x7" else (3, 1)
    x = conv(x, IMAGENET_FILTERS[0], size, stride=stride, name="stem_conv")
    x = relu(norm("stem_bn", "ones")(x), "stem_relu")
    if stem == "3x3":
        return x
    # A max-pool pads with minus infinity. Nothing after a ReLU is below zero, so that zeros are the same to it.
    x = layers.ZeroPadding2D(1, data_format="channels_last", name="stem_pool_pad")(x)
    return layers.MaxPooling2D(3, strides=2, data_format="channels_last", name="stem_pool")(x)


def _stages(x: Any, units: Sequence[int], dilate: Sequence[bool], unit: Callable[..., Any]) -> Any:
    """Stages 2 to 5; a dilated stage keeps the resolution and doubles the spacing of the taps behind its stride."""
    dilation = 1
    for stage, (filters, count) in enumerate(zip(IMAGENET_FILTERS, units, strict=True), start=2):
        before, stride = dilation, 2 if stage > 2 else 1
        if stage > 2 and dilate[stage - 3]:
            stride, dilation = 1, 2 * dilation
        for index in range(1, count + 1):
            x = unit(
                x,
                filters,
                stride=stride if index == 1 else 1,
                dilation=(before if index == 1 else dilation, dilation),
                preactivation="none" if (stage, index) == (2, 1) else "branch",
                name=f"stage{stage}_block{index}",
            )
    return x


def _bottleneck(
    x: Any,
    filters: int,
    *,
    dilation: tuple[int, int],
    groups: int,
    width_per_group: int,
    stride_on: str,
    **options: Any,
) -> Any:
    """A bottleneck of ResNet, ResNeXt or a wide network; `dilation` is the spacing before and behind its stride."""
    return bottleneck_block(
        x,
        filters,
        stride_on=stride_on,
        inner_filters=filters * width_per_group // 64 * groups,
        groups=groups,
        dilation=dilation[0] if stride_on == "3x3" else dilation[1],
        **options,
    )
