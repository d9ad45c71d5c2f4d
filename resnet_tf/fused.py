"""Faster graphs of a Keras model: `fused_view` over its own variables, `fold_batch_norm` on a copy for inference.

Keras 3 computes batch normalization from some ten unfused operations, and wraps grouped convolutions on the CPU in
XLA. The view computes both with TensorFlow's own kernels, in the precision of the run, over the very variables of the
stock model. Run the view, save either: nothing is copied, and the saved file knows nothing of it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from resnet_tf.config import PRECISIONS, Precision
from resnet_tf.errors import UserError
from resnet_tf.models.layers import single_input
from resnet_tf.process import recursion_limit

# Layers without variables whose results do not suffer from 8 bits of mantissa. Everything else
# (normalization of the input, global pooling, classifier, unknown layers) stays in float32.
_ELEMENTWISE = (
    *(layers.Activation, layers.Add, layers.AveragePooling2D, layers.Concatenate),
    *(layers.MaxPooling2D, layers.ReLU, layers.ZeroPadding2D),
)


class _View(layers.Layer):
    """A layer that computes what another one does, over the other's variables, and is cloned as that one."""

    def __init__(self, stock: layers.Layer, policy: str) -> None:
        super().__init__(name=stock.name, dtype=policy)
        self.stock = stock
        self.built = True

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.stock.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return keras.layers.serialize(self.stock)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> layers.Layer:
        return keras.layers.deserialize(config)

    def save_own_variables(self, store: Any) -> None:
        raise UserError("a fused view is saved by view.save(path) or view.save_weights(path), not by this function")


class _FusedBatchNormalization(_View):
    """Batch normalization by one oneDNN or cuDNN kernel each way; by several where it spans replicas."""

    def __init__(self, stock: layers.Layer, policy: str, sync_bn: bool) -> None:
        super().__init__(stock, policy)
        self.sync_bn = sync_bn

    def call(self, x: tf.Tensor, training: bool = False, mask: Any = None) -> tf.Tensor:
        bn = self.stock
        gamma, beta = tf.convert_to_tensor(bn.gamma), tf.convert_to_tensor(bn.beta)
        if not (training and bn.trainable):
            mean, variance = tf.convert_to_tensor(bn.moving_mean), tf.convert_to_tensor(bn.moving_variance)
            return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, bn.epsilon, is_training=False)[0]
        if self.sync_bn:
            y, mean, variance = synchronized_batch_norm(x, gamma, beta, bn.epsilon)
        else:
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=bn.epsilon, is_training=True)
            # The kernel returns the unbiased variance; Keras' moving variance is the biased one.
            count = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
            variance *= (count - 1.0) / count
        if x.dtype == tf.float16:
            # The loss scaler skips the update of a step that overflows; the statistics must skip it too.
            finite = tf.reduce_all(tf.math.is_finite(mean + variance))
            mean = tf.where(finite, mean, bn.moving_mean)
            variance = tf.where(finite, variance, bn.moving_variance)
        bn.moving_mean.assign(bn.moving_mean * bn.momentum + mean * (1.0 - bn.momentum))
        bn.moving_variance.assign(bn.moving_variance * bn.momentum + variance * (1.0 - bn.momentum))
        return y


