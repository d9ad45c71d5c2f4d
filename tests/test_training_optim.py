import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet_tf.models.resnet import cifar_resnet
from resnet_tf.recipes import get_recipe
from resnet_tf.training.step import decayed_variables, make_optimizer, undecayed_variables

CONVOLUTIONS = [
    "stem_conv",
    *(f"stage{stage}_block1_conv{k}" for stage in (1, 2, 3) for k in (1, 2)),
    "stage2_block1_shortcut_conv",
    "stage3_block1_shortcut_conv",
]
KERNELS = {f"{name}/kernel" for name in [*CONVOLUTIONS, "head_logits"]}


def paths(variables):
    names = [v.path for v in variables]
    assert len(set(names)) == len(names)
    return set(names)


@pytest.mark.parametrize("use_bias", [False, True])
def test_the_exact_set_of_decayed_variables(use_bias):
    model = cifar_resnet(8, shortcut="projection", use_bias=use_bias)
    assert paths(decayed_variables(model, "kernels")) == KERNELS
    norms = {"stage1_block1_bn1", "stage1_block1_bn2", "stage2_block1_bn1", "stage2_block1_bn2"}
    norms |= {"stage3_block1_bn1", "stage3_block1_bn2", "head_bn"}
    rest = {f"{name}/{weight}" for name in norms for weight in ("gamma", "beta")} | {"head_logits/bias"}
    rest |= {f"{name}/bias" for name in CONVOLUTIONS} if use_bias else set()
    assert paths(decayed_variables(model, "all")) == KERNELS | rest


def test_frozen_variables_do_not_decay():
    model = cifar_resnet(8, shortcut="projection")
    model.get_layer("stem_conv").trainable = False
    assert paths(decayed_variables(model, "kernels")) == KERNELS - {"stem_conv/kernel"}


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_with_a_change_of_the_learning_rate(nesterov):
    """The velocity holds the learning rate, so that after a drop it still moves by the old one for a while."""
    rng = np.random.default_rng(0)
    variable = keras.Variable(np.zeros(3, np.float32), name="w")
    optimizer = make_optimizer(dataclasses.replace(get_recipe("he2015"), nesterov=nesterov), "float32")
    optimizer.build([variable])
    w, v = np.zeros(3), np.zeros(3)
    for step in range(8):
        learning_rate = 0.1 if step < 4 else 0.01
        gradient = rng.standard_normal(3)
        optimizer.learning_rate = learning_rate
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        v = 0.9 * v - learning_rate * gradient
        w = w + 0.9 * v - learning_rate * gradient if nesterov else w + v
        np.testing.assert_allclose(variable, w, rtol=1e-5, atol=1e-7)
    assert int(optimizer.iterations) == 8


def test_momentum_comes_from_the_recipe():
    optimizer = make_optimizer(dataclasses.replace(get_recipe("he2015"), momentum=0.5), "float32")
    assert optimizer.momentum == 0.5
    assert not optimizer.nesterov
    assert optimizer.weight_decay is None


def test_only_float16_scales_the_loss():
    recipe = get_recipe("he2015")
    for policy in ("float32", "mixed_bfloat16"):
        assert type(make_optimizer(recipe, policy)) is keras.optimizers.SGD
    assert isinstance(make_optimizer(recipe, "mixed_float16"), keras.optimizers.LossScaleOptimizer)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_second_optimizer_of_a_process_names_its_variables_alike(policy):
    """Checkpoints go by these names."""
    names = []
    for _ in range(2):
        optimizer = make_optimizer(get_recipe("he2015"), policy)
        optimizer.build([keras.Variable(np.zeros(3, np.float32), name="w")])
        names.append(paths(optimizer.variables))
    assert names[0] == names[1]
    kinds = {name.split("/")[-1] for name in names[0]}
    assert {"iteration", "w_momentum"} <= kinds
    if policy == "mixed_float16":
        assert {"dynamic_scale", "step_counter"} <= kinds


def written_out(name, gradients, w, *, decay=0.0, clip=None):
    """Adam of 1412.6980, algorithm 1 (with Keras' place of epsilon), and the decay of 1711.05101, algorithm 2."""
    first, second = np.zeros_like(w), np.zeros_like(w)
    for t, gradient in enumerate(gradients, start=1):
        if clip is not None:
            gradient = gradient * min(1.0, clip / np.linalg.norm(gradient))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step_size = 0.01 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        w = w - (0.01 * decay * w if name == "adamw" else 0) - step_size * first / (np.sqrt(second) + 1e-7)
    return w


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_adam_and_its_decay_as_in_the_papers(name, clip):
    recipe = dataclasses.replace(get_recipe("he2015"), optimizer=name, weight_decay=0.1, clip_norm=clip)
    start = np.array([1.0, -2.0, 3.0], np.float32)
    decayed, spared = keras.Variable(start, name="w"), keras.Variable(start, name="b")
    gradients = np.random.default_rng(0).standard_normal((6, 3))
    for variable, decay in ((decayed, 0.1), (spared, 0.0)):
        optimizer = make_optimizer(recipe, "float32", [spared])
        optimizer.build([variable])
        for gradient in gradients:
            optimizer.learning_rate = 0.01
            optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        expected = written_out(name, gradients, start.astype(float), decay=decay, clip=clip)
        np.testing.assert_allclose(variable, expected, rtol=1e-4)


def test_clipping_is_by_the_norm_of_all_gradients_together():
    recipe = dataclasses.replace(get_recipe("he2015"), momentum=0.0, clip_norm=1.0)
    a, b = keras.Variable(np.zeros(1, np.float32), name="a"), keras.Variable(np.zeros(1, np.float32), name="b")
    optimizer = make_optimizer(recipe, "float32")
    optimizer.build([a, b])
    optimizer.learning_rate = 1.0
    optimizer.apply([tf.constant([3.0]), tf.constant([4.0])], [a, b])
    np.testing.assert_allclose([*np.asarray(a), *np.asarray(b)], [-0.6, -0.8], rtol=1e-6)


def test_what_adamw_spares():
    model = cifar_resnet(8, shortcut="projection")
    assert paths(undecayed_variables(model, "kernels")) == paths(model.trainable_variables) - KERNELS
    assert undecayed_variables(model, "all") == []
