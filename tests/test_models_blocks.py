import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from resnet_tf.models.blocks import batch_norm, bottleneck_block, conv, residual_block

RNG = np.random.default_rng(0)


def block_model(block, channels, filters, size=8, **options):
    inputs = keras.Input((size, size, channels), name="images")
    return keras.Model(inputs, block(inputs, filters, name="unit", **options))


def numbers(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def convolved(x, kernel, stride, margin):
    """Zero padding of `margin` on every side, then correlation: (N, H, W, C) with (k, k, C, F)."""
    x = np.pad(x.astype(np.float64), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    side = kernel.shape[0]
    rows = range(0, x.shape[1] - side + 1, stride)
    columns = range(0, x.shape[2] - side + 1, stride)
    out = np.zeros((len(x), len(rows), len(columns), kernel.shape[-1]))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            out[:, i, j] = np.tensordot(x[:, top : top + side, left : left + side], kernel, axes=3)
    return out


@pytest.mark.parametrize(("size", "kernel_size", "stride"), [(8, 3, 2), (7, 3, 2), (9, 7, 2), (8, 3, 1), (7, 1, 2)])
def test_convolutions_pad_alike_on_all_sides(size, kernel_size, stride):
    inputs = keras.Input((size, size, 3))
    model = keras.Model(inputs, conv(inputs, 5, kernel_size, stride=stride, name="c"))
    x = numbers(2, size, size, 3)
    expected = convolved(x, np.asarray(model.get_layer("c").kernel), stride, (kernel_size - 1) // 2)
    assert expected.shape == (2, -(-size // stride), -(-size // stride), 5)
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_dilated_convolution_keeps_the_size():
    inputs = keras.Input((9, 9, 3))
    assert conv(inputs, 4, 3, dilation=2, name="a").shape == (None, 9, 9, 4)
    block = block_model(residual_block, 3, 4, 9, version=1, dilation=(1, 2))
    assert [block.get_layer(f"unit_conv{k}").dilation_rate for k in (1, 2)] == [(1, 1), (2, 2)]
    assert block.output_shape == (None, 9, 9, 4)


@pytest.mark.parametrize("size", [8, 7, 9])
@pytest.mark.parametrize(("channels", "filters"), [(16, 48), (16, 32), (16, 17), (5, 5)])
@pytest.mark.parametrize("version", [1, 2])
def test_option_a_picks_pixels_and_adds_zero_channels_half_and_half(size, channels, filters, version):
    model = block_model(residual_block, channels, filters, size, stride=2, version=version, shortcut="identity")
    last = "unit_shortcut_pad" if filters > channels else "unit_shortcut_pool"
    x = numbers(2, size, size, channels)
    before = (filters - channels) // 2
    expected = np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (before, filters - channels - before)))
    shortcut = keras.Model(model.input, model.get_layer(last).output)(x)
    assert np.array_equal(shortcut, expected)
    assert model.output_shape == (None, *expected.shape[1:])


@pytest.mark.parametrize(("block", "filters"), [(residual_block, 12), (bottleneck_block, 3)])
def test_option_a_with_all_zero_channels_at_the_end(block, filters):
    model = block_model(block, 5, filters, 9, stride=2, version=1, shortcut="identity", identity_padding="end")
    x = numbers(2, 9, 9, 5)
    shortcut = keras.Model(model.input, model.get_layer("unit_shortcut_pad").output)(x)
    assert np.array_equal(shortcut, np.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 7))))


def test_option_a_has_no_parameters_and_cannot_drop_channels():
    model = block_model(residual_block, 4, 8, stride=2, shortcut="identity", version=1)
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 9 * 4 * 8 + 9 * 8 * 8 + 2 * 2 * 8
    with pytest.raises(ValueError, match=r"cannot reduce channels.*16.*8.*projection"):
        block_model(residual_block, 16, 8, shortcut="identity")


def test_order_of_the_original_unit(sources):
    of = sources(block_model(residual_block, 4, 8, stride=2, version=1, shortcut="projection"))
    assert of["unit_conv1_pad"] == ["images"]
    assert of["unit_conv1"] == ["unit_conv1_pad"]
    assert of["unit_bn1"] == ["unit_conv1"]
    assert of["unit_relu1"] == ["unit_bn1"]
    assert of["unit_conv2"] == ["unit_relu1"]
    assert of["unit_bn2"] == ["unit_conv2"]
    assert of["unit_add"] == ["unit_bn2", "unit_shortcut_bn"]  # no ReLU on the branch before the addition
    assert of["unit_shortcut_bn"] == ["unit_shortcut_conv"]
    assert of["unit_shortcut_conv"] == ["images"]
    assert of["unit_relu2"] == ["unit_add"]


