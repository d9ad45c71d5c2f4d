"""The residual units of He et al. 2015 (arXiv:1512.03385) and 2016 (arXiv:1603.05027).

Every function takes a tensor and returns a tensor, and uses stock Keras layers only, so that
a model built from them loads in plain Keras. Tensors are channels-last whatever keras.json says.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from resnet_tf.errors import UserError

SHORTCUTS = ("identity", "projection", "projection_all", "none")
PREACTIVATIONS = ("branch", "both", "none")
STRIDES_ON = ("3x3", "1x1")
IDENTITY_PADDINGS = ("center", "end")
EXPANSION = 4  # a bottleneck unit puts out four times its inner channels (1512.03385, figure 5)

NormLayer = Callable[[str, str], keras.layers.Layer]


def batch_norm(name: str, gamma_initializer: str = "ones") -> keras.layers.Layer:
    """Batch normalization with the constants of the authors' code (momentum 0.9, epsilon 1e-5)."""
    return layers.BatchNormalization(
        axis=-1, momentum=0.9, epsilon=1e-5, gamma_initializer=gamma_initializer, name=name
    )


def relu(x: Any, name: str) -> Any:
    """ReLU as a layer of its own, so that its output can be asked for by name."""
    return layers.Activation("relu", name=name)(x)


def conv(
    x: Any,
    filters: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    use_bias: bool = False,
    name: str,
) -> Any:
    """Convolution that pads symmetrically, as PyTorch does: a side s becomes ceil(s / stride).

    TensorFlow's "same" pads (0, 1) at stride 2 where everybody else pads (1, 1); the difference shifts the picture by
    half a pixel a stage and makes imported weights give other numbers. `{name}_pad` and `{name}_stride` may go with it.
    """
    padding = "same"
    # Keras does not stride a dilated convolution; computing all pixels and keeping some is the same.
    subsample, stride = (stride, 1) if dilation > 1 else (1, stride)
    if stride > 1 and kernel_size > 1:
        margin = (kernel_size - 1) // 2
        x = layers.ZeroPadding2D(margin, data_format="channels_last", name=f"{name}_pad")(x)
        padding = "valid"
    # Kernels start from a He normal over the fan-out, untruncated, as in fb.resnet.torch.
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        groups=groups,
        use_bias=use_bias,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        data_format="channels_last",
        name=name,
    )(x)
    if subsample == 1:
        return x
    return layers.AveragePooling2D(1, strides=subsample, data_format="channels_last", name=f"{name}_stride")(x)


def _option_a(x: Any, filters: int, stride: int, padding: str, name: str) -> Any:
    """Parameter-free shortcut of 1512.03385 section 3.3 (A): every stride-th pixel, zero channels around or behind."""
    # A 1x1 average pool with a stride picks pixels; zero padding told that the tensor is channels-first pads its last
    # axis. Unlike slices and `ops.pad`, both survive every file format.
    missing = filters - x.shape[-1]
    if missing < 0:
        raise UserError(
            f"shortcut='identity' cannot reduce channels from {x.shape[-1]} to {filters}; use shortcut='projection'",
            argument="shortcut",
        )
    if stride > 1:
        x = layers.AveragePooling2D(1, strides=stride, data_format="channels_last", name=f"{name}_shortcut_pool")(x)
    if missing > 0:
        before = missing // 2 if padding == "center" else 0
        x = layers.ZeroPadding2D(
            ((0, 0), (before, missing - before)), data_format="channels_first", name=f"{name}_shortcut_pad"
        )(x)
    return x


