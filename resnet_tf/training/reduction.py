"""What the replicas of a `tf.distribute` strategy add up and average within a step."""

import keras
import tensorflow as tf

from resnet_tf.summary import flat_layers


def sum_gradients(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Each gradient summed over all replicas; to be called in each of them."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def take_summed_gradients(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer take gradients as they are, which Keras' sum over replicas themselves.

    They do so after clipping and, in float16, after looking for infinities, so that each replica would clip its own
    part, and an infinity in a replica other than the first would be missed.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner._all_reduce_sum_gradients = list


def average_statistics(statistics: list[keras.Variable]) -> None:
    """Give all replicas the mean of their moving statistics; to be called in each of them."""
    if not statistics:
        return
    context = tf.distribute.get_replica_context()
    # An identity has the replica's device, which the sum asks for; a variable's value need not have one.
    values = [tf.identity(variable.value) for variable in statistics]
    for variable, mean in zip(statistics, context.all_reduce(tf.distribute.ReduceOp.MEAN, values), strict=True):
        variable.assign(mean)


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Mean and variance of each batch normalisation of a model that moves them."""
    norms = [layer for layer in flat_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    return [v for norm in norms if norm.trainable for v in (norm.moving_mean, norm.moving_variance)]