def test_order_of_the_pre_activation_unit(sources):
    model = block_model(residual_block, 4, 8, stride=2, version=2, shortcut="projection")
    of = sources(model)
    assert of["unit_bn1"] == ["images"]
    assert of["unit_relu1"] == ["unit_bn1"]
    assert of["unit_conv1_pad"] == ["unit_relu1"]
    assert of["unit_bn2"] == ["unit_conv1"]
    assert of["unit_relu2"] == ["unit_bn2"]
    assert of["unit_conv2"] == ["unit_relu2"]
    assert of["unit_shortcut_conv"] == ["unit_relu1"]  # the activated tensor, and no normalization after it
    assert of["unit_add"] == ["unit_conv2", "unit_shortcut_conv"]
    assert model.layers[-1].name == "unit_add"
    assert not any("shortcut_bn" in name for name in of)


def test_an_identity_takes_the_raw_tensor_unless_the_pre_activation_is_shared(sources):
    of = sources(block_model(residual_block, 4, 4, version=2))
    assert of["unit_add"] == ["unit_conv2", "images"]
    of = sources(block_model(residual_block, 4, 4, version=2, preactivation="both"))
    assert of["unit_add"] == ["unit_conv2", "unit_relu1"]
    of = sources(block_model(residual_block, 4, 8, stride=2, version=2, shortcut="identity"))
    assert of["unit_shortcut_pool"] == ["images"]
    of = sources(block_model(residual_block, 4, 8, stride=2, version=2, shortcut="identity", preactivation="both"))
    assert of["unit_shortcut_pool"] == ["unit_relu1"]


def test_the_original_unit_has_no_pre_activation_to_share(sources):
    of = sources(block_model(residual_block, 4, 4, version=1, preactivation="both"))
    assert of["unit_add"] == ["unit_bn2", "images"]
    of = sources(block_model(residual_block, 4, 8, stride=2, version=1, shortcut="identity", preactivation="both"))
    assert of["unit_shortcut_pool"] == ["images"]


@pytest.mark.parametrize("version", [1, 2])
def test_the_four_shortcuts_of_a_unit_that_keeps_its_shape(version, sources):
    adds = {}
    for shortcut in ("identity", "projection", "projection_all", "none"):
        of = sources(block_model(residual_block, 4, 4, version=version, shortcut=shortcut))
        adds[shortcut] = of.get("unit_add", [None])[-1]
    projected = "unit_shortcut_bn" if version == 1 else "unit_shortcut_conv"
    assert adds == {"identity": "images", "projection": "images", "projection_all": projected, "none": None}


@pytest.mark.parametrize("version", [1, 2])
def test_order_of_a_bottleneck(version, sources):
    model = block_model(bottleneck_block, 8, 4, stride=2, version=version)
    of = sources(model)
    assert model.output_shape == (None, 4, 4, 16)
    sizes = [model.get_layer(f"unit_conv{k}").kernel.shape for k in (1, 2, 3)]
    assert sizes == [(1, 1, 8, 4), (3, 3, 4, 4), (1, 1, 4, 16)]
    strides = [model.get_layer(f"unit_conv{k}").strides for k in (1, 2, 3)]
    assert strides == [(1, 1), (2, 2), (1, 1)]
    if version == 1:
        assert [of[f"unit_bn{k}"] for k in (1, 2, 3)] == [[f"unit_conv{k}"] for k in (1, 2, 3)]
        assert of["unit_add"] == ["unit_bn3", "unit_shortcut_bn"]
        assert of["unit_relu3"] == ["unit_add"]
    else:
        assert [of[f"unit_bn{k}"] for k in (1, 2, 3)] == [["images"], ["unit_conv1"], ["unit_conv2"]]
        assert of["unit_add"] == ["unit_conv3", "unit_shortcut_conv"]


def test_the_stride_of_a_bottleneck_can_sit_in_its_first_convolution():
    model = block_model(bottleneck_block, 8, 4, stride=2, stride_on="1x1")
    assert [model.get_layer(f"unit_conv{k}").strides[0] for k in (1, 2, 3)] == [2, 1, 1]


def test_groups_and_inner_width_of_a_bottleneck():
    model = block_model(bottleneck_block, 8, 4, groups=3, inner_filters=6)
    assert model.get_layer("unit_conv2").kernel.shape == (3, 3, 2, 6)
    with pytest.raises(ValueError, match=r"groups=4 must divide the 6"):
        block_model(bottleneck_block, 8, 4, groups=4, inner_filters=6)