def _unit(
    x: Any,
    convolutions: list[dict[str, Any]],
    *,
    stride: int,
    version: int,
    shortcut: str,
    identity_padding: str,
    preactivation: str,
    zero_init: bool,
    norm_layer: NormLayer,
    use_bias: bool,
    name: str,
) -> Any:
    """A unit with the given convolutions on its branch; basic and bottleneck units differ in nothing else."""
    filters, last = convolutions[-1]["filters"], len(convolutions)
    branch = x
    if version == 2 and preactivation != "none":
        branch = relu(norm_layer(f"{name}_bn1", "ones")(x), f"{name}_relu1")
    changes = stride != 1 or x.shape[-1] != filters
    if shortcut == "none":
        around = None
    elif shortcut == "projection_all" or (shortcut == "projection" and changes):
        # In a pre-activation unit it takes the activated tensor and has no normalization (1603.05027, appendix).
        around = conv(branch, filters, 1, stride=stride, use_bias=use_bias, name=f"{name}_shortcut_conv")
        if version == 1:
            around = norm_layer(f"{name}_shortcut_bn", "ones")(around)
    else:
        around = branch if version == 2 and preactivation == "both" else x
        if changes:
            around = _option_a(around, filters, stride, identity_padding, name)
    for k, options in enumerate(convolutions, start=1):
        if version == 2 and k > 1:
            branch = relu(norm_layer(f"{name}_bn{k}", "ones")(branch), f"{name}_relu{k}")
        branch = conv(branch, use_bias=use_bias, name=f"{name}_conv{k}", **options)
        if version == 1:
            gamma = "zeros" if zero_init and k == last else "ones"
            branch = norm_layer(f"{name}_bn{k}", gamma)(branch)
            if k < last:
                branch = relu(branch, f"{name}_relu{k}")
    if around is not None:
        branch = layers.Add(name=f"{name}_add")([branch, around])
    return relu(branch, f"{name}_relu{last}") if version == 1 else branch


