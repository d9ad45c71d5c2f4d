import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet_tf.models import resnet
from resnet_tf.models.resnet import blocks_per_stage, cifar_resnet, imagenet_resnet

NAME = re.compile(
    r"images|normalization|stem_(conv|bn|relu)|head_(bn|relu|pool|logits|predictions)"
    r"|stage[1-3]_block[1-9]\d*_(conv[1-3](_pad)?|bn[1-3]|relu[1-3]|add|shortcut_(conv|bn|pool|pad))"
)


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def counts(*arguments, **options):
    model = cifar_resnet(*arguments, **options)
    return trainable(model), model.count_params()


# The numbers are those of other implementations and of the papers' closed forms, not of this code.
@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (20, (269_722, 271_098)),
        (32, (464_154, 466_426)),
        (44, (658_586, 661_754)),
        (56, (853_018, 857_082)),
        (110, (1_727_962, 1_736_058)),
    ],
)
def test_counts_with_option_a(depth, expected):
    assert counts(depth, version=1) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"depth": 20, "version": 1, "shortcut": "projection"}, 272_474),
        ({"depth": 32, "version": 1, "shortcut": "projection"}, 466_906),
        ({"depth": 56, "version": 1, "shortcut": "projection"}, 855_770),
        ({"depth": 20, "version": 1, "shortcut": "projection_all"}, 283_962),
        ({"depth": 32, "version": 1, "shortcut": "projection_all"}, 489_594),
        ({"depth": 20, "version": 1, "shortcut": "none"}, 269_722),
        ({"depth": 20, "version": 1, "use_bias": True}, 270_410),
        ({"depth": 32, "version": 1, "use_bias": True}, 465_290),
        ({"depth": 20, "version": 2}, 269_722),  # as version 1: the batch normalizations are as many
        ({"depth": 56, "version": 2}, 853_018),
        ({"depth": 20, "version": 2, "shortcut": "projection"}, 272_282),
        ({"depth": 56, "version": 2, "shortcut": "projection"}, 855_578),
        ({"depth": 29, "version": 2, "block": "bottleneck"}, 312_218),
        ({"depth": 29, "version": 1, "block": "bottleneck"}, 313_114),
        ({"depth": 56, "version": 1, "block": "bottleneck"}, 591_322),
        ({"depth": 164, "version": 1, "block": "bottleneck"}, 1_704_154),
    ],
)
def test_trainable_counts(options, expected):
    assert counts(**options)[0] == expected


@pytest.mark.parametrize(("depth", "expected"), [(29, 316_282), (56, 598_522), (164, 1_727_482)])
def test_total_counts_of_pre_activation_bottlenecks(depth, expected):
    assert counts(depth, version=2, block="bottleneck")[1] == expected


@pytest.mark.parametrize(
    ("block", "version", "depths", "deep", "expected"),
    [
        ("basic", 1, (20, 32), 1202, 19_421_274),
        ("bottleneck", 2, (29, 56), 1001, 10_327_706),
        ("bottleneck", 1, (29, 56), 1001, 10_328_602),
    ],
)
def test_counts_of_the_deepest_networks_by_their_closed_form(block, version, depths, deep, expected):
    """All units of a stage but its first are alike, so that the count is linear in the number of units."""
    low, high = (counts(depth, block=block, version=version)[0] for depth in depths)
    first, second, last = (blocks_per_stage(depth, block) for depth in (*depths, deep))
    assert last == {1202: 200, 1001: 111}[deep]
    per_unit, rest = divmod(high - low, second - first)
    assert rest == 0
    assert low + per_unit * (last - first) == expected


