"""An exponential moving average of a network's weights, in a second network."""

import keras
import tensorflow as tf

from resnet_tf.recursion import room_for_depth

Pairs = list[tuple[keras.Variable, keras.Variable]]


def make_average(model: keras.Model) -> keras.Model:
    """A stock model of the same layers as `model`, with variables of its own, which hold the values of this moment.

    Args:
        model: functional stock model; the other is as trainable as this is now.
    """
    with room_for_depth(len(model.layers)):
        average = keras.models.clone_model(model)
    own = {variable.path: variable for variable in average.variables}
    for variable in model.variables:
        own[variable.path].assign(variable)
    return average


def moving_pairs(model: keras.Model, average: keras.Model) -> Pairs:
    """Each variable of a layer that trains, moving statistics among them, and its average.

    The others stand still, and so do their averages.
    """
    own = {variable.path: variable for variable in average.variables}
    return [(v, own[v.path]) for layer in model.layers if layer.trainable for v in layer.variables]


def move_averages(pairs: Pairs, decay: float, updates: tf.Tensor) -> None:
    """Move each average towards its variable: average = d · average + (1 - d) · variable, in a graph or outside.

    d is min(decay, (1 + t) / (10 + t)) after t updates, the usual warm-up: the first updates would otherwise weigh
    next to nothing against the initial values.

    Args:
        pairs: what `moving_pairs` found.
        decay: d in the long run.
        updates: t, with the update that has just been made.
    """
    done = tf.cast(updates, tf.float32)
    rest = 1.0 - tf.minimum(decay, (1.0 + done) / (10.0 + done))
    for variable, average in pairs:
        # In this form an average that is equal to its variable stays so bit for bit.
        average.assign_sub(rest * (average.value - variable.value))