@pytest.mark.parametrize("block", [residual_block, bottleneck_block])
@pytest.mark.parametrize("training", [False, True])
def test_a_zero_branch_leaves_the_identity(block, training):
    filters = 8 if block is residual_block else 2
    x = numbers(2, 6, 6, 8)
    model = block_model(block, 8, filters, 6, version=2)
    last = model.get_layer("unit_conv2" if block is residual_block else "unit_conv3")
    last.kernel.assign(tf.zeros_like(last.kernel))
    assert np.array_equal(model(x, training=training), x)
    model = block_model(block, 8, filters, 6, version=1, zero_init=True)
    assert np.array_equal(model(x, training=training), np.maximum(x, 0))


def test_batch_normalization_has_the_authors_constants():
    norm = batch_norm("n")
    assert (norm.momentum, norm.epsilon, norm.axis) == (0.9, 1e-5, -1)
    model = block_model(residual_block, 4, 8, version=1)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert len(norms) == 3
    for norm in norms:
        assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
        assert np.all(norm.gamma == 1)
        assert np.all(norm.beta == 0)


def test_another_normalization_can_take_its_place():
    calls = []

    def norm_layer(name, gamma_initializer):
        calls.append((name, gamma_initializer))
        return layers.GroupNormalization(2, gamma_initializer=gamma_initializer, name=name)

    model = block_model(residual_block, 4, 8, version=1, zero_init=True, norm_layer=norm_layer)
    assert sorted(calls) == [("unit_bn1", "ones"), ("unit_bn2", "zeros"), ("unit_shortcut_bn", "ones")]
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


def test_kernels_are_he_normal_over_the_fan_out():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 64))
    for kernel_size, filters in ((3, 128), (1, 512)):
        model = keras.Model(inputs, conv(inputs, filters, kernel_size, name=f"c{kernel_size}"))
        kernel = np.asarray(model.layers[-1].kernel)
        expected = np.sqrt(2 / (kernel_size**2 * filters))
        assert kernel.std() == pytest.approx(expected, rel=0.03)
        assert abs(kernel.mean()) < 0.03 * expected
        assert abs(kernel).max() > 3 * expected  # a truncated normal ends at 2.3 of its standard deviations


def test_blocks_without_a_name_get_distinct_ones():
    x = inputs = keras.Input((8, 8, 4))
    for _ in range(2):
        x = residual_block(x, 4)
    for _ in range(2):
        x = bottleneck_block(x, 1)
    names = [layer.name for layer in keras.Model(inputs, x).layers]
    assert len(set(names)) == len(names)
    assert sum(name.endswith("_add") for name in names) == 4


def test_unknown_height_and_width():
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, residual_block(inputs, 8, stride=2, shortcut="identity", name="u"))
    assert model.output_shape == (None, None, None, 8)
    assert model(numbers(1, 9, 7, 4)).shape == (1, 5, 4, 8)


def test_blocks_under_channels_first_settings(channels_first):
    inputs = keras.Input((9, 7, 4))
    for shortcut in ("identity", "projection"):
        assert residual_block(inputs, 8, stride=2, shortcut=shortcut).shape == (None, 5, 4, 8)


def test_blocks_inside_a_larger_model_under_fit():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    x = residual_block(x, 16, stride=2)
    x = bottleneck_block(x, 4, version=1)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [v.numpy() for v in model.trainable_variables if v.name == "kernel"]
    history = model.fit(numbers(12, 8, 8, 3), np.arange(12) % 2, batch_size=4, verbose=0)
    after = [v.numpy() for v in model.trainable_variables if v.name == "kernel"]
    assert np.isfinite(history.history["loss"]).all()
    assert not any(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 3}, r"version=3.*allowed: 1, 2"),
        ({"shortcut": "A"}, r"shortcut='A'.*'identity', 'projection', 'projection_all', 'none'"),
        ({"identity_padding": "both"}, r"identity_padding='both'.*'center', 'end'"),
        ({"preactivation": "all"}, r"preactivation='all'.*'branch', 'both'"),
        ({"stride": 0}, r"stride must be at least 1"),
        ({"filters": 0}, r"filters must be at least 1"),
    ],
)
@pytest.mark.parametrize("block", [residual_block, bottleneck_block])
def test_errors_name_what_is_allowed(block, options, message):
    with pytest.raises(ValueError, match=message):
        block(keras.Input((8, 8, 4)), **{"filters": 4, **options})


@pytest.mark.parametrize("block", [residual_block, bottleneck_block])
def test_feature_maps_have_four_axes(block):
    with pytest.raises(ValueError, match=r"x has the shape \(None, 8, 4\); expected \(batch, height, width, chan"):
        block(keras.Input((8, 4)), 4)


def test_an_unknown_place_of_the_stride():
    with pytest.raises(ValueError, match=r"stride_on='5x5'.*'3x3', '1x1'"):
        bottleneck_block(keras.Input((8, 8, 4)), 4, stride_on="5x5")
