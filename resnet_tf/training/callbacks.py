"""Callbacks run after each evaluation; a failing one is disabled, never fatal."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet_tf.data.loader import eval_batch_size
from resnet_tf.errors import UserError
from resnet_tf.inference import compiled_forward, logits_view
from resnet_tf.process import recursion_limit
from resnet_tf.reports.curves import save_curves
from resnet_tf.reports.metrics import from_probabilities, log_softmax
from resnet_tf.reports.plots import WITHOUT_PLOTS, can_draw, draw_confusion, draw_examples, pixels
from resnet_tf.training.logs import History, read_history

# A drawing may take one part in so many of the time since the last one; on short epochs some are left out.
_SHARE_OF_TIME = 50
_CURVES = "curves.png"
_BATCH = 500
_TILE = 8  # screen pixels per weight in the picture of the filters
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


class StopTraining(Exception):  # noqa: N818
    """Raise this in a callback to end the training after the evaluation at hand; it is saved and tested as usual."""


class Callback:
    """Base class of what runs after each evaluation of a training; any function of the history will do as well."""

    def on_evaluation(self, history: History) -> None:
        """Look at the evaluations so far.

        Args:
            history: one dict per evaluation, oldest first, with the columns of metrics.csv: iteration, epoch,
                learning_rate, train_loss, train_accuracy, validation_loss, validation_accuracy, …; a missing value
                is None.

        Raises:
            StopTraining: the training is to end here. Anything else is reported once and disables the callback.
        """

    def __call__(self, history: History) -> None:
        """Run `on_evaluation`."""
        self.on_evaluation(history)


class Callbacks:
    """Runs callbacks by what they make; one that fails is reported once and then left alone."""

    def __init__(self, callbacks: dict[str, Callable[[History], None]], log: Callable[[str], None]) -> None:
        self._callbacks, self._log = dict(callbacks), log

    def __call__(self, history: History) -> None:
        for name, callback in list(self._callbacks.items()):
            self._run(name, callback, history)

    def finish(self, history: History) -> None:
        """Draw the curves of a run that has ended, unless this process has just done so."""
        drawer = self._callbacks.get(_CURVES)
        if history and isinstance(drawer, CurveDrawer) and drawer.drawn is not history[-1]:
            self._run(_CURVES, drawer.draw, history)

    def _run(self, name: str, callback: Callable[[History], None], history: History) -> None:
        try:
            callback(history)
        except StopTraining:
            raise
        except Exception as error:  # whatever it is, the training is worth more
            del self._callbacks[name]
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._log(f"{name} could not be made ({reason}) and will not be tried again; training goes on")


def as_callbacks(given: Any) -> list[Callable[[History], None]]:
    """One callback or several as a list; UserError for what cannot be called, such as Keras' own."""
    callbacks = list(given) if isinstance(given, Iterable) else [given]
    for callback in callbacks:
        if not callable(callback):
            expected = "functions of the history, or resnet_tf.Callback; docs/python.md has what stands for Keras' own"
            raise UserError(f"callbacks has {type(callback).__name__}; expected {expected}", argument="callbacks")
    return callbacks


def make_callbacks(run: Any, log: Callable[[str], None]) -> Callbacks | None:
    """Curves, event files and the user's own callbacks of a run; None where another worker has them."""
    if not run.distribution.is_chief:
        return None
    made: dict[str, Callable[[History], None]] = {}
    if run.config.run_dir is not None:  # nobody looks into a temporary one
        if can_draw():
            made[_CURVES] = CurveDrawer(run.run_dir.path)
        else:
            log(WITHOUT_PLOTS)
    if run.config.tensorboard:
        made["the TensorBoard files"] = TensorBoardLog(run)
    for number, callback in enumerate(run.callbacks):
        made[f"callback {number} ({getattr(callback, '__name__', type(callback).__name__)})"] = callback
    return Callbacks(made, log)


class CurveDrawer(Callback):
    """Refreshes curves.png and curves.pdf of a run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._took, self._ended = 0.0, time.monotonic()
        self.drawn: dict[str, Any] | None = None

    def on_evaluation(self, history: History) -> None:
        """Draw, unless the last drawing was just now."""
        if time.monotonic() - self._ended >= _SHARE_OF_TIME * self._took:
            self.draw(history)

    def draw(self, history: History) -> None:
        """Draw what is in the run's folder."""
        began = time.monotonic()
        save_curves(read_history(self._run_dir), self._run_dir)
        self._ended = time.monotonic()
        self._took, self.drawn = self._ended - began, history[-1]


class TensorBoardLog(Callback):
    """Writes each evaluation's numbers and, every few evaluations from the first on, pictures and histograms.

    Gradients are those of the mean cross-entropy of one fixed batch in training mode, taken on a copy of the
    network, so that looking changes nothing of the run.
    """

    def __init__(self, run: Any) -> None:
        data, self._model, self._every = run.data, run.model, run.config.tensorboard_every
        shown = data.validation if len(data.validation) else data.train
        # Kept in memory: 1000 pictures of CIFAR's size, fewer of larger ones.
        self._shown, self._class_names = shown.take(2 * eval_batch_size(data.shape)).arrays(), data.class_names
        self._batch = data.train.take(run.config.recipe.batch_size).arrays()
        self._forward = compiled_forward(logits_view(run.eval_model))
        with recursion_limit(len(run.model.layers)):
            self._copy = keras.models.clone_model(run.model)
        self._gradients = _make_gradients(self._copy)
        self._writer = tf.summary.create_file_writer(str(run.run_dir.path / "tensorboard"))

    def on_evaluation(self, history: History) -> None:
        """Write the newest of the evaluations so far; raises OSError where the disk refuses."""
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
        images, labels = self._shown
        logits = [np.asarray(self._forward(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
        predictions = from_probabilities(np.exp(log_softmax(np.concatenate(logits))), labels, self._class_names)
        pictures = {
            "confusion_matrix": pixels(draw_confusion(predictions.confusion(), self._class_names)),
            "examples": pixels(draw_examples(images, predictions, "random")),
            "first_layer_filters": picture_of_filters(self._model),
        }
        for tag, picture in pictures.items():
            if picture is not None:
                tf.summary.image(tag, picture[None])


def picture_of_filters(model: keras.Model) -> NDArray[np.uint8] | None:
    """Kernels of the first convolution side by side, uint8 (H, W, 3), zero in gray, in color if over three channels."""
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
    view, variables = logits_view(model), [variable.value for variable in model.trainable_variables]

    @tf.function(reduce_retracing=True, autograph=False)
    def gradients(images: tf.Tensor, labels: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = tf.cast(view(images, training=True), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        return tape.gradient(loss, variables, unconnected_gradients="zero")

    return gradients
