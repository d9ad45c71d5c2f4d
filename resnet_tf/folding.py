"""`fold_batch_norm`: batch normalization folded into the convolutions before it, for inference."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers

from resnet_tf.errors import UserError
from resnet_tf.models.foreign import plain_functional
from resnet_tf.process import recursion_limit

CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """A float32 copy of a functional model whose convolutions take over the normalization that directly follows them.

    It has its own variables and the same layer names, and agrees with `model` in inference to rounding.
    """
    # In inference, γ (w·x + b − μ) / √(σ² + ε) + β is a convolution with the kernel w·γ / √(σ² + ε). It folds where the
    # normalization is the only reader of a linear convolution; in pre-activation units that is every normalization but
    # the first, which has an addition before it and stays.
    model = plain_functional(model)
    with recursion_limit(len(model.layers)):
        pairs = followed_by_norm(model)
    folded_norms = {norm.name for norm in pairs.values()}

    def copy(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, keras.Model):
            return fold_batch_norm(layer)
        if isinstance(layer, layers.TFSMLayer):
            raise UserError("a SavedModel has no layers to fold; leave fold_bn=True out", argument="fold_bn")
        config = layer.get_config()
        if isinstance(layer, layers.Layer) and layer.dtype_policy.name != "float32":
            config["dtype"] = "float32"
        if layer.name in pairs:
            config["use_bias"] = True
            config.pop("lora_rank", None)  # what LoRA adds goes into the kernel
        return type(layer).from_config(config)

    def call(layer: layers.Layer, *arguments: Any, **options: Any) -> Any:
        return arguments[0] if layer.name in folded_norms else layer(*arguments, **options)

    with recursion_limit(len(model.layers)):
        folded = keras.models.clone_model(model, clone_function=copy, call_function=call)
    for layer in folded.layers:
        if layer.name in pairs:
            layer.set_weights(_merged(model.get_layer(layer.name), pairs[layer.name]))
        elif layer.weights and not isinstance(layer, keras.Model):
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return folded


def followed_by_norm(model: keras.Model) -> dict[str, layers.BatchNormalization]:
    """The normalization that is the only reader of each linear convolution that has one, by the convolution's name."""
    # The config of a new model has the calls between these inputs and outputs only; a layer may have been called in
    # other models too, such as a fused view.
    config = keras.Model(model.inputs, model.outputs).get_config()
    calls = {layer["name"]: layer["inbound_nodes"] for layer in config["layers"]}
    readers: dict[str, list[str]] = {}
    for name, nodes in calls.items():
        for source in _source_layers(nodes):
            readers.setdefault(source, []).append(name)
    by_name = {layer.name: layer for layer in model.layers}
    pairs = {}
    for layer in model.layers:
        if type(layer) not in CONVOLUTIONS or layer.activation is not keras.activations.linear:
            continue
        after = readers.get(layer.name, [])
        if len(calls[layer.name]) != 1 or len(after) != 1 or layer.name in model.output_names:
            continue
        norm = by_name.get(after[0])  # None for an operation that is no layer
        if len(calls[after[0]]) == 1 and _over_channels(norm, layer):
            pairs[layer.name] = norm
    return pairs


def kernels_of(conv: layers.Layer) -> list[Any]:
    """The kernels that a convolution applies one after the other, with what LoRA adds to them."""
    return [conv.depthwise_kernel, conv.pointwise_kernel] if hasattr(conv, "pointwise_kernel") else [conv.kernel]


def _source_layers(arguments: Any) -> Iterator[str]:
    """The layer that each tensor in the arguments of a call comes from, as `get_config` writes them."""
    if isinstance(arguments, dict) and arguments.get("class_name") == "__keras_tensor__":
        yield arguments["config"]["keras_history"][0]
    elif isinstance(arguments, dict | list | tuple):
        for item in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from _source_layers(item)


def _over_channels(norm: layers.Layer | None, conv: layers.Layer) -> bool:
    channels = (-1, 3) if conv.data_format == "channels_last" else (1, -3)
    return norm is not None and type(norm) is layers.BatchNormalization and norm.axis in channels


def _merged(conv: layers.Layer, norm: layers.BatchNormalization) -> list[np.ndarray]:
    """Kernels and bias, float32, of a convolution followed by a normalization in inference."""
    mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    bias = np.asarray(conv.bias, np.float64) if conv.use_bias else 0.0
    bias = (bias - mean) * scale + (np.asarray(norm.beta, np.float64) if norm.center else 0.0)
    *first, kernel = (np.asarray(kernel, np.float64) for kernel in kernels_of(conv))
    # The output channels of a depthwise kernel are its last two axes.
    kernel = kernel * (scale.reshape(kernel.shape[2:]) if type(conv) is layers.DepthwiseConv2D else scale)
    return [np.asarray(value, np.float32) for value in (*first, kernel, bias)]
