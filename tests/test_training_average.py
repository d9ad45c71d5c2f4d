"""The moving average of the weights, and batches in parts, step by step and through whole runs."""

import dataclasses
import json
import signal

import keras
import numpy as np
import pytest

from resnet_tf.cli import evaluate
from resnet_tf.data.dataset import stratified_split
from resnet_tf.errors import UserError
from resnet_tf.fused import fused_view
from resnet_tf.models.layers import freeze, unfreeze
from resnet_tf.models.resnet import cifar_resnet
from resnet_tf.recipes import get_recipe, override
from resnet_tf.training import checkpoint
from resnet_tf.training.step import make_ema, make_multi_step, make_optimizer, make_train_step
from tests.conftest import stopping_after

RECIPE = override(get_recipe("he2015"), weight_decay=0.01, batch_size=8)


def some_network():
    keras.utils.set_random_seed(3)
    return cifar_resnet(8, version=1, input_shape=(8, 8, 3), mean=(125, 123, 114), std=(63, 62, 67))


def some_batch(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 8).astype(np.int32)


def values(model):
    return {v.path: v.numpy() for v in model.variables}


def ready(model, policy="float32", recipe=RECIPE, jit_compile=False, **options):
    optimizer = make_optimizer(recipe, policy)
    optimizer.build(model.trainable_variables)
    view = fused_view(model, policy)
    return make_train_step(model, view, optimizer, recipe, jit_compile, **options), optimizer


def test_three_updates_of_the_average_are_those_of_numpy():
    model = some_network()
    average = make_ema(model)
    step, _ = ready(model, recipe=dataclasses.replace(RECIPE, ema=0.24), ema_model=average)
    expected = {path: value.astype(np.float64) for path, value in values(model).items()}
    # 2/11 and 3/12 while it warms up, of which the latter is above 0.24.
    for index, decay in enumerate((2 / 11, 0.24, 0.24)):
        step(*some_batch(index), np.float32(0.1))
        for path, value in values(model).items():
            expected[path] = decay * expected[path] + (1 - decay) * value
    assert {path for path in expected if "moving" in path}
    for path, value in values(average).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
        assert np.abs(value - values(model)[path]).max() > 1e-5, path


def test_the_average_of_what_is_frozen_stands_still_to_the_bit():
    model = some_network()
    average = make_ema(model)
    freeze(model, "stage2")
    step, _ = ready(model, recipe=dataclasses.replace(RECIPE, ema=0.5), ema_model=average)
    before = values(average)
    step(*some_batch(), np.float32(0.1))
    moved = {
        path.partition("_")[0] for path, value in values(average).items() if not np.array_equal(value, before[path])
    }
    assert moved == {"stage3", "head"}
    assert all(layer.trainable for layer in average.layers)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_four_parts_make_the_step_of_the_whole_batch(jit_compile):
    """Where batch normalization works as in inference; the L2 term counts once."""
    after, results = [], []
    for accumulate in (1, 4):
        model = some_network()
        unfreeze(freeze(model, "all"), batch_norm=False)
        before = values(model)
        step, optimizer = ready(model, accumulate=accumulate, jit_compile=jit_compile)
        results.append(step(*some_batch(), np.float32(0.01)).numpy())
        after.append(values(model))
        assert int(optimizer.iterations) == 1
    np.testing.assert_allclose(*results, rtol=1e-6)
    for path, value in after[0].items():
        np.testing.assert_allclose(after[1][path], value, rtol=0, atol=1e-6, err_msg=path)
        if path.endswith("conv1/kernel"):
            assert np.abs(value - before[path]).max() > 1e-4, path


