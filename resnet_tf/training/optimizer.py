"""Optimizers, weight decay and the moving average of the weights."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet_tf.process import recursion_limit
from resnet_tf.recipes import Recipe


def make_optimizer(recipe: Recipe, policy: str, undecayed: Sequence[keras.Variable] = ()) -> keras.optimizers.Optimizer:
    """The recipe's optimizer, with dynamic loss scaling under mixed_float16; AdamW does not decay the `undecayed`."""
    # Named, because checkpoints go by the variables' paths and Keras numbers unnamed optimizers.
    options: dict[str, Any] = {"global_clipnorm": recipe.clip_norm, "name": recipe.optimizer}
    optimizer: keras.optimizers.Optimizer
    if recipe.optimizer == "sgd":
        # Keras keeps the learning rate inside the velocity (v = m·v - lr·g; w += v), as Caffe did.
        optimizer = keras.optimizers.SGD(
            recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, **options
        )
    elif recipe.optimizer == "adam":
        optimizer = keras.optimizers.Adam(recipe.learning_rate, **options)
    else:
        optimizer = keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay, **options)
        optimizer.exclude_from_weight_decay(list(undecayed))
    if policy == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer


def decayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables in the L2 term: "all", or "kernels" (rank 2 and more: no biases, no normalization)."""
    return [v for v in model.trainable_variables if decay == "all" or len(v.shape) >= 2]


def undecayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables that `decayed_variables` leaves out."""
    decayed = {v.path for v in decayed_variables(model, decay)}
    return [v for v in model.trainable_variables if v.path not in decayed]


def make_ema(model: keras.Model) -> keras.Model:
    """A copy of a functional stock model, to hold the exponential moving averages of its variables."""
    with recursion_limit(len(model.layers)):
        ema_model = keras.models.clone_model(model)
    averages = {variable.path: variable for variable in ema_model.variables}
    for variable in model.variables:
        averages[variable.path].assign(variable)
    return ema_model


def ema_pairs(model: keras.Model, ema_model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each variable of a layer that trains, moving statistics among them, with its average."""
    averages = {variable.path: variable for variable in ema_model.variables}
    return [(v, averages[v.path]) for layer in model.layers if layer.trainable for v in layer.variables]


def update_ema(pairs: list[tuple[keras.Variable, keras.Variable]], decay: float, steps: tf.Tensor) -> None:
    """Move each average towards its variable: average = d · average + (1 - d) · variable.

    d is min(decay, (1 + t) / (10 + t)) after t steps: the first ones would otherwise weigh next to nothing against
    the initial values.
    """
    done = tf.cast(steps, tf.float32)
    rest = 1.0 - tf.minimum(decay, (1.0 + done) / (10.0 + done))
    for variable, average in pairs:
        # In this form an average that is equal to its variable stays so bit for bit.
        average.assign_sub(rest * (average.value - variable.value))
