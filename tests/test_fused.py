import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from resnet_tf.config import PRECISIONS
from resnet_tf.errors import UserError
from resnet_tf.fused import fused_view
from resnet_tf.models.resnet import cifar_resnet

STATISTICS = ("moving_mean", "moving_variance")


def some_network(version=2, **options):
    """Ends in 2x2 pixels: with 3 images a statistic is over 12 numbers, where Bessel's correction is large."""
    keras.utils.set_random_seed(version)
    model = cifar_resnet(8, version=version, shortcut="projection", input_shape=(8, 8, 3), **options)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if len(variable.shape) == 1:  # normalizations and biases away from their round first values
            variable.assign(variable + rng.uniform(0, 0.3, variable.shape))
    return model


def some_images(model, count=3):
    return np.random.default_rng(1).uniform(-1, 1, (count, *model.input_shape[1:])).astype(np.float32)


def one_pass(network, model, images):
    """Training output, gradients of `model`'s trainable variables, and the statistics after; all is as before then."""
    before = model.get_weights()
    with tf.GradientTape() as tape:
        outputs = tf.cast(network(images, training=True), tf.float32)
        loss = tf.reduce_mean(tf.square(outputs - 1))
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    statistics = [v.numpy() for v in model.non_trainable_variables if v.name in STATISTICS]
    model.set_weights(before)
    return outputs.numpy(), [g.numpy() for g in gradients], statistics


def assert_same_pass(view, model, images, tolerance=1e-5):
    ours, stock = one_pass(view, model, images), one_pass(model, model, images)
    np.testing.assert_allclose(ours[0], stock[0], atol=tolerance * max(1, abs(stock[0]).max()))
    for a, b in zip(ours[1], stock[1], strict=True):
        assert np.linalg.norm(a - b) <= 10 * tolerance * max(np.linalg.norm(b), 1e-2)
    assert len(stock[2]) > 0
    for a, b in zip(ours[2], stock[2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_the_view_computes_what_the_model_does(version):
    model = some_network(version)
    view = fused_view(model)
    images = some_images(model)
    np.testing.assert_allclose(view(images), model(images), atol=5e-6)
    assert_same_pass(view, model, images)


@pytest.mark.parametrize("policy", PRECISIONS)
def test_the_variables_are_the_models_own_objects(policy):
    model = some_network()
    view = fused_view(model, policy)
    assert {id(v) for v in view.variables} == {id(v) for v in model.variables}
    assert {id(v) for v in view.trainable_variables} == {id(v) for v in model.trainable_variables}
    assert len(view.variables) == len(model.variables)


def test_a_second_view_and_the_model_see_an_update_through_the_first():
    model = some_network()
    images = some_images(model)
    first, second = fused_view(model), fused_view(model, "mixed_bfloat16")
    before = model(images).numpy()
    first(images, training=True)
    after = model(images).numpy()
    assert abs(after - before).max() > 1e-3  # the statistics moved
    np.testing.assert_allclose(second(images), after, atol=0.1 * abs(after).max())


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)])
def test_low_precision_stays_near_and_keeps_float32_where_it_matters(policy, tolerance):
    model = some_network(mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))
    view = fused_view(model, policy)
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    stock, logits = model(images).numpy(), view(images)
    assert logits.dtype == tf.float32
    assert 0 < np.abs(logits - stock).max() < tolerance * np.abs(stock).max()
    gradients = one_pass(view, model, images)[1]
    assert all(np.isfinite(g).all() and g.dtype == np.float32 for g in gradients)
    assert {v.dtype for v in view.variables} == {"float32"}
    kinds = {layer.name: layer.compute_dtype for layer in view.layers}
    low = policy.removeprefix("mixed_")
    assert (kinds["normalization"], kinds["head_logits"], kinds["head_pool"]) == ("float32",) * 3
    assert (kinds["stem_conv"], kinds["head_bn"], kinds["stage2_block1_add"], kinds["head_relu"]) == (low,) * 4


