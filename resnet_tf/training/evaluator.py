"""Loss and accuracy of a network in training, by all workers together."""

import keras
import numpy as np

from resnet_tf.data.loader import Subset
from resnet_tf.fused import fused_view
from resnet_tf.inference import compiled_forward, evaluate_batches
from resnet_tf.training.distribute import Distribution
from resnet_tf.training.state import Validate


def make_evaluator(network: keras.Model, part: Subset, classes: int, replicas: Distribution) -> Validate:
    """A function that returns a network's loss and accuracy on a part of the images, in float32.

    Each worker scores its share of them, each image counts once, and all workers get the same two numbers.
    """
    view = fused_view(network)
    forward = compiled_forward(view) if replicas.strategy is None else replicas.forward(view)
    own = part.shard(replicas.index, replicas.workers)

    def validate() -> tuple[float, float]:
        if replicas.workers == 1:
            result = evaluate_batches(forward, own.batches(), kind="logits", classes=classes)
            return result.loss, result.top1
        sums = np.zeros(3)
        if len(own):
            result = evaluate_batches(forward, own.batches(), kind="logits", classes=classes)
            sums[:] = result.loss * result.images, result.top1 * result.images, result.images
        loss, right, images = replicas.gather(sums.tolist()).sum(axis=0).tolist()
        return loss / images, round(right) / images

    return validate
