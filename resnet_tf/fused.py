"""`fused_view`: a faster graph of a Keras model over its own variables.

Keras 3 computes batch normalization from some ten unfused operations, and wraps grouped convolutions on the CPU in
XLA. The view computes both with TensorFlow's own kernels, in the precision of the run, over the very variables of the
stock model. Run the view, save either: nothing is copied, and the saved file knows nothing of it.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from resnet_tf.config import ANY_PRECISION, AnyPrecision
from resnet_tf.errors import UserError
from resnet_tf.folding import CONVOLUTIONS, followed_by_norm, kernels_of
from resnet_tf.models.foreign import plain_functional
from resnet_tf.process import recursion_limit
from resnet_tf.runtime import Device, choose_precision, has_bfloat16_kernels

# Layers without variables whose results do not suffer from 8 bits of mantissa. Everything else
# (normalization of the input, global pooling, classifier, unknown layers) stays in float32.
_ELEMENTWISE = (
    *(layers.Activation, layers.Add, layers.AveragePooling2D, layers.Concatenate),
    *(layers.MaxPooling2D, layers.ReLU, layers.ZeroPadding2D),
    *(layers.Cropping2D, layers.LeakyReLU, layers.Multiply, layers.Reshape),
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
    """Batch normalization by one oneDNN or cuDNN kernel each way; by several where it spans replicas.

    `conv` is the convolution before it whose bias it adds: a pass over the channels, and none over the images.
    """

    def __init__(self, stock: layers.Layer, policy: str, sync_bn: bool, conv: layers.Layer | None) -> None:
        super().__init__(stock, policy)
        self.sync_bn, self.conv = sync_bn, conv

    def call(self, x: tf.Tensor, training: bool = False, mask: Any = None) -> tf.Tensor:
        bn = self.stock
        gamma = tf.convert_to_tensor(bn.gamma) if bn.scale else tf.ones(x.shape[-1])
        beta = tf.convert_to_tensor(bn.beta) if bn.center else tf.zeros(x.shape[-1])
        # Not `bias` itself, which Keras would round to 16 bits here.
        bias = None if self.conv is None else tf.convert_to_tensor(self.conv.bias._value)
        if not (training and bn.trainable):
            mean, variance = tf.convert_to_tensor(bn.moving_mean), tf.convert_to_tensor(bn.moving_variance)
            if bias is not None:
                beta += bias * gamma * tf.math.rsqrt(variance + bn.epsilon)
            return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, bn.epsilon, is_training=False)[0]
        if bias is not None:
            beta += 0.0 * bias  # the mean takes it out again: its gradient is zero, and not none
        if self.sync_bn:
            y, mean, variance = synchronized_batch_norm(x, gamma, beta, bn.epsilon)
        else:
            y, mean, variance = tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=bn.epsilon, is_training=True)
            # The kernel returns the unbiased variance; Keras' moving variance is the biased one.
            count = tf.cast(tf.size(x) // x.shape[-1], variance.dtype)
            variance *= (count - 1.0) / count
        if bias is not None:
            mean += bias
        if x.dtype == tf.float16:
            # The loss scaler skips the update of a step that overflows; the statistics must skip it too.
            finite = tf.reduce_all(tf.math.is_finite(mean + variance))
            mean = tf.where(finite, mean, bn.moving_mean)
            variance = tf.where(finite, variance, bn.moving_variance)
        bn.moving_mean.assign(bn.moving_mean * bn.momentum + mean * (1.0 - bn.momentum))
        bn.moving_variance.assign(bn.moving_variance * bn.momentum + variance * (1.0 - bn.momentum))
        return y


class _PlainConvolution(_View):
    """Convolution in the view's precision; a grouped one without XLA, one before a normalization without its bias."""

    def __init__(self, stock: layers.Layer, policy: str, use_bias: bool) -> None:
        super().__init__(stock, policy)
        self.use_bias = use_bias

    def call(self, x: tf.Tensor) -> tf.Tensor:
        stock = self.stock
        kernels = [tf.cast(tf.convert_to_tensor(kernel), x.dtype) for kernel in kernels_of(stock)]
        convolve, strides = tf.nn.conv2d, stock.strides
        if _misread_by_onednn(stock):
            x, strides = x[:, :: strides[0], :: strides[1]], (1, 1)
        if not isinstance(stock, layers.Conv2D):
            convolve, strides = _depthwise_conv2d, (1, *stock.strides, 1)
        y = convolve(x, kernels[0], strides=strides, padding=stock.padding.upper(), dilations=stock.dilation_rate)
        for pointwise in kernels[1:]:
            y = tf.nn.conv2d(y, pointwise, strides=1, padding="VALID")
        if self.use_bias:
            y = tf.nn.bias_add(y, tf.cast(tf.convert_to_tensor(stock.bias), y.dtype))
        return y if stock.activation is None else stock.activation(y)


