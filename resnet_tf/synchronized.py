"""Batch normalisation over the images of all replicas of a `tf.distribute` strategy."""

from collections.abc import Callable

import tensorflow as tf


def synchronized_batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalise with the mean and the variance over all replicas, each of which has as many values.

    The second moment is taken about the common mean in a second pass: E[x²] - E[x]² in float32 loses everything where
    the mean is much larger than the deviation. The gradient of x goes through both statistics (1502.03167, section 3);
    those of gamma and beta are this replica's part, to be summed with all other gradients. Forward takes two
    all-reduces of C numbers each, backward one of 2C.

    Args:
        x: float (B, H, W, C), this replica's part.
        gamma: float32 (C,).
        beta: float32 (C,).
        epsilon: added to the variance.

    Returns:
        The normalised x in its dtype, and mean and biased variance, float32 (C,), without gradients.
    """

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., list]]:
        values = tf.cast(x, tf.float32)
        mean = _over_replicas(tf.reduce_mean(values, (0, 1, 2)))
        centred = values - mean
        variance = _over_replicas(tf.reduce_mean(tf.square(centred), (0, 1, 2)))
        scale = tf.math.rsqrt(variance + epsilon)
        y = tf.cast(centred * (scale * gamma) + beta, x.dtype)

        def backward(dy: tf.Tensor, *_: tf.Tensor) -> list[tf.Tensor]:
            slope = tf.cast(dy, tf.float32)
            normal = (tf.cast(x, tf.float32) - mean) * scale
            along = slope * normal
            both = tf.stack([tf.reduce_mean(slope, (0, 1, 2)), tf.reduce_mean(along, (0, 1, 2))])
            of_mean, of_scale = tf.unstack(_over_replicas(both))
            dx = (slope - of_mean - normal * of_scale) * (scale * gamma)
            return [tf.cast(dx, x.dtype), tf.reduce_sum(along, (0, 1, 2)), tf.reduce_sum(slope, (0, 1, 2))]

        return (y, mean, variance), backward

    y, mean, variance = normalize(x, gamma, beta)
    return y, tf.stop_gradient(mean), tf.stop_gradient(variance)


def _over_replicas(part: tf.Tensor) -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, part)