@pytest.mark.parametrize("last", ["conv", "norm", "relu", "add"])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_are_float32_whatever_layer_they_come_from(last, policy):
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(3, 3, padding="same")(inputs)
    x = {
        "conv": lambda: layers.Conv2D(2, 1)(x),
        "norm": lambda: layers.BatchNormalization()(x),
        "relu": lambda: layers.ReLU()(x),
        "add": lambda: layers.Add()([x, inputs]),
    }[last]()
    view = fused_view(keras.Model(inputs, x), policy)
    assert view(np.ones((1, 6, 6, 3), np.float32), training=True).dtype == tf.float32


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_a_view_leaves_the_model_and_its_file_as_they_were(tmp_path, suffix):
    model = some_network()
    images = some_images(model)
    before, logits = model.to_json(), model(images).numpy()
    view = fused_view(model, "mixed_bfloat16")
    view(images)
    assert model.to_json() == before
    assert all(type(layer).__module__.startswith("keras.") for layer in model.layers)
    assert np.array_equal(model(images), logits)
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    loaded = keras.models.load_model(path, compile=False)
    assert loaded.to_json() == before
    assert np.array_equal(loaded(images), logits)


def test_keras_callbacks_write_the_stock_model(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    model = some_network()
    view = fused_view(model, "mixed_bfloat16")
    view.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="loss", save_best_only=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.EarlyStopping(monitor="loss", patience=0, restore_best_weights=True),
        keras.callbacks.TensorBoard(tmp_path / "logs", histogram_freq=1),
    ]
    images = some_images(model, 8)
    view.fit(images, np.arange(8), epochs=2, batch_size=4, verbose=0, callbacks=callbacks)
    assert list((tmp_path / "logs" / "train").glob("events.*"))
    loaded = keras.models.load_model(tmp_path / "best.keras")
    assert loaded.to_json() == model.to_json() == view.to_json()
    assert np.array_equal(loaded(images), model(images))  # EarlyStopping put the best weights back
    first = some_network()
    first.load_weights(tmp_path / "1.weights.h5")
    assert not np.array_equal(first(images), some_network()(images))
    again = cifar_resnet(
        8, version=2, shortcut="projection", input_shape=(8, 8, 3), weights=str(tmp_path / "best.keras")
    )
    assert np.array_equal(again(images), model(images))


@pytest.mark.parametrize("nested", [False, True])
def test_a_view_saves_loads_and_clones_as_its_model(nested, tmp_path):
    model = some_network()
    if nested:
        inputs = keras.Input((8, 8, 3))
        model = keras.Model(
            inputs, layers.Dense(3, name="mine")(some_network(include_top=False, pooling="avg")(inputs))
        )
    images = some_images(model)
    view = fused_view(model, "mixed_bfloat16")
    view.save(tmp_path / "view.keras")
    assert np.array_equal(keras.models.load_model(tmp_path / "view.keras")(images), model(images))
    clone = keras.models.clone_model(view)
    assert clone.to_json() == keras.models.clone_model(model).to_json()
    assert all(type(layer).__module__.startswith("keras.") for layer in clone.layers)
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}
    clone.set_weights(view.get_weights())
    assert np.array_equal(clone(images), model(images))
    view.save_weights(tmp_path / "view.weights.h5")
    before = model(images).numpy()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    view.load_weights(tmp_path / "view.weights.h5")
    assert np.array_equal(model(images), before)
    with pytest.raises(UserError, match=r"view\.save"):
        keras.saving.save_model(view, tmp_path / "function.keras")


def test_a_view_of_a_sequential_model_saves_that_model(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()])
    fused_view(model).save(tmp_path / "a.keras")
    loaded = keras.models.load_model(tmp_path / "a.keras")
    assert isinstance(loaded, keras.Sequential)
    assert np.array_equal(loaded(some_images(model)), model(some_images(model)))


def test_frozen_normalization_uses_and_keeps_its_statistics():
    model = some_network()
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization) and "stage" in layer.name:
            layer.trainable = False
    before = {v.path: v.numpy() for v in model.variables if v.name in STATISTICS}
    images = some_images(model)
    view = fused_view(model)
    assert {id(v) for v in view.trainable_variables} == {id(v) for v in model.trainable_variables}
    assert_same_pass(view, model, images)
    view(images, training=True)
    after = {v.path: v.numpy() for v in model.variables if v.name in STATISTICS}
    moved = {path.split("/")[0] for path in after if not np.array_equal(after[path], before[path])}
    assert moved == {"head_bn"}


