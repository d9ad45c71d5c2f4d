import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet_tf.fused import fused_view
from resnet_tf.models import resnet
from resnet_tf.models.layers import feature_extractor, stage_outputs
from resnet_tf.models.registry import IMAGENET_NETWORKS, build_model
from resnet_tf.models.resnet import imagenet_resnet

# Parameters of torchvision's networks as its documentation states them; those of version 2 are pytorchcv's
# PreResNet (osmr/imgclsmob, table of models) less the 64 scales and 64 offsets of the normalization in its first
# unit, which fb.resnet.torch does not have behind its stem.
TORCHVISION = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}
PYTORCHCV = {
    "resnet18_v2": 11_687_848,
    "resnet34_v2": 21_796_008,
    "resnet50_v2": 25_549_480,
    "resnet200_v2": 64_666_280,
}


# kuangliu/pytorch-cifar's networks for 10 classes: those of torchvision with 10 · 512 (or 2048) + 10 classifier
# parameters in place of 1,000 outputs', and 64 · 27 in the stem in place of 64 · 147.
KUANGLIU = {
    "resnet18_cifar": 11_173_962,
    "resnet34_cifar": 21_282_122,
    "resnet50_cifar": 23_520_842,
    "resnet101_cifar": 42_512_970,
    "resnet152_cifar": 58_156_618,
}


@pytest.fixture
def small(monkeypatch):
    """Networks of few channels and units, for what is true of all."""
    monkeypatch.setattr(resnet, "IMAGENET_FILTERS", (4, 8, 12, 16))
    shallow = {18: ("basic", (1, 2, 1, 2)), 50: ("bottleneck", (1, 2, 2, 2))}
    monkeypatch.setattr(resnet, "IMAGENET_DEPTHS", {**resnet.IMAGENET_DEPTHS, **shallow})


def randomised(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        low, high = (0.5, 1.5) if variable.name in ("gamma", "moving_variance") else (-0.3, 0.3)
        variable.assign(rng.uniform(low, high, variable.shape))
    return model


def without_weights(name):
    """A network to count and look at, whose hundred million weights take no memory."""
    with keras.StatelessScope(initialize_variables=False):
        return build_model(name)


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_are_torchvisions(name):
    assert trainable(without_weights(name)) == TORCHVISION[name]


@pytest.mark.parametrize("name", PYTORCHCV)
def test_parameters_of_version_2(name):
    assert trainable(without_weights(name)) == PYTORCHCV[name] - 128


@pytest.mark.parametrize("name", KUANGLIU)
def test_networks_with_a_small_stem(name):
    model = without_weights(name)
    assert trainable(model) == KUANGLIU[name]
    shapes = [tuple(output.shape[1:3]) for output in feature_extractor(model).outputs]
    assert shapes == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert model.get_layer("stem_relu").output.shape[1:] == (32, 32, 64)
    assert not any("pool" in layer.name and layer.name != "head_pool" for layer in model.layers)


def test_shortcuts_of_an_imagenet_network(small):
    """1512.03385 table 3 compares A, B and C on ResNet-34."""
    paddings = {"center": (2, 2), "end": (0, 4)}
    for padding, channels in paddings.items():
        model = imagenet_resnet(18, input_shape=(64, 64, 3), shortcut="identity", identity_padding=padding)
        assert model.get_layer("stage3_block1_shortcut_pad").padding == ((0, 0), channels)
        assert not any("shortcut_conv" in layer.name for layer in model.layers)


def test_every_name_is_counted():
    # The depths of these two are counted in version 1.
    assert set(IMAGENET_NETWORKS) == {*TORCHVISION, *PYTORCHCV, "resnet101_v2", "resnet152_v2"}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("depth", [18, 50])
def test_stages_halve_the_picture(depth, version):
    model = imagenet_resnet(depth, version=version, input_shape=(64, 96, 3))
    expansion = 4 if depth == 50 else 1
    shapes = [tuple(output.shape[1:]) for output in feature_extractor(model).outputs]
    assert shapes == [
        (16, 24, 64 * expansion),
        (8, 12, 128 * expansion),
        (4, 6, 256 * expansion),
        (2, 3, 512 * expansion),
    ]
    assert model.get_layer("stem_conv").output.shape[1:] == (32, 48, 64)


def test_the_names_of_the_stages_outputs():
    assert stage_outputs(imagenet_resnet(50)) == {
        2: "stage2_block3_relu3",
        3: "stage3_block4_relu3",
        4: "stage4_block6_relu3",
        5: "stage5_block3_relu3",
    }
    assert stage_outputs(imagenet_resnet(18, version=2))[5] == "stage5_block2_add"
    assert stage_outputs(build_model("resnet20_v1")) == {s: f"stage{s}_block3_relu2" for s in (1, 2, 3)}
    assert stage_outputs(build_model("plain20", version=2))[3] == "stage3_block3_conv2"


def test_features_are_those_inside_the_model(small):
    model = randomised(imagenet_resnet(18, input_shape=(None, None, 3)))
    images = np.random.default_rng(0).uniform(0, 1, (2, 45, 33, 3)).astype(np.float32)
    features = feature_extractor(model, stages=(5, 3))(images)
    whole = keras.Model(model.inputs, model.get_layer("head_pool").output)
    assert [tuple(f.shape) for f in features] == [(2, 2, 2, 16), (2, 6, 5, 8)]
    np.testing.assert_allclose(np.mean(features[0], (1, 2)), whole(images), atol=1e-6)


def test_stages_that_do_not_exist(small):
    with pytest.raises(ValueError, match=r"stages=\(1, 2\) does not fit .*; allowed: one or more of 2, 3, 4, 5"):
        feature_extractor(imagenet_resnet(18), stages=(1, 2))
    with pytest.raises(ValueError, match="allowed: one or more of 2, 3, 4, 5"):
        feature_extractor(imagenet_resnet(18), stages=())
    with pytest.raises(ValueError, match="no layers named stage"):
        feature_extractor(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))


