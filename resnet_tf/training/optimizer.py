"""Optimizers, weight decay and the moving average of the weights."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from resnet_tf.process import recursion_limit
from resnet_tf.recipes import Recipe


def make_optimizer(recipe: Recipe, policy: str, undecayed: Sequence[keras.Variable] = ()) -> keras.optimizers.Optimizer:
    """The recipe's optimizer; under mixed_float16 with dynamic loss scaling around it.

    Keras keeps SGD's learning rate inside the velocity (v = m·v - lr·g; w += v), as Caffe did.

    Args:
        recipe: optimizer, momentum, clipping and decay are taken from it; the step sets the learning rate.
        policy: dtype policy of the run.
        undecayed: variables that AdamW, which decays them itself, leaves alone.
    """
    optimizer = _OPTIMIZERS[recipe.optimizer](recipe)
    if recipe.optimizer == "adamw":
        optimizer.exclude_from_weight_decay(list(undecayed))
    if policy == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer


# Named, because checkpoints go by the variables' paths and Keras numbers unnamed optimizers.
def _sgd(recipe: Recipe) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(
        recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        global_clipnorm=recipe.clip_norm,
        name="sgd",
    )


def _adam(recipe: Recipe) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(recipe.learning_rate, global_clipnorm=recipe.clip_norm, name="adam")


def _adamw(recipe: Recipe) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(
        recipe.learning_rate, weight_decay=recipe.weight_decay, global_clipnorm=recipe.clip_norm, name="adamw"
    )


_OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


def decayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables that the L2 term covers.

    Args:
        model: any Keras model.
        decay: "kernels": those of rank 2 and more, that is the kernels of convolutions and of the
            classifier, and neither biases nor batch normalization; "all": every one.
    """
    return [v for v in model.trainable_variables if decay == "all" or len(v.shape) >= 2]


def undecayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables that `decayed_variables` leaves out."""
    decayed = {v.path for v in decayed_variables(model, decay)}
    return [v for v in model.trainable_variables if v.path not in decayed]


Pairs = list[tuple[keras.Variable, keras.Variable]]


def make_ema(model: keras.Model) -> keras.Model:
    """A stock model of the same layers as `model`, with variables of its own, which hold the values of this moment.

    Args:
        model: functional stock model; the other is as trainable as this is now.
    """
    with recursion_limit(len(model.layers)):
        average = keras.models.clone_model(model)
    own = {variable.path: variable for variable in average.variables}
    for variable in model.variables:
        own[variable.path].assign(variable)
    return average


def ema_pairs(model: keras.Model, average: keras.Model) -> Pairs:
    """Each variable of a layer that trains, moving statistics among them, and its average.

    The others stand still, and so do their averages.
    """
    own = {variable.path: variable for variable in average.variables}
    return [(v, own[v.path]) for layer in model.layers if layer.trainable for v in layer.variables]


def update_ema(pairs: Pairs, decay: float, updates: tf.Tensor) -> None:
    """Move each average towards its variable: average = d · average + (1 - d) · variable, in a graph or outside.

    d is min(decay, (1 + t) / (10 + t)) after t updates, the usual warm-up: the first updates would otherwise weigh
    next to nothing against the initial values.

    Args:
        pairs: what `ema_pairs` found.
        decay: d in the long run.
        updates: t, with the update that has just been made.
    """
    done = tf.cast(updates, tf.float32)
    rest = 1.0 - tf.minimum(decay, (1.0 + done) / (10.0 + done))
    for variable, average in pairs:
        # In this form an average that is equal to its variable stays so bit for bit.
        average.assign_sub(rest * (average.value - variable.value))
