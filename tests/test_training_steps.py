import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet_tf.fused import fused_view
from resnet_tf.models.resnet import cifar_resnet
from resnet_tf.recipes import get_recipe
from resnet_tf.training.step import make_optimizer, make_train_step

MEAN, STD = (125.0, 123.0, 114.0), (63.0, 62.0, 67.0)
RECIPE = dataclasses.replace(get_recipe("he2015"), weight_decay=0.01)


def some_network():
    keras.utils.set_random_seed(3)
    return cifar_resnet(8, version=1, shortcut="projection", input_shape=(8, 8, 3), mean=MEAN, std=STD)


def some_batch(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, count).astype(np.int32)


def ready(recipe=RECIPE, policy="float32", model=None):
    model = model or some_network()
    optimizer = make_optimizer(recipe, policy)
    optimizer.build(model.trainable_variables)
    step = make_train_step(model, fused_view(model, policy), optimizer, recipe, jit_compile=False)
    return model, optimizer, step


def by_path(variables):
    return {v.path: v.numpy() for v in variables}


def test_the_results_are_those_of_numpy():
    model, _, step = ready()
    images, labels = some_batch()
    kernels = {path: w for path, w in by_path(model.trainable_variables).items() if path.endswith("kernel")}
    before = model.get_weights()
    logits = model(images, training=True).numpy().astype(np.float64)
    model.set_weights(before)
    loss, l2, accuracy = step(images, labels, np.float32(0.1)).numpy()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert loss == pytest.approx(-np.log(probabilities[np.arange(6), labels]).mean(), rel=1e-5)
    assert l2 == pytest.approx(0.01 * sum((w.astype(np.float64) ** 2).sum() / 2 for w in kernels.values()), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert len(kernels) == 10


@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_are_those_of_keras_on_the_stock_model(nesterov):
    """Three steps with a change of the learning rate, against a loop written out on stock layers."""
    recipe = dataclasses.replace(RECIPE, nesterov=nesterov)
    model, _, step = ready(recipe)
    stock = some_network()
    stock.set_weights(model.get_weights())
    plain = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=nesterov)
    plain.build(stock.trainable_variables)
    kernels = [v for v in stock.trainable_variables if v.path.endswith("kernel")]
    for index, learning_rate in enumerate((0.1, 0.1, 0.01)):
        images, labels = some_batch(seed=index)
        step(images, labels, np.float32(learning_rate))
        plain.learning_rate = learning_rate
        with tf.GradientTape() as tape:
            logits = stock(images, training=True)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
            loss += 0.01 * sum(tf.reduce_sum(tf.square(k.value)) / 2 for k in kernels)
        plain.apply(tape.gradient(loss, [v.value for v in stock.trainable_variables]), stock.trainable_variables)
    ours, theirs = by_path(model.variables), by_path(stock.variables)
    assert ours.keys() == theirs.keys()
    for path, expected in theirs.items():
        np.testing.assert_allclose(ours[path], expected, rtol=2e-3, atol=2e-4, err_msg=path)