def _depthwise_conv2d(x: tf.Tensor, kernel: tf.Tensor, **options: Any) -> tf.Tensor:
    """Depthwise convolution; its gradients are computed in float32 where they would be plain loops in bfloat16."""
    convolve = functools.partial(tf.nn.depthwise_conv2d, **options)
    fast = max(kernel.shape[:2]) <= 3 and max(options["strides"]) == 1 and has_bfloat16_kernels()
    if fast or x.dtype != tf.bfloat16 or tf.config.list_physical_devices("GPU"):
        return convolve(x, kernel)

    @tf.custom_gradient
    def narrow(x: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable[..., list[tf.Tensor]]]:
        def backward(dy: tf.Tensor) -> list[tf.Tensor]:
            wide = [tf.cast(each, tf.float32) for each in (x, kernel)]
            with tf.GradientTape() as tape:
                tape.watch(wide)
                y = convolve(*wide)  # its gradients do not read it: in a graph it is never computed
            return [tf.cast(each, dy.dtype) for each in tape.gradient(y, wide, tf.cast(dy, tf.float32))]

        return convolve(x, kernel), backward

    return narrow(x, kernel)


def _faster_policy(layer: layers.Layer, policy: str) -> str:
    """The policy, or float32 for a normalization that oneDNN does not compute in bfloat16: of channels by sixteens."""
    if policy != "mixed_bfloat16" or tf.config.list_physical_devices("GPU") or not _fusable_norm(layer):
        return policy
    return policy if layer.moving_mean.shape[0] % 16 == 0 else "float32"


def _replaceable(layer: layers.Layer) -> bool:
    """Whether the view may compute a layer in its own way: no dtype of its own, and no loss of its output."""
    return layer.compute_dtype == "float32" and layer.activity_regularizer is None


def _fusable_norm(layer: layers.Layer) -> bool:
    return (
        type(layer) is layers.BatchNormalization
        and layer.input_spec.ndim == 4
        and layer.axis in (-1, 3)
        and not layer.synchronized
        and not layer.renorm
        and _replaceable(layer)
    )


def _plain_conv(layer: layers.Layer, policy: str, biased: bool) -> bool:
    """Whether a convolution is computed by the view, `biased` if its bias is left to the normalization behind it."""
    if type(layer) not in CONVOLUTIONS or layer.data_format != "channels_last" or not _replaceable(layer):
        return False
    depthwise, dilated = not isinstance(layer, layers.Conv2D), max(layer.dilation_rate) > 1
    grouped = not depthwise and layer.groups > 1
    if depthwise and (len(set(layer.strides)) > 1 or (dilated and max(layer.strides) > 1)):
        return False  # Keras knows ways around what the kernel cannot do
    taken = grouped or biased or policy != "float32" or _misread_by_onednn(layer)
    return taken and _has_gradient(grouped, depthwise, dilated, policy)


def _misread_by_onednn(layer: layers.Layer) -> bool:
    """Whether oneDNN on AVX2 reads the input wrongly for the gradient of such a kernel (oneDNN issue 6035)."""
    strided = isinstance(layer, layers.Conv2D) and max(layer.kernel_size) == 1 and max(layer.strides) > 1
    return strided and layer.kernel.shape[2] < 8


