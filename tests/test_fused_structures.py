"""The view of what the networks of keras.applications consist of, in small, against the stock model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from resnet_tf.folding import fold_batch_norm
from resnet_tf.fused import fused_view
from resnet_tf.runtime import _cpuinfo

SIDE = 12


def norm(x, **options):
    return layers.BatchNormalization(**options)(x)


def squeeze_excite(x, activation, gate):
    channels = x.shape[-1]
    y = layers.Reshape((1, 1, channels))(layers.GlobalAveragePooling2D()(x))
    y = layers.Conv2D(2, 1, activation=activation)(y)
    return layers.Multiply()([x, layers.Conv2D(channels, 1, activation=gate)(y)])


def resnet(x):
    """ResNet50: every convolution has a bias, and batch normalization behind it."""
    x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(layers.ReLU()(norm(layers.Conv2D(8, 3)(x)))))
    y = layers.Activation("relu")(norm(layers.Conv2D(8, 3, padding="same")(x), epsilon=1.001e-5))
    y = norm(layers.Conv2D(8, 1)(y), epsilon=1.001e-5)
    return layers.Activation("relu")(layers.Add()([x, y]))


def vgg(x):
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    return layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D(2)(x))


def inception(x):
    """InceptionV3: batch normalization without scale, one-sided kernels, branches side by side."""
    one = layers.Activation("relu")(norm(layers.Conv2D(6, (1, 5), padding="same", use_bias=False)(x), scale=False))
    two = layers.AveragePooling2D(3, strides=1, padding="same")(x)
    two = layers.Activation("relu")(norm(layers.Conv2D(4, (3, 1), padding="same")(two), scale=False, center=False))
    return layers.Concatenate()([one, two])


def xception(x):
    x = layers.Conv2D(8, 1)(x)  # below 8 channels, the stock gradient of the strided convolution is wrong on AVX2
    y = norm(layers.SeparableConv2D(8, 3, padding="same", use_bias=False)(x))
    y = norm(layers.SeparableConv2D(8, 3, padding="same")(layers.Activation("relu")(y)))
    y = layers.MaxPooling2D(3, strides=2, padding="same")(y)
    return layers.Add()([y, norm(layers.Conv2D(8, 1, strides=2, padding="same", use_bias=False)(x))])


def mobilenet(x):
    """MobileNetV2: depthwise convolutions and ReLU6, here with a bias and a multiplier besides."""
    x = layers.ReLU(6.0)(norm(layers.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.ReLU(6.0)(norm(layers.DepthwiseConv2D(3, strides=2, use_bias=False)(x), momentum=0.999))
    x = norm(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x))
    return norm(layers.Conv2D(8, 1, use_bias=False)(layers.Activation("relu6")(x)))


def mobilenet_v3(x):
    """MobileNetV3: its hard swish is written with operators and layers."""
    x = norm(layers.Conv2D(8, 3, padding="same", use_bias=False)(layers.Rescaling(0.9, offset=-0.1)(x)))
    x = layers.Multiply()([x, layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])
    x = layers.Activation("hard_swish")(norm(layers.DepthwiseConv2D(5, padding="same", use_bias=False)(x)))
    return squeeze_excite(x, "relu", "hard_sigmoid")


def densenet(x):
    y = layers.Conv2D(8, 1, use_bias=False)(layers.Activation("relu")(norm(x)))
    y = layers.Conv2D(4, 3, padding="same", use_bias=False)(layers.Activation("relu")(norm(y)))
    return layers.AveragePooling2D(2)(layers.Concatenate()([x, y]))


def efficientnet(x):
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.8, 0.9, 1.1])(layers.Rescaling(0.9)(x))
    x = layers.Activation("swish")(norm(layers.Conv2D(8, 3, padding="same", use_bias=False)(x)))
    y = layers.Activation("swish")(norm(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)))
    y = norm(layers.Conv2D(8, 1, use_bias=False)(squeeze_excite(y, "swish", "sigmoid")))
    return layers.Add()([layers.Dropout(0.0, noise_shape=(None, 1, 1, 1))(y), x])


def lora(x):
    return norm(layers.Conv2D(8, 3, lora_rank=2)(x))


def nested(x):
    inputs = keras.Input((SIDE, SIDE, 3))
    backbone = keras.Model(inputs, mobilenet(inputs), name="backbone")
    head = keras.Sequential([layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU()])
    return head(backbone(x))


def shared(x):
    """One convolution, normalization and model at two places each."""
    conv, bn = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    x = layers.ReLU()(bn(conv(layers.ReLU()(bn(conv(x))))))
    inputs = keras.Input((SIDE, SIDE, 3))
    tower = keras.Model(inputs, resnet(inputs), name="tower")
    return layers.Concatenate()([tower(x), tower(layers.ZeroPadding2D(((1, 0), (0, 1)))(x)[:, :-1, 1:])])


STRUCTURES = [
    *(resnet, vgg, inception, xception, mobilenet, mobilenet_v3, densenet, efficientnet, lora, nested, shared),
]


def model_of(structure):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIDE, SIDE, 3))
    outputs = layers.Dense(4)(layers.GlobalAveragePooling2D()(structure(inputs)))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(2)
    for variable in model.variables:
        if variable.path.split("/")[-1] in ("bias", "beta", "moving_mean", "gamma", "moving_variance", "lora_kernel_b"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


IMAGES = np.random.default_rng(0).normal(0, 1, (8, SIDE, SIDE, 3)).astype(np.float32)
TARGET = np.random.default_rng(3).normal(0, 1, (8, 4)).astype(np.float32)


def step(model):
    """Output and gradients of a training step, and the moving statistics behind it; the variables are put back."""
    before = [variable.numpy() for variable in model.variables]
    with tf.GradientTape() as tape:
        outputs = model(IMAGES, training=True)
        loss = tf.reduce_mean(tf.square(outputs - TARGET))
    gradients = [np.asarray(g) for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]
    after = [variable.numpy() for variable in model.non_trainable_variables]
    for variable, value in zip(model.variables, before, strict=True):
        variable.assign(value)
    return np.asarray(outputs), gradients, after


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_view_computes_what_the_model_does(structure):
    model = model_of(structure)
    view = fused_view(model)
    stock = [type(layer).__name__ for layer in view.layers]
    assert "BatchNormalization" not in stock
    assert {id(v) for v in view.trainable_variables} == {id(v) for v in model.trainable_variables}
    np.testing.assert_allclose(view(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5)
    by_id = [[id(v) for v in each.trainable_variables] for each in (model, view)]
    (outputs, gradients, statistics), (found, theirs, after) = step(model), step(view)
    np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-5)
    theirs = dict(zip(by_id[1], theirs, strict=True))
    scale = np.sqrt(sum(np.square(g).sum() for g in gradients))
    for variable, expected in zip(model.trainable_variables, gradients, strict=True):
        # Biases ahead of a normalization have no gradient but rounding.
        error = np.linalg.norm(theirs[id(variable)] - expected)
        assert error <= 1e-4 * max(np.linalg.norm(expected), 3e-2 * scale), variable.path
    ours = {id(v): value for v, value in zip(view.non_trainable_variables, after, strict=True)}
    for variable, expected in zip(model.non_trainable_variables, statistics, strict=True):
        np.testing.assert_allclose(ours[id(variable)], expected, rtol=1e-4, atol=1e-5, err_msg=variable.path)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_view_in_16_bits(structure):
    model = model_of(structure)
    view = fused_view(model, "mixed_bfloat16")
    expected, found = np.asarray(model(IMAGES)), view(IMAGES)
    assert found.dtype == tf.float32
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()
    outputs, gradients, _ = step(view)
    assert np.isfinite(outputs).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_folding(structure):
    model = model_of(structure)
    folded = fold_batch_norm(model)
    np.testing.assert_allclose(folded(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


def test_normalization_without_a_fast_kernel_in_bfloat16_stays_in_float32():
    """oneDNN normalizes channels by sixteens there."""
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.BatchNormalization(name="norm_32")(layers.Conv2D(32, 3, padding="same", name="conv")(x))
    x = layers.DepthwiseConv2D(5, strides=2, name="depthwise")(x)
    x = layers.BatchNormalization(name="norm_24")(layers.Conv2D(24, 1, name="conv_24")(x))
    x = layers.ReLU(name="relu")(x)
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))
    computes_in = {layer.name: layer.compute_dtype for layer in fused_view(model, "mixed_bfloat16").layers}
    low = {name for name, dtype in computes_in.items() if dtype == "bfloat16"}
    assert low == {"conv", "norm_32", "depthwise", "conv_24", "relu"}


FAST = "bfloat16" if "avx512f" in _cpuinfo("flags").split() else "float32"


@pytest.mark.parametrize(("size", "strides", "kind"), [(3, 1, FAST), (5, 1, "float32"), (3, 2, "float32")])
def test_depthwise_gradients_without_a_fast_kernel_in_bfloat16_are_computed_in_float32(size, strides, kind):
    """oneDNN has those of 3x3 without strides, on processors with AVX-512."""
    inputs = keras.Input((SIDE, SIDE, 32))
    x = layers.DepthwiseConv2D(size, strides, padding="same", name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    stock, ours = model.get_layer("conv"), fused_view(model, "mixed_bfloat16").get_layer("conv")
    stock.kernel.assign(tf.cast(tf.cast(stock.kernel, tf.bfloat16), tf.float32))
    images = tf.cast(np.random.default_rng(0).normal(0, 1, (8, SIDE, SIDE, 32)), tf.bfloat16)

    def gradients(layer, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        assert y.dtype == x.dtype
        return tape.gradient(y, [x, stock.kernel.value])

    for low, expected in zip(gradients(ours, images), gradients(stock, tf.cast(images, tf.float32)), strict=True):
        np.testing.assert_allclose(tf.cast(low, tf.float32), expected, rtol=2**-8, atol=1e-4)
    graph = tf.function(gradients, autograph=False).get_concrete_function(ours, images).graph
    kernels = [op for op in graph.get_operations() if op.type.startswith("DepthwiseConv2dNativeBackprop")]
    assert [op.get_attr("T").name for op in kernels] == [kind] * 2


def test_a_strided_pointwise_convolution_of_few_channels_is_right_with_onednn(python):
    """With AVX2 alone, the stock layer's gradient of the kernel is wrong there."""
    result = python(
        """
import keras, numpy as np, tensorflow as tf
from resnet_tf.fused import fused_view
inputs = keras.Input((12, 12, 3))
model = keras.Model(inputs, keras.layers.Conv2D(8, 1, strides=2, padding="same", use_bias=False)(inputs))
view, rng = fused_view(model), np.random.default_rng(0)
for _ in range(5):
    images, slopes = rng.normal(0, 1, (8, 12, 12, 3)), rng.normal(0, 1, (8, 6, 6, 8))
    with tf.GradientTape() as tape:
        along = tf.reduce_sum(view(images) * slopes)
    found = tape.gradient(along, model.trainable_variables[0].value)
    np.testing.assert_allclose(found[0, 0], np.einsum("nhwi,nhwo->io", images[:, ::2, ::2], slopes), 1e-4, 1e-4)
        """,
        TF_ENABLE_ONEDNN_OPTS="1",
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("capability", "taken"), [((8, 0), "bfloat16"), ((7, 5), "float32")])
def test_auto_is_what_is_fastest_here_without_a_loss_scaler(monkeypatch, capability, taken):
    details = {"compute_capability": capability}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    x = inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3, name="conv")(x))
    view = fused_view(keras.Model(inputs, layers.Dense(2)(x)), "auto")
    assert view.get_layer("conv").compute_dtype == taken