def test_each_part_moves_the_statistics_of_batch_normalization():
    """As two calls of the stock model do, one a part."""
    model, stock = some_network(), some_network()
    step, _ = ready(model, accumulate=2)
    images, labels = some_batch()
    step(images, labels, np.float32(0))
    for part in (images[:4], images[4:]):
        stock(part, training=True)
    expected = values(stock)
    for path, value in values(model).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_parts_in_half_precision_and_several_steps_in_a_call():
    model = some_network()
    average = make_ema(model)
    recipe = dataclasses.replace(RECIPE, ema=0.9, momentum=0.0)
    step, optimizer = ready(model, "mixed_float16", recipe=recipe, accumulate=4, ema_model=average)
    exact = some_network()
    exact_step, _ = ready(exact, recipe=recipe, accumulate=4)
    images, labels = zip(*(some_batch(seed) for seed in (0, 1)), strict=True)
    steps = make_multi_step(step, model)
    results = steps(np.stack(images), np.stack(labels), np.full(2, 0.01, np.float32)).numpy()
    expected = [exact_step(*some_batch(seed), np.float32(0.01)).numpy() for seed in (0, 1)]
    np.testing.assert_allclose(results[:, :2], np.stack(expected)[:, :2], rtol=0.03)
    assert int(optimizer.iterations) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 3}, "accumulate=3 does not divide the batch size 128; give a divisor of it"),
        ({"accumulate": 0}, "accumulate=0 is out of range; allowed: 1 to"),
        ({"ema": 1.0}, "ema=1.0 is out of range; allowed: above 0 and below 1"),
        ({"ema": 0.0}, "ema=0.0 is out of range"),
        ({"ema": float("nan")}, "ema=nan is out of range"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        override(get_recipe("he2015"), **changes)


FLAGS = ("--iterations", "12", "--eval-every", "5", "--precision", "float32", "--warmup", "none", "--ema", "0.8")
VARIATIONS = {
    "plain": (),
    "in parts": ("--accumulate", "2", "--optimizer", "adam", "--learning-rate", "0.001"),
    "two phases": ("--freeze", "stage2", "--unfreeze-at", "6"),
}


def saved(folder, name):
    return {f"average/{v.path}": v.numpy() for v in keras.models.load_model(folder / name).variables}


@pytest.mark.parametrize("variation", VARIATIONS)
def test_stopped_and_resumed_a_run_ends_bit_for_bit_alike_with_its_average(tmp_path, monkeypatch, train, variation):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    flags = (*FLAGS, *VARIATIONS[variation])
    report = train(whole, *flags)
    with monkeypatch.context() as patch:
        stopping_after(patch, 7)
        assert train(halves, *flags) == 128 + signal.SIGTERM
    again = train(halves, *flags)
    arrays, resumed = (checkpoint.load_newest(folder / "checkpoints")[0] for folder in (whole, halves))
    assert {key: value.tobytes() for key, value in resumed.items()} == {
        key: value.tobytes() for key, value in arrays.items()
    }
    # The average is what is saved, validated and tested.
    final = saved(whole, "final.keras")
    assert final.keys() == {key for key in arrays if key.startswith("average/")}
    assert all(np.array_equal(value, arrays[key]) for key, value in final.items())
    assert any(not np.array_equal(value, arrays[key.replace("average/", "model/", 1)]) for key, value in final.items())
    assert again["test"]["loss"] == report["test"]["loss"]
    assert evaluate.main([str(whole)])["loss"] == report["test"]["loss"]
    history = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    best = max(history, key=lambda row: row["validation_accuracy"])
    assert report["best"]["iteration"] == best["iteration"]
    if best is history[-1]:
        assert all(np.array_equal(value, final[key]) for key, value in saved(whole, "best.keras").items())


def test_what_is_validated_is_the_average(tmp_path, train, shapes):
    folder = tmp_path / "run"
    train(folder, *FLAGS, "--iterations", "1", "--learning-rate", "0.5", "--validation-size", "20")
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    _, held_out = stratified_split(shapes.train.labels, 20, 0)
    logits = np.asarray(keras.models.load_model(folder / "final.keras")(shapes.train.images[held_out]), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(probabilities[np.arange(20), shapes.train.labels[held_out]]).mean()
    assert row["validation_loss"] == pytest.approx(loss, rel=1e-4)
