"""Pictures of a model in training."""

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import NDArray

from resnet_tf.evaluation.canvas import figure, pixels
from resnet_tf.evaluation.plots import draw_confusion, draw_examples
from resnet_tf.evaluation.predictions import from_probabilities
from resnet_tf.evaluation.score import compiled_forward
from resnet_tf.fused import fused_view
from resnet_tf.metrics import log_softmax

_BATCH = 500


def evaluation_pictures(
    model: keras.Model, images: NDArray[np.uint8], labels: NDArray[np.int32], class_names: tuple[str, ...]
) -> Callable[[], dict[str, NDArray[np.uint8]]]:
    """A function that draws the confusion matrix and examples of the model as it is when called.

    Args:
        model: functional model that returns logits.
        images: uint8 (N, H, W, C) to look at, with their labels (N,).
        labels: true classes.
        class_names: names of the classes.

    Returns:
        Function that returns RGB pictures, uint8 (height, width, 3), by name.

    Raises:
        UserError: matplotlib is not installed.
    """
    figure(1, 1)  # finds out now, not after the first epoch
    forward = compiled_forward(fused_view(model))

    def draw() -> dict[str, NDArray[np.uint8]]:
        parts = [np.asarray(forward(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
        predictions = from_probabilities(np.exp(log_softmax(np.concatenate(parts))), labels, class_names)
        return {
            "confusion_matrix": pixels(draw_confusion(predictions.confusion(), class_names)),
            "examples": pixels(draw_examples(images, predictions, "random")),
        }

    return draw