CONVOLUTIONS = pytest.mark.parametrize(
    ("strides", "padding", "dilation"), [(1, "same", 1), (2, "valid", 1), (1, "same", 2)]
)


def conv_model(**options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 9, 8))
    x = layers.Conv2D(12, 3, **options, activation="relu", bias_initializer="normal", name="conv")(inputs)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.BatchNormalization()(x))))


@CONVOLUTIONS
def test_convolutions_run_as_they_stand_in_float32_and_agree_in_bfloat16(strides, padding, dilation):
    model = conv_model(strides=strides, padding=padding, dilation_rate=dilation)
    view, images = fused_view(model), some_images(model)
    assert view.get_layer("conv") is model.get_layer("conv")
    assert_same_pass(view, model, images)
    stock = model(images).numpy()
    assert np.abs(fused_view(model, "mixed_bfloat16")(images) - stock).max() < 0.03 * np.abs(stock).max()


@CONVOLUTIONS
@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolutions_agree_with_a_convolution_per_group(strides, padding, dilation, groups):
    """The stock layer, which runs in XLA here, can take minutes for its gradient on a busy machine."""
    model = conv_model(strides=strides, padding=padding, dilation_rate=dilation, groups=groups)
    layer, images = model.get_layer("conv"), tf.constant(some_images(model))

    def by_hand():
        of_groups = zip(tf.split(images, groups, -1), tf.split(layer.kernel.value, groups, -1), strict=True)
        joined = [tf.nn.conv2d(x, k, strides, padding.upper(), dilations=dilation) for x, k in of_groups]
        return tf.nn.relu(tf.concat(joined, -1) + layer.bias.value)

    def pass_of(function):
        weights = [images, layer.kernel.value, layer.bias.value]
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = function()
            loss = tf.reduce_sum(tf.sin(outputs * 3))
        return [outputs, *tape.gradient(loss, weights)]

    conv = fused_view(model).get_layer("conv")
    for ours, expected in zip(pass_of(lambda: conv(images)), pass_of(by_hand), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    low = tf.cast(fused_view(model, "mixed_bfloat16").get_layer("conv")(images), tf.float32)
    np.testing.assert_allclose(low, by_hand(), atol=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"axis": 1},
        {"axis": 2},
        {"synchronized": True},
        {"renorm": True},
        {"dtype": "float64"},
        {"dtype": "mixed_float16"},
    ],
)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_what_cannot_be_fused_runs_as_it_stands(options, policy):
    inputs = keras.Input((6, 6, 6))
    x = layers.BatchNormalization(**options, name="odd")(layers.Conv2D(6, 1)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    view, images = fused_view(model, policy), some_images(model)
    assert view.get_layer("odd") is model.get_layer("odd")
    if policy == "float32":
        assert np.array_equal(view(images), model(images))
        before = model.get_weights()  # renormalization reads the statistics that it moves
        stock = model(images, training=True)
        model.set_weights(before)
        assert np.array_equal(view(images, training=True), stock)
    else:
        assert np.isfinite(view(images, training=True)).all()


def test_normalization_of_vectors_and_subclasses_run_as_they_stand():
    class Mine(layers.BatchNormalization):
        pass

    inputs = keras.Input((4, 4, 3))
    x = Mine(name="mine")(inputs)
    x = layers.BatchNormalization(name="vectors")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    view = fused_view(model)
    assert all(view.get_layer(name) is model.get_layer(name) for name in ("mine", "vectors"))


def test_layers_that_the_model_pins_to_a_dtype_keep_it():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, dtype="mixed_float16", name="half")(inputs)
    x = layers.Activation("relu", dtype="float64", name="double")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    view = fused_view(model, "mixed_bfloat16")
    assert view.get_layer("half") is model.get_layer("half")
    assert view.get_layer("double") is model.get_layer("double")
    assert view(some_images(model)).dtype == tf.float32