@functools.cache
def _has_gradient(grouped: bool, depthwise: bool, dilated: bool, policy: str) -> bool:
    """Whether this device can differentiate such a convolution: TensorFlow's CPU kernels without oneDNN cannot."""
    images = tf.ones((1, 5, 5, 2), policy.removeprefix("mixed_"))
    kernel = tf.ones((3, 3, 1 if grouped else 2, 2), images.dtype)
    convolve, strides = (tf.nn.depthwise_conv2d, (1, 1, 1, 1)) if depthwise else (tf.nn.conv2d, 1)
    try:
        with tf.GradientTape() as tape:
            tape.watch((images, kernel))
            y = convolve(images, kernel, strides, "SAME", dilations=(2, 2) if dilated else (1, 1))
        tape.gradient(y, (images, kernel))
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        return False
    return True


def check_precision(precision: str, argument: str = "precision") -> None:
    """Raise a UserError that names what is allowed, unless `precision` is one or "auto"."""
    if precision not in ANY_PRECISION:
        allowed = ", ".join(ANY_PRECISION)
        raise UserError(f"{argument}={precision!r} is not known; allowed: {allowed}", argument=argument)


def fused_view(model: keras.Model, policy: AnyPrecision = "float32", sync_bn: bool = False) -> keras.Model:
    """A functional model over the same variables as `model`, with fused kernels, for running.

    What cannot be fused (batch normalization over other axes, synchronized or renormalized, layers that the model
    itself pins to another dtype or whose activity it regularizes) runs as it stands. Train the view and save `model`.

    Args:
        model: functional or built sequential model, made under the float32 policy.
        policy: "float32", "mixed_bfloat16" or "mixed_float16": what convolutions, batch
            normalization and the layers between them compute in. Variables, statistics, input
            normalization, outputs, and on CPUs what has no fast bfloat16 kernel, stay float32. "auto" is
            "mixed_bfloat16" where that is the faster one (on CPUs a convolution is timed once), else "float32".
        sync_bn: whether batch normalization that trains goes over the images of all replicas of the
            `tf.distribute` strategy in whose replicas the view runs, instead of over each replica's own.

    Returns:
        A `keras.Model` over the variables of `model`, in inference equal to it up to rounding. It saves, loads and
        clones as `model` does: what Keras' callbacks write are stock layers, without the optimizer.

    Raises:
        UserError: an unknown policy, a model of another kind, or Keras on another backend than TensorFlow.
    """
    check_precision(policy, "policy")
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"the fused view needs Keras' TensorFlow backend, not {keras.backend.backend()!r}")
    if policy == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        policy, _ = choose_precision("auto", Device("/GPU:0" if gpus else "/CPU:0", ""))
        policy = "float32" if policy == "mixed_float16" else policy  # which needs a loss scaler
    given, model = model, plain_functional(model)
    outputs = set(model.output_names)
    biased = _biased_before_norm(model, policy)
    taken = {norm.name: model.get_layer(conv) for conv, norm in biased.items()}

    def view(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, keras.Sequential) or (isinstance(layer, keras.Model) and hasattr(layer, "operations")):
            return fused_view(layer, policy, sync_bn)
        layer_policy = "float32" if layer.name in outputs else _faster_policy(layer, policy)
        if _fusable_norm(layer):
            return _FusedBatchNormalization(layer, layer_policy, sync_bn, taken.get(layer.name))
        if _plain_conv(layer, layer_policy, layer.name in biased):
            return _PlainConvolution(layer, layer_policy, layer.use_bias and layer.name not in biased)
        if isinstance(layer, _ELEMENTWISE) and _replaceable(layer) and layer.name not in outputs:
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


def _biased_before_norm(model: keras.Model, policy: str) -> dict[str, layers.BatchNormalization]:
    """The fused normalization behind each convolution of the view that has a bias, by the convolution's name."""
    if not any(type(layer) in CONVOLUTIONS and layer.use_bias for layer in model.layers):
        return {}
    try:
        pairs = followed_by_norm(model)
    except NotImplementedError:  # a layer without a config hides who reads what
        return {}
    return {
        name: norm
        for name, norm in pairs.items()
        if (conv := model.get_layer(name)).use_bias
        and _fusable_norm(norm)
        and _plain_conv(conv, _faster_policy(conv, policy), True)
    }


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
