"""TensorBoard event files of a run. Import this only where they are asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet_tf.errors import optional_import
from resnet_tf.fused import fused_view
from resnet_tf.process import recursion_limit

_SCALARS = {
    "loss/train": "train_loss",
    "loss/train_l2": "train_l2",
    "loss/validation": "validation_loss",
    "loss/train_inference": "train_eval_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/validation": "validation_accuracy",
    "accuracy/train_inference": "train_eval_accuracy",
    "learning_rate": "learning_rate",
    "images_per_second": "images_per_second",
}
_TILE = 8  # screen pixels per weight in the picture of the filters
Pictures = Callable[[], dict[str, NDArray[np.uint8]]]


class TensorBoardLog:
    """Writes each evaluation's numbers and, every few evaluations from the first on, pictures and histograms.

    Gradients are those of the mean cross-entropy of one fixed batch in training mode, taken on a copy of the
    network, so that looking changes nothing of the run. Raises UserError where tensorboard is not installed.
    """

    def __init__(
        self,
        folder: Path,
        model: keras.Model,
        batch: tuple[NDArray[np.uint8], NDArray[np.int32]],
        pictures: Pictures,
        every: int,
    ) -> None:
        optional_import("tensorboard", "tensorboard")
        self._model, self._batch, self._pictures, self._every = model, batch, pictures, every
        with recursion_limit(len(model.layers)):
            self._copy = keras.models.clone_model(model)
        self._gradients = _make_gradients(self._copy)
        self._writer = tf.summary.create_file_writer(str(folder))

    def __call__(self, history: list[dict[str, Any]]) -> None:
        """Write the newest of the evaluations so far; raise OSError where the disk refuses."""
        newest = history[-1]
        try:
            with self._writer.as_default(step=newest["iteration"]):
                for tag, key in _SCALARS.items():
                    if newest.get(key) is not None:
                        tf.summary.scalar(tag, newest[key])
                if (len(history) - 1) % self._every == 0:
                    self._write_histograms()
                    self._write_pictures()
            self._writer.flush()
        except tf.errors.OpError as error:
            raise OSError(error.message) from error

    def _write_histograms(self) -> None:
        self._copy.set_weights(self._model.get_weights())
        images, labels = self._batch
        gradients = self._gradients(tf.constant(images), tf.constant(labels, tf.int32))
        for variable, gradient in zip(self._copy.trainable_variables, gradients, strict=True):
            tf.summary.histogram(f"weights/{variable.path}", variable.value)
            tf.summary.histogram(f"gradients/{variable.path}", gradient)

    def _write_pictures(self) -> None:
        filters = picture_of_filters(self._model)
        pictures = self._pictures() | ({} if filters is None else {"first_layer_filters": filters})
        for tag, picture in pictures.items():
            tf.summary.image(tag, picture[None])


def picture_of_filters(model: keras.Model) -> NDArray[np.uint8] | None:
    """The kernels of the first convolution side by side, uint8 (H, W, 3), or None where there is no convolution.

    Zero is gray. Kernels over three channels are shown as colors, others as the mean over their channels.
    """
    first = next((layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)), None)
    if first is None:
        return None
    kernel = np.asarray(first.kernel, np.float32)
    if kernel.shape[2] != 3:
        kernel = np.repeat(kernel.mean(axis=2, keepdims=True), 3, axis=2)
    shades = np.rint(127.5 + 127.5 * kernel / max(float(np.abs(kernel).max()), 1e-12)).astype(np.uint8)
    shades = shades.repeat(_TILE, axis=0).repeat(_TILE, axis=1)
    height, width, _, count = shades.shape
    columns = int(np.ceil(np.sqrt(count)))
    image = np.full((-(-count // columns) * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for index in range(count):
        top, left = index // columns * (height + 2) + 1, index % columns * (width + 2) + 1
        image[top : top + height, left : left + width] = shades[..., index]
    return image


def _make_gradients(model: keras.Model) -> Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]:
    view, variables = fused_view(model), [variable.value for variable in model.trainable_variables]

    @tf.function(reduce_retracing=True)
    def gradients(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = tf.cast(view(images, training=True), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return tape.gradient(loss, variables, unconnected_gradients="zero")

    return gradients