class _PlainConv2D(_View):
    """Convolution in the view's precision; a grouped one without XLA."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        stock = self.stock
        y = tf.nn.conv2d(
            x,
            tf.cast(tf.convert_to_tensor(stock.kernel), x.dtype),
            strides=stock.strides,
            padding=stock.padding.upper(),
            dilations=stock.dilation_rate,
        )
        if stock.use_bias:
            y = tf.nn.bias_add(y, tf.cast(tf.convert_to_tensor(stock.bias), y.dtype))
        return y if stock.activation is None else stock.activation(y)


def _fusable_norm(layer: layers.Layer) -> bool:
    return (
        type(layer) is layers.BatchNormalization
        and len(layer.input.shape) == 4
        and layer.axis in (-1, 3)
        and layer.scale
        and layer.center
        and not layer.synchronized
        and not layer.renorm
        and layer.compute_dtype == "float32"
    )


def _plain_conv(layer: layers.Layer, policy: str) -> bool:
    return (
        type(layer) is layers.Conv2D
        and layer.data_format == "channels_last"
        and layer.compute_dtype == "float32"
        and (layer.groups > 1 or policy != "float32")
        and _has_gradient(layer.groups > 1, max(layer.dilation_rate) > 1, policy)
    )


@functools.cache
def _has_gradient(grouped: bool, dilated: bool, policy: str) -> bool:
    """Whether this device can differentiate such a convolution: TensorFlow's CPU kernels without oneDNN cannot."""
    images = tf.ones((1, 5, 5, 2), policy.removeprefix("mixed_"))
    kernel = tf.ones((3, 3, 1 if grouped else 2, 2), images.dtype)
    try:
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            y = tf.nn.conv2d(images, kernel, 1, "SAME", dilations=2 if dilated else 1)
        tape.gradient(y, (images, kernel))
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        return False
    return True


def fused_view(model: keras.Model, policy: Precision = "float32", sync_bn: bool = False) -> keras.Model:
    """A functional model over the same variables as `model`, with fused kernels, for running.

    What cannot be fused (batch normalization over other axes, without scale or center, synchronized or renormalized,
    or layers that the model itself pins to another dtype) runs as it stands. Train the view and save `model`.

    Args:
        model: functional or built sequential model, made under the float32 policy.
        policy: "float32", "mixed_bfloat16" or "mixed_float16": what convolutions, batch
            normalization and the layers between them compute in. Variables, statistics, input
            normalization and outputs stay float32.
        sync_bn: whether batch normalization that trains goes over the images of all replicas of the
            `tf.distribute` strategy in whose replicas the view runs, instead of over each replica's own.

    Returns:
        A `keras.Model` over the variables of `model`, in inference equal to it up to rounding. It saves, loads and
        clones as `model` does: what Keras' callbacks write are stock layers, without the optimizer.

    Raises:
        UserError: an unknown policy, a model of another kind, or Keras on another backend than TensorFlow.
    """
    if policy not in PRECISIONS:
        raise UserError(f"policy={policy!r} is not known; allowed: {', '.join(PRECISIONS)}", argument="policy")
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"the fused view needs Keras' TensorFlow backend, not {keras.backend.backend()!r}")
    given = model
    if isinstance(model, keras.Sequential) and model.built:
        model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    model = single_input(model)
    if not isinstance(model, keras.Model) or not hasattr(model, "operations"):
        found = type(model).__name__
        raise UserError(f"expected a functional or built sequential keras.Model, not {found}", argument="model")
    outputs = set(model.output_names)

    def view(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, keras.Sequential) or (isinstance(layer, keras.Model) and hasattr(layer, "operations")):
            return fused_view(layer, policy, sync_bn)
        layer_policy = "float32" if layer.name in outputs else policy
        if _fusable_norm(layer):
            return _FusedBatchNormalization(layer, layer_policy, sync_bn)
        if _plain_conv(layer, layer_policy):
            return _PlainConv2D(layer, layer_policy)
        if isinstance(layer, _ELEMENTWISE) and layer.compute_dtype == "float32" and layer.name not in outputs:
            low = type(layer).from_config({**layer.get_config(), "dtype": policy})
            low.get_config = layer.get_config
            return low
        return layer

    with recursion_limit(len(model.layers)):
        made = keras.models.clone_model(model, clone_function=view)
    made.get_config = model.get_config
    for name in ("save", "save_weights", "load_weights", "to_json"):
        setattr(made, name, getattr(given, name))
    return made