def check_choice(argument: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise a UserError that names what is allowed, unless `value` is."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise UserError(f"{argument}={value!r} is not known; allowed: {choices}", argument=argument)


def check_positive(**values: int) -> None:
    """Raise a UserError for the first argument that is below 1."""
    for argument, value in values.items():
        if value < 1:
            raise UserError(f"{argument} must be at least 1, not {value}", argument=argument)


def _check_unit(
    x: Any, filters: int, stride: int, version: int, shortcut: str, identity_padding: str, preactivation: str
) -> None:
    if len(x.shape) != 4:
        raise UserError(f"x has the shape {tuple(x.shape)}; expected (batch, height, width, channels)", argument="x")
    check_choice("version", version, (1, 2))
    check_choice("shortcut", shortcut, SHORTCUTS)
    check_choice("identity_padding", identity_padding, IDENTITY_PADDINGS)
    check_choice("preactivation", preactivation, PREACTIVATIONS)
    check_positive(filters=filters, stride=stride)


def residual_block(
    x: Any,
    filters: int,
    *,
    stride: int = 1,
    version: int = 2,
    shortcut: str = "projection",
    identity_padding: str = "center",
    preactivation: str = "branch",
    dilation: tuple[int, int] = (1, 1),
    zero_init: bool = False,
    norm_layer: NormLayer = batch_norm,
    use_bias: bool = False,
    name: str | None = None,
) -> Any:
    """Basic residual unit: two 3x3 convolutions (1512.03385 figure 5 left, 1603.05027 figure 1).

    Args:
        x: float tensor (batch, height, width, channels); height and width may be unknown.
        filters: output channels.
        stride: stride of the first convolution and of the shortcut.
        version: 1 for the original unit (conv-BN-ReLU-conv-BN, add, ReLU), 2 for
            pre-activation (BN-ReLU-conv-BN-ReLU-conv, add).
        shortcut: "identity" (option A: subsample and zero channels), "projection" (B: 1x1 convolution where the
            shape changes), "projection_all" (C: 1x1 convolution always) or "none" (the papers' plain network).
        identity_padding: where option A puts the zero channels: "center" for half before and half after, "end" for
            all after (fb.resnet.torch).
        preactivation: "both" puts BN-ReLU before the split, as in the first pre-activation
            unit of a network; "none" leaves it out where the stem has already done it (fb.resnet.torch);
            version 1 has none and ignores it.
        dilation: dilation of the two convolutions.
        zero_init: start the last gamma of a version 1 unit at zero, so that the unit starts as its shortcut.
        norm_layer: callable (name, gamma_initializer) -> layer in place of batch normalization.
        use_bias: give the convolutions a bias.
        name: prefix of the layers' names; None takes a distinct automatic one.

    Returns:
        Float tensor (batch, ceil(height / stride), ceil(width / stride), filters).

    Raises:
        UserError: an argument is not one of those allowed, or option A would have to drop channels.
    """
    _check_unit(x, filters, stride, version, shortcut, identity_padding, preactivation)
    convolutions = [
        {"filters": filters, "kernel_size": 3, "stride": stride, "dilation": dilation[0]},
        {"filters": filters, "kernel_size": 3, "dilation": dilation[1]},
    ]
    return _unit(
        x,
        convolutions,
        stride=stride,
        version=version,
        shortcut=shortcut,
        identity_padding=identity_padding,
        preactivation=preactivation,
        zero_init=zero_init,
        norm_layer=norm_layer,
        use_bias=use_bias,
        name=name or f"residual_block_{keras.backend.get_uid('residual_block')}",
    )


def bottleneck_block(
    x: Any,
    filters: int,
    *,
    stride: int = 1,
    version: int = 2,
    shortcut: str = "projection",
    identity_padding: str = "center",
    preactivation: str = "branch",
    stride_on: str = "3x3",
    inner_filters: int | None = None,
    groups: int = 1,
    dilation: int = 1,
    zero_init: bool = False,
    norm_layer: NormLayer = batch_norm,
    use_bias: bool = False,
    name: str | None = None,
) -> Any:
    """Bottleneck unit: 1x1, 3x3, 1x1 convolutions, the last with four times the channels (1512.03385 figure 5 right).

    Args:
        x: float tensor (batch, height, width, channels); height and width may be unknown.
        filters: channels of the unit before the expansion; it puts out 4 * filters.
        stride: stride of the unit.
        version, shortcut, identity_padding, preactivation, zero_init, norm_layer, use_bias, name: as in
            `residual_block`.
        stride_on: "3x3" (fb.resnet.torch, torchvision) or "1x1", the first (the papers' own code).
        inner_filters: channels of the 1x1 and 3x3 convolutions, for ResNeXt and wide networks; None means `filters`.
        groups: groups of the 3x3 convolution (ResNeXt, arXiv:1611.05431).
        dilation: dilation of the 3x3 convolution.

    Returns:
        Float tensor (batch, ceil(height / stride), ceil(width / stride), 4 * filters).

    Raises:
        UserError: an argument is not one of those allowed, or option A would have to drop channels.
    """
    _check_unit(x, filters, stride, version, shortcut, identity_padding, preactivation)
    check_choice("stride_on", stride_on, STRIDES_ON)
    inner = inner_filters or filters
    if groups < 1 or inner % groups:
        raise UserError(f"groups={groups} must divide the {inner} inner channels of the unit", argument="groups")
    first, middle = (stride, 1) if stride_on == "1x1" else (1, stride)
    convolutions = [
        {"filters": inner, "kernel_size": 1, "stride": first},
        {"filters": inner, "kernel_size": 3, "stride": middle, "dilation": dilation, "groups": groups},
        {"filters": EXPANSION * filters, "kernel_size": 1},
    ]
    return _unit(
        x,
        convolutions,
        stride=stride,
        version=version,
        shortcut=shortcut,
        identity_padding=identity_padding,
        preactivation=preactivation,
        zero_init=zero_init,
        norm_layer=norm_layer,
        use_bias=use_bias,
        name=name or f"bottleneck_block_{keras.backend.get_uid('bottleneck_block')}",
    )