@pytest.mark.parametrize("decay", ["kernels", "all"])
def test_decay_adds_lambda_times_w_to_the_gradient_and_to_nothing_else(decay):
    after = {}
    for weight_decay in (0.0, 0.25):
        recipe = dataclasses.replace(RECIPE, momentum=0.0, weight_decay=weight_decay, decay=decay)
        model, _, step = ready(recipe)
        before = by_path(model.trainable_variables)
        step(*some_batch(), np.float32(0.5))
        after[weight_decay] = by_path(model.trainable_variables)
    for path, w in before.items():
        difference = after[0.25][path] - after[0.0][path]
        if decay == "all" or path.endswith("kernel"):
            np.testing.assert_allclose(difference, -0.5 * 0.25 * w, rtol=1e-4, atol=2e-6, err_msg=path)
        else:
            assert not difference.any(), path


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_losses_of_the_model_itself_count_as_in_fit(policy):
    """As Keras' own training does; with bfloat16 what is regularized stays in float32."""
    recipe = dataclasses.replace(RECIPE, momentum=0.0, weight_decay=0.0)
    inputs = keras.Input((8, 8, 3))
    conv = keras.layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.05), activity_regularizer="l2")
    x = conv(keras.layers.Rescaling(1 / 255)(inputs))
    x = keras.layers.BatchNormalization(gamma_regularizer="l1", activity_regularizer="l1")(x)
    x = keras.layers.Activation("tanh", activity_regularizer=keras.regularizers.L2(0.1))(x)
    x = keras.layers.ActivityRegularization(l1=0.02)(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))
    stock = keras.models.clone_model(model)
    stock.set_weights(model.get_weights())
    images, labels = some_batch()
    _, _, step = ready(recipe, policy, model)
    loss, penalty, _ = step(images, labels, np.float32(0.1)).numpy()
    stock.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    total = stock.train_on_batch(images, labels)
    assert penalty > 1
    assert loss + penalty == pytest.approx(total, rel=1e-5)
    for ours, theirs in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_step_traces_anew():
    _, optimizer, step = ready()
    images, labels = some_batch()
    for count, learning_rate in ((6, np.float32(0.1)), (6, 0.01), (3, np.float32(0.5)), (1, tf.constant(1.0))):
        step(images[:count], labels[:count], learning_rate)
    step(tf.constant(images), tf.constant(labels), np.float32(0.1))
    assert step.experimental_get_tracing_count() == 1
    assert int(optimizer.iterations) == 5


def test_learning_rate_zero_moves_statistics_alone():
    model, _, step = ready()
    before = by_path(model.variables)
    step(*some_batch(), np.float32(0.0))
    moved = {path for path, value in by_path(model.variables).items() if not np.array_equal(value, before[path])}
    assert moved == {path for path in before if "/moving_" in path}


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 0.4), ("mixed_float16", 0.1)])
def test_a_step_in_low_precision_is_one_step(policy, tolerance):
    model, optimizer, step = ready(policy=policy)
    exact, _, exact_step = ready()
    before = by_path(model.trainable_variables)
    results = step(*some_batch(), np.float32(0.1)).numpy()
    after = by_path(model.trainable_variables)
    np.testing.assert_allclose(results, exact_step(*some_batch(), np.float32(0.1)), rtol=0.02)
    assert int(optimizer.iterations) == 1
    assert all(v.dtype == "float32" for v in model.variables)
    for path, expected in by_path(exact.trainable_variables).items():
        update, exact_update = after[path] - before[path], expected - before[path]
        assert np.linalg.norm(update - exact_update) < tolerance * np.linalg.norm(exact_update) + 1e-4, path


def test_an_overflow_in_float16_skips_the_update_and_halves_the_scale():
    model, optimizer, step = ready(policy="mixed_float16")
    step(*some_batch(), np.float32(0.1))
    before, slots = by_path(model.trainable_variables), by_path(optimizer.variables)
    optimizer.dynamic_scale.assign(2.0**100)
    loss = step(*some_batch(seed=1), np.float32(0.1)).numpy()[0]
    assert np.isfinite(loss)
    assert float(optimizer.dynamic_scale) == 2.0**99
    assert int(optimizer.iterations) == 1
    for path, value in by_path(model.trainable_variables).items():
        assert np.array_equal(value, before[path]), path
    for path, value in by_path(optimizer.variables).items():
        if path.endswith("momentum"):
            assert np.array_equal(value, slots[path]), path
    assert all(np.isfinite(v).all() for v in model.get_weights())


def test_the_step_compiles_under_xla():
    model, optimizer, step = ready()
    compiled = make_train_step(model, fused_view(model), optimizer, RECIPE, jit_compile=True)
    weights = model.get_weights()
    plain = step(*some_batch(), np.float32(0.1)).numpy()
    model.set_weights(weights)
    np.testing.assert_allclose(compiled(*some_batch(), np.float32(0.1)), plain, rtol=1e-4)