DILATED = [
    (18, {}),
    (50, {}),
    (50, {"stride_on": "1x1"}),
    (50, {"groups": 4, "width_per_group": 16}),
    (18, {"version": 2}),
    (50, {"version": 2}),
]


@pytest.mark.parametrize("replaced", [(False, True, True), (True, False, True)])
@pytest.mark.parametrize(("depth", "options"), DILATED)
def test_a_dilated_network_computes_the_strided_one_and_what_lies_between(small, depth, options, replaced):
    """Holes in the kernels are what strides in the picture are: 1606.00915, section 3.1."""
    strided = randomised(imagenet_resnet(depth, input_shape=(64, 64, 3), include_top=False, **options))
    dilated = imagenet_resnet(
        depth, input_shape=(64, 64, 3), include_top=False, replace_stride_with_dilation=replaced, **options
    )
    dilated.set_weights(strided.get_weights())
    step = 2 ** sum(replaced)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    dense, sparse = np.asarray(dilated(images)), np.asarray(strided(images))
    assert dense.shape == (1, 2 * step, 2 * step, sparse.shape[3])
    assert abs(sparse).max() > 0.1
    np.testing.assert_allclose(dense[:, ::step, ::step], sparse, rtol=1e-3, atol=1e-4 * abs(sparse).max())


def test_where_the_bottlenecks_stride():
    on_3x3, on_1x1 = imagenet_resnet(50), imagenet_resnet(50, stride_on="1x1")
    assert on_3x3.get_layer("stage3_block1_conv1").strides == (1, 1)
    assert on_3x3.get_layer("stage3_block1_conv2").strides == (2, 2)
    assert on_1x1.get_layer("stage3_block1_conv1").strides == (2, 2)
    assert on_1x1.get_layer("stage3_block1_conv2").strides == (1, 1)


def test_the_stem_of_version_2_is_not_normalized_twice():
    names = [layer.name for layer in imagenet_resnet(18, version=2).layers]
    assert names[1:6] == ["stem_conv_pad", "stem_conv", "stem_bn", "stem_relu", "stem_pool_pad"]
    assert "stage2_block1_bn1" not in names
    assert {"stage2_block1_bn2", "stage3_block1_bn1", "head_bn", "head_relu"} <= set(names)


def test_zero_init_residual_starts_units_as_their_shortcuts(small):
    model = imagenet_resnet(50, zero_init_residual=True)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            zero = layer.name.endswith("_bn3")
            assert np.all(np.asarray(layer.gamma) == (0 if zero else 1)), layer.name