def synchronized_batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalize this replica's x (B, H, W, C) with mean and variance over all replicas, which are equally large.

    Returns the normalized x in its dtype, and mean and biased variance, float32 (C,), without gradients.
    """
    # The second moment is taken about the common mean in a second pass: E[x²] - E[x]² in float32 loses everything where
    # the mean is much larger than the deviation. The gradient of x goes through both statistics (1502.03167, section
    # 3); those of gamma and beta are this replica's, to be summed with all other gradients. Forward takes two
    # all-reduces of C numbers each, backward one of 2C.

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., list]]:
        values = tf.cast(x, tf.float32)
        mean = _over_replicas(tf.reduce_mean(values, (0, 1, 2)))
        centered = values - mean
        variance = _over_replicas(tf.reduce_mean(tf.square(centered), (0, 1, 2)))
        scale = tf.math.rsqrt(variance + epsilon)
        y = tf.cast(centered * (scale * gamma) + beta, x.dtype)

        def backward(dy: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            slope = tf.cast(dy, tf.float32)
            normal = (tf.cast(x, tf.float32) - mean) * scale
            along = slope * normal
            both = tf.stack([tf.reduce_mean(slope, (0, 1, 2)), tf.reduce_mean(along, (0, 1, 2))])
            of_mean, of_scale = tf.unstack(_over_replicas(both))
            dx = (slope - of_mean - normal * of_scale) * (scale * gamma)
            return [tf.cast(dx, x.dtype), tf.reduce_sum(along, (0, 1, 2)), tf.reduce_sum(slope, (0, 1, 2))]

        return (y, mean, variance), backward

    y, mean, variance = normalize(x, gamma, beta)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _over_replicas(mean: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, mean)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """A float32 copy of a functional model whose convolutions take over the normalization that directly follows them.

    It has its own variables and the same layer names, and agrees with `model` in inference to rounding.
    """
    # In inference, γ (w·x + b − μ) / √(σ² + ε) + β is a convolution with the kernel w·γ / √(σ² + ε). It folds where the
    # normalization is the only reader of a linear convolution; in pre-activation units that is every normalization but
    # the first, which has an addition before it and stays.
    if not isinstance(model, keras.Model) or not hasattr(model, "operations"):
        raise UserError(f"folding needs a functional keras.Model, not {type(model).__name__}", argument="model")
    with recursion_limit(len(model.layers)):
        pairs = _foldable(model)
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


def _foldable(model: keras.Model) -> dict[str, layers.BatchNormalization]:
    """The normalization that each convolution can take over, by the convolution's name."""
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
        if type(layer) is not layers.Conv2D or layer.activation is not keras.activations.linear:
            continue
        after = readers.get(layer.name, [])
        if len(calls[layer.name]) != 1 or len(after) != 1 or layer.name in model.output_names:
            continue
        norm = by_name.get(after[0])  # None for an operation that is no layer
        if len(calls[after[0]]) == 1 and _over_channels(norm, layer):
            pairs[layer.name] = norm
    return pairs


def _source_layers(arguments: Any) -> Iterator[str]:
    """The layer that each tensor in the arguments of a call comes from, as `get_config` writes them."""
    if isinstance(arguments, dict) and arguments.get("class_name") == "__keras_tensor__":
        yield arguments["config"]["keras_history"][0]
    elif isinstance(arguments, dict | list | tuple):
        for item in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from _source_layers(item)


def _over_channels(norm: layers.Layer | None, conv: layers.Conv2D) -> bool:
    channels = (-1, 3) if conv.data_format == "channels_last" else (1, -3)
    return norm is not None and type(norm) is layers.BatchNormalization and norm.axis in channels


def _merged(conv: layers.Conv2D, norm: layers.BatchNormalization) -> list[np.ndarray]:
    """Kernel and bias, float32, of a convolution followed by a normalization in inference."""
    mean, variance = (np.asarray(v, np.float64) for v in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, np.float64)
    bias = np.asarray(conv.bias, np.float64) if conv.use_bias else 0.0
    bias = (bias - mean) * scale + (np.asarray(norm.beta, np.float64) if norm.center else 0.0)
    kernel = np.asarray(conv.kernel, np.float64) * scale
    return [kernel.astype(np.float32), bias.astype(np.float32)]
