"""Loss and accuracy of a network in training, by all workers together."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from resnet_tf.data.loader import Subset
from resnet_tf.fused import fused_view
from resnet_tf.inference import compiled_forward, evaluate_batches
from resnet_tf.training.distribute import Distribution

Evaluator = Callable[[], tuple[float, float]]


def make_evaluator(
    model: keras.Model, subset: Subset, classes: int, distribution: Distribution, image_dtype: tf.DType = tf.uint8
) -> Evaluator:
    """A function that returns a model's loss and accuracy on a subset of the images, in float32.

    Each worker scores its shard, each image counts once, and all workers get the same two numbers.
    """
    view = fused_view(model)
    forward = compiled_forward(view, image_dtype) if distribution.strategy is None else distribution.forward(view)
    shard = subset.shard(distribution.index, distribution.workers)

    def evaluate() -> tuple[float, float]:
        if distribution.workers == 1:
            result = evaluate_batches(forward, shard.batches(), kind="logits", classes=classes)
            return result.loss, result.top1
        sums = np.zeros(3)
        if len(shard):
            result = evaluate_batches(forward, shard.batches(), kind="logits", classes=classes)
            sums[:] = result.loss * result.images, result.top1 * result.images, result.images
        loss, right, images = distribution.gather(sums.tolist()).sum(axis=0).tolist()
        return loss / images, round(right) / images

    return evaluate