def test_a_wide_network_has_the_published_count():
    # The wide network with k = 4 that counts its depth as 6n+4, 16 layers, where we count 6n+2.
    assert trainable(cifar_resnet(14, version=2, shortcut="projection", width=4)) == 2_748_890


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("block", "depth", "expansion"), [("basic", 14, 1), ("bottleneck", 20, 4)])
@pytest.mark.parametrize("size", [32, 17])
def test_stage_shapes(version, block, depth, expansion, size):
    model = cifar_resnet(depth, version=version, block=block, input_shape=(size, size, 3), classes=7)
    last = {("basic", 1): "relu2", ("bottleneck", 1): "relu3"}.get((block, version), "add")
    shapes = [model.get_layer(f"stage{stage}_block2_{last}").output.shape[1:] for stage in (1, 2, 3)]
    sides = [size, -(-size // 2), -(-size // 4)]
    assert shapes == [(s, s, c * expansion) for s, c in zip(sides, (16, 32, 64), strict=True)]
    assert model.output_shape == (None, 7)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shortcut", ["identity", "projection", "projection_all", "none"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_layer_names_follow_the_pattern(version, shortcut, block):
    depth = 14 if block == "basic" else 20
    options = {"version": version, "shortcut": shortcut, "block": block, "mean": (1, 2, 3), "std": (4, 5, 6)}
    names = [layer.name for layer in cifar_resnet(depth, **options).layers]
    assert [name for name in names if not NAME.fullmatch(name)] == []
    assert len(set(names)) == len(names)
    assert {"stage1_block1_conv1", "stage3_block2_conv2", "stem_conv", "head_pool", "head_logits"} <= set(names)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("shortcut", ["identity", "projection", "projection_all"])
@pytest.mark.parametrize(("block", "depth"), [("basic", 14), ("bottleneck", 20)])
def test_every_unit_of_a_residual_network_has_its_shortcut(version, shortcut, block, depth, sources):
    of = sources(cifar_resnet(depth, version=version, shortcut=shortcut, block=block))
    adds = {name: inputs for name, inputs in of.items() if name.endswith("_add")}
    assert sorted(adds) == [f"stage{stage}_block{unit}_add" for stage in (1, 2, 3) for unit in (1, 2)]
    assert all(len(inputs) == 2 for inputs in adds.values())


@pytest.mark.parametrize("version", [1, 2])
def test_a_plain_network_has_none(version, sources):
    assert not any(
        "add" in name or "shortcut" in name for name in sources(cifar_resnet(14, version=version, shortcut="none"))
    )


def test_ends_of_the_original_network(sources):
    of = sources(cifar_resnet(8, version=1))
    assert of["stem_conv"] == ["images"]
    assert of["stem_bn"] == ["stem_conv"]
    assert of["stem_relu"] == ["stem_bn"]
    assert of["stage1_block1_conv1"] == ["stem_relu"]
    assert of["head_pool"] == ["stage3_block1_relu2"]
    assert of["head_logits"] == ["head_pool"]


def test_ends_of_the_pre_activation_network(sources):
    of = sources(cifar_resnet(14, version=2, shortcut="projection"))
    assert of["stage1_block1_bn1"] == ["stem_conv"]  # the first unit's activation stands before the split
    assert of["stage1_block1_add"] == ["stage1_block1_conv2", "stage1_block1_relu1"]
    assert of["stage1_block2_add"] == ["stage1_block2_conv2", "stage1_block1_add"]
    assert of["stage2_block1_shortcut_conv"] == ["stage2_block1_relu1"]
    assert of["head_bn"] == ["stage3_block2_add"]
    assert of["head_relu"] == ["head_bn"]
    assert of["head_pool"] == ["head_relu"]
    assert not any("stem_bn" in name or "shortcut_bn" in name for name in of)


def test_identity_is_the_default_of_basic_and_projection_of_bottleneck_networks():
    def shortcuts(model):
        return {layer.name.split("_shortcut_")[1] for layer in model.layers if "_shortcut_" in layer.name}

    assert shortcuts(cifar_resnet(8)) == {"pool", "pad"}
    assert shortcuts(cifar_resnet(11, block="bottleneck")) == {"conv"}
    assert shortcuts(cifar_resnet(8, shortcut="none")) == set()


def test_bottlenecks_stride_their_first_convolution():
    model = cifar_resnet(11, block="bottleneck")
    assert [model.get_layer(f"stage2_block1_conv{k}").strides[0] for k in (1, 2, 3)] == [2, 1, 1]
    assert {v.shape[-1] for v in model.trainable_variables if "stage1_block1_conv" in v.path} == {16, 64}


def test_ends_of_a_network_without_top():
    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    feature_map = cifar_resnet(8, input_shape=(16, 16, 3), include_top=False)
    assert feature_map.output_shape == (None, 4, 4, 64)
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        pooled = cifar_resnet(8, input_shape=(16, 16, 3), include_top=False, pooling=pooling)
        pooled.set_weights(feature_map.get_weights())
        np.testing.assert_allclose(pooled(images), reduce(feature_map(images), axis=(1, 2)), rtol=1e-5, atol=1e-6)


def test_logits_or_probabilities():
    images = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    logits = cifar_resnet(8, input_shape=(16, 16, 3))
    softmax = cifar_resnet(8, input_shape=(16, 16, 3), classifier_activation="softmax")
    softmax.set_weights(logits.get_weights())
    assert (logits.layers[-1].name, softmax.layers[-1].name) == ("head_logits", "head_predictions")
    np.testing.assert_allclose(softmax(images), tf.nn.softmax(logits(images)), atol=1e-6)
    assert abs(np.asarray(logits(images)).sum() - 3) > 1e-3


def test_the_classifier_starts_like_torch():
    kernel = np.asarray(cifar_resnet(8, classes=1000).layers[-1].kernel)
    assert abs(kernel).max() == pytest.approx(1 / 8, rel=0.01)  # uniform within 1 / sqrt(64)
    assert kernel.std() == pytest.approx(1 / 8 / np.sqrt(3), rel=0.03)


def normalized(mean, std):
    model = cifar_resnet(8, input_shape=(8, 8, 3), mean=mean, std=std)
    layer = model.layers[1]
    assert layer.name == "normalization"
    return keras.Model(model.input, layer.output), layer


def test_raw_pixels_are_normalized_in_float32():
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    expected = (images - np.float64(mean)) / np.float64(std)
    model, layer = normalized(mean, std)
    assert layer.dtype_policy.name == "float32"
    for pixels in (images, images.astype(np.float32)):
        result = model(pixels)
        assert result.dtype == tf.float32
        np.testing.assert_allclose(result, expected, atol=2e-6)


def test_normalization_and_network_under_channels_first_settings(channels_first):
    mean, std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    model, _ = normalized(mean, std)
    np.testing.assert_allclose(model(images), (images - np.float64(mean)) / np.float64(std), atol=2e-6)
    assert trainable(cifar_resnet(20, version=1, mean=mean, std=std)) == 269_722
    for shortcut in ("identity", "projection"):
        network = cifar_resnet(8, shortcut=shortcut, input_shape=(9, 8, 3), mean=mean, std=std)
        assert network(np.zeros((2, 9, 8, 3), np.uint8)).shape == (2, 10)
        assert network.get_layer("stage3_block1_add").output.shape == (None, 3, 2, 64)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("shortcut", "block", "depth"), [("identity", "basic", 8), ("projection", "bottleneck", 11)])
def test_the_gradient_reaches_every_trainable_variable(version, shortcut, block, depth):
    keras.utils.set_random_seed(0)
    model = cifar_resnet(depth, version=version, shortcut=shortcut, block=block, input_shape=(16, 16, 3))
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((8, 16, 16, 3), np.float32), rng.integers(0, 10, 8)
    with tf.GradientTape() as tape:
        logits = model(images, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    dead = [v.path for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None or not np.any(g)]
    assert dead == []


LOAD = """
import sys
sys.modules["resnet_tf"] = None
import keras, numpy as np
folder = sys.argv[1]
images = np.load(f"{folder}/images.npy")
for name in sys.argv[2:]:
    model = keras.models.load_model(f"{folder}/{name}", compile=False)
    assert all(v.dtype == "float32" for v in model.variables if "seed" not in v.path)
    assert np.array_equal(np.asarray(model(images)), np.load(f"{folder}/{name}.npy")), name
try:
    import resnet_tf
except ImportError:
    print("equal without resnet_tf")
"""


def test_saved_files_open_in_plain_keras_with_equal_logits(tmp_path, monkeypatch, python):
    monkeypatch.setattr(resnet, "IMAGENET_FILTERS", (4, 8, 12, 16))
    monkeypatch.setattr(resnet, "IMAGENET_DEPTHS", {50: ("bottleneck", (1, 2, 2, 2))})
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    common = {"input_shape": (32, 32, 3), "mean": (125.3, 123.0, 113.9), "std": (63.0, 62.1, 66.7)}
    networks = {
        "identity": cifar_resnet(8, version=2, **common),
        "projection": cifar_resnet(8, version=1, shortcut="projection", **common),
        "bottleneck": cifar_resnet(11, version=2, block="bottleneck", **common),
        "imagenet": imagenet_resnet(50, version=2, groups=4, width_per_group=16, **common),
    }
    files = []
    for name, model in networks.items():
        for variable in model.variables:  # statistics and biases away from their round first values
            variable.assign(variable + rng.uniform(0, 0.3, variable.shape))
        for suffix in ("keras", "h5"):
            file = f"{name}.{suffix}"
            model.save(tmp_path / file)
            np.save(tmp_path / f"{file}.npy", np.asarray(model(images)))
            files.append(file)
    result = python(LOAD, tmp_path, *files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "equal without resnet_tf"


def test_the_recursion_limit_is_as_before():
    import sys

    before = sys.getrecursionlimit()
    cifar_resnet(62)
    with pytest.raises(ValueError, match="input_shape"):
        cifar_resnet(62, input_shape=(4, 4, 3))
    assert sys.getrecursionlimit() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 21}, r"depth=21.*basic.*6n\+2.*8, 14, 20, 32"),
        ({"depth": 2}, r"depth=2 .*6n\+2"),
        ({"depth": 20.0}, r"depth=20\.0"),
        ({"depth": 21, "block": "bottleneck"}, r"9n\+2.*11, 20, 29"),
        ({"version": 3}, r"version=3.*1, 2"),
        ({"block": "wide"}, r"block='wide'.*'basic', 'bottleneck'"),
        ({"shortcut": "B"}, r"shortcut='B'.*'identity', 'projection', 'projection_all', 'none'"),
        ({"pooling": "mean"}, r"pooling='mean'.*None, 'avg', 'max'"),
        ({"input_shape": (32, 32)}, r"input_shape=\(32, 32\).*\(height, width, channels\)"),
        ({"input_shape": (7, 32, 3)}, r"sides at least 8"),
        ({"input_shape": (32, 32, None)}, r"sides at least 8 or None"),
        ({"mean": (1, 2, 3)}, r"mean and std go together"),
        ({"std": (1, 2, 3)}, r"mean and std go together"),
        ({"mean": (1, 2), "std": (1, 2)}, r"3 values each"),
        ({"mean": (1, 2, 3), "std": (1, 0, 3)}, r"std above 0"),
        ({"width": 0}, r"width must be at least 1"),
        ({"classes": 0}, r"classes must be at least 1"),
        ({"classifier_activation": "logit"}, r"classifier_activation='logit' is not known; allowed: None \(logits\)"),
    ],
)
def test_errors_name_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        cifar_resnet(**{"depth": 20, **options})
