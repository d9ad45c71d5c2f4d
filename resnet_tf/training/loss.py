"""The loss of a step: cross-entropy, as the recipe softens and weighs it."""

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray


def cross_entropy(
    labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0, class_weights: ArrayLike | None = None
) -> tf.Tensor:
    """Cross-entropy of each image in nats, float32 (B,).

    Args:
        labels: true classes, int32 (B,).
        logits: float32 (B, C).
        smoothing: share of the target that is spread evenly over all classes (1512.00567 section 7).
        class_weights: factor for the images of each class (C,), or None.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if smoothing:
        to_all = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
        losses = (1.0 - smoothing) * losses + smoothing * to_all
    if class_weights is not None:
        losses *= tf.gather(tf.constant(class_weights, tf.float32), labels)
    return losses


def balanced_weights(labels: ArrayLike, classes: int) -> NDArray[np.float64]:
    """N / (C · n) for each class of n among N images: all classes count alike, and the mean factor is 1.

    Args:
        labels: true classes, integers (N,).
        classes: C; a class without images gets 0.
    """
    members = np.bincount(np.asarray(labels), minlength=classes)
    return np.divide(members.sum() / classes, members, out=np.zeros(classes), where=members > 0)