@pytest.mark.parametrize("policy", PRECISIONS)
def test_a_model_of_keras_applications(policy):
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5)
    view = fused_view(model, policy)
    images = some_images(model, 16)
    assert sum(type(layer).__name__ == "_FusedBatchNormalization" for layer in view.layers) == 52
    tolerance = 1e-5 if policy == "float32" else 0.05
    np.testing.assert_allclose(view(images), model(images), atol=tolerance)
    assert {id(v) for v in view.variables} == {id(v) for v in model.variables}
    if policy == "float32":
        before = model.get_weights()
        stock = model(images, training=True).numpy()
        moved = model.get_weights()
        model.set_weights(before)
        np.testing.assert_allclose(view(images, training=True), stock, atol=1e-3)
        for a, b in zip(model.get_weights(), moved, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("policy", PRECISIONS)
def test_models_inside_a_model_are_fused_too(policy):
    inner = some_network(include_top=False, pooling="avg")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(3, name="mine")(inner(inputs)))
    view, images = fused_view(model, policy), some_images(model)
    nested = next(layer for layer in view.layers if isinstance(layer, keras.Model))
    assert nested.name == inner.name
    assert type(nested.get_layer("head_bn")).__name__ == "_FusedBatchNormalization"
    assert {id(v) for v in view.variables} == {id(v) for v in model.variables}
    if policy == "float32":
        assert_same_pass(view, model, images)
    else:
        assert view(images, training=True).dtype == tf.float32


@pytest.mark.parametrize("nested", [False, True])
def test_sequential_models(nested):
    keras.utils.set_random_seed(0)
    chain = [layers.Conv2D(4, 3), layers.BatchNormalization(name="norm"), layers.ReLU(), layers.Flatten()]
    if nested:
        inputs = keras.Input((6, 6, 3))
        model = keras.Model(inputs, layers.Dense(2)(keras.Sequential(chain)(inputs)))
    else:
        model = keras.Sequential([keras.Input((6, 6, 3)), *chain, layers.Dense(2)])
    view = fused_view(model)
    owner = next(layer for layer in view.layers if isinstance(layer, keras.Model)) if nested else view
    assert type(owner.get_layer("norm")).__name__ == "_FusedBatchNormalization"
    assert {id(v) for v in view.variables} == {id(v) for v in model.variables}
    assert_same_pass(view, model, some_images(model))


def test_several_outputs_of_an_input_in_a_list():
    x = keras.Input((6, 6, 3))
    y = layers.Dense(2)(layers.Flatten()(layers.BatchNormalization()(x)))
    model = keras.Model([x], [y, 2 * y])
    images = [np.random.default_rng(1).uniform(-1, 1, (3, 6, 6, 3)).astype(np.float32)]
    found, expected = fused_view(model)(images), model(images)
    assert len(found) == 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_used_twice():
    inputs = keras.Input((6, 6, 3))
    conv, norm = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization(momentum=0.5)
    x = layers.ReLU()(norm(conv(inputs)))
    x = layers.ReLU()(norm(conv(x)))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    assert_same_pass(fused_view(model), model, some_images(model))


def test_the_view_compiles_and_trains_under_xla():
    model = some_network()
    images = some_images(model)
    compiled = tf.function(fused_view(model), jit_compile=True)
    np.testing.assert_allclose(compiled(images, training=False), model(images), atol=1e-4)


def test_wrong_arguments():
    model = some_network()
    with pytest.raises(ValueError, match=r"policy='bfloat16'.*float32, mixed_bfloat16, mixed_float16"):
        fused_view(model, "bfloat16")
    for other in (layers.Dense(2), keras.Sequential([layers.Dense(2)])):
        with pytest.raises(ValueError, match="functional or built sequential"):
            fused_view(other)


@pytest.mark.parametrize("version", [1, 2])
def test_a_synchronized_view_of_one_device_computes_what_the_model_does(version):
    model = some_network(version)
    view = fused_view(model, sync_bn=True)
    assert_same_pass(view, model, some_images(model))
    assert not any(getattr(layer, "synchronized", False) for layer in model.layers)