def test_another_normalization(small):
    def group_norm(name, gamma_initializer):
        return keras.layers.GroupNormalization(2, gamma_initializer=gamma_initializer, name=name)

    for version in (1, 2):
        model = imagenet_resnet(18, version=version, norm_layer=group_norm)
        kinds = {type(layer).__name__ for layer in model.layers}
        assert "GroupNormalization" in kinds
        assert "BatchNormalization" not in kinds


@pytest.mark.parametrize("shape", [(32, 32, 3), (None, None, 1), (33, 71, 4), (None, 64, 3)])
def test_input_shapes(small, shape):
    model = imagenet_resnet(18, classes=5, input_shape=shape)
    sides = [side or 39 for side in shape[:2]]
    assert model(np.zeros((1, *sides, shape[2]), np.float32)).shape == (1, 5)


def test_ends(small):
    assert imagenet_resnet(18, include_top=False).output_shape == (None, 7, 7, 16)
    assert imagenet_resnet(50, include_top=False, pooling="avg").output_shape == (None, 64)
    assert imagenet_resnet(50, include_top=False, pooling="max").output_shape == (None, 64)
    probabilities = imagenet_resnet(18, classes=3, classifier_activation="softmax", input_shape=(32, 32, 3))
    assert np.sum(probabilities(np.ones((1, 32, 32, 3)))) == pytest.approx(1)


def test_raw_pixels(small):
    plain = randomised(imagenet_resnet(18, input_shape=(32, 32, 3)))
    raw = imagenet_resnet(18, input_shape=(32, 32, 3), mean=(120, 110, 100), std=(60, 50, 40))
    raw.set_weights(plain.get_weights())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    normalized = ((pixels - np.array([120, 110, 100])) / np.array([60, 50, 40])).astype(np.float32)
    np.testing.assert_allclose(raw(pixels), plain(normalized), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 20}, r"depth=20 is not known; allowed: 18, 34, 50, 101, 152$"),
        ({"depth": 200}, r"depth=200 is not known; allowed: 18, 34, 50, 101, 152$"),
        ({"depth": 20, "version": 2}, r"allowed: 18, 34, 50, 101, 152, 200$"),
        ({"version": 3}, "version=3 is not known; allowed: 1, 2"),
        ({"depth": 18, "groups": 32}, "groups=32 and width_per_group=64 go with bottlenecks"),
        ({"depth": 34, "width_per_group": 128}, "go with bottlenecks"),
        ({"groups": 0}, "must be at least 1"),
        ({"classes": 0}, "must be at least 1"),
        ({"groups": 3, "width_per_group": 0}, "must be at least 1"),
        ({"replace_stride_with_dilation": (True, False)}, "needs a truth value"),
        ({"stride_on": "2x2"}, "stride_on='2x2' is not known; allowed: '3x3', '1x1'"),
        ({"pooling": "mean"}, "pooling='mean' is not known"),
        ({"input_shape": (31, 224, 3)}, "sides at least 32"),
        ({"mean": (1, 2, 3)}, "mean and std go together"),
    ],
)
def test_arguments_that_are_not_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        imagenet_resnet(**{"depth": 50, **arguments})


def test_options_that_a_network_does_not_have():
    with pytest.raises(ValueError, match="resnet18 has no option width; allowed: depth, version"):
        build_model("resnet18", width=2)


@pytest.mark.parametrize("dilated", [False, True])
def test_gradients_of_grouped_convolutions_under_the_view(small, dilated):
    options = {"replace_stride_with_dilation": (False, True, True)} if dilated else {}
    model = imagenet_resnet(50, groups=4, width_per_group=16, classes=5, input_shape=(40, 40, 3), **options)
    randomised(model)
    images = np.random.default_rng(1).uniform(-1, 1, (2, 40, 40, 3)).astype(np.float32)
    variables = [v.value for v in model.trainable_variables]
    gradients = []
    for network in (model, fused_view(model)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(network(images, training=True) - 1))
        gradients.append([np.asarray(g) for g in tape.gradient(loss, variables)])
    for stock, fused in zip(*gradients, strict=True):
        assert np.linalg.norm(fused - stock) <= 1e-4 * np.linalg.norm(stock) + 1e-6


def test_the_view_has_no_grouped_convolution_of_keras(small):
    view = fused_view(imagenet_resnet(50, groups=4, width_per_group=16))
    grouped = [layer for layer in view.layers if getattr(layer, "groups", 1) > 1]
    assert grouped == []
