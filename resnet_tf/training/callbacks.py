"""Callbacks run after each evaluation; a failing one is disabled, never fatal."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from resnet_tf.data.loader import eval_batch_size
from resnet_tf.fused import fused_view
from resnet_tf.inference import compiled_forward
from resnet_tf.reports.curves import save_curves
from resnet_tf.reports.metrics import from_probabilities, log_softmax
from resnet_tf.reports.plots import WITHOUT_PLOTS, can_draw, draw_confusion, draw_examples, figure, pixels
from resnet_tf.training.logs import read_history

History = list[dict[str, Any]]

# A drawing may take one part in so many of the time since the last one; on short epochs some are left out.
_SHARE_OF_TIME = 50
_BATCH = 500


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
        self._callbacks = dict(callbacks)
        self._log = log

    def __call__(self, history: History) -> None:
        """Show all evaluations so far to every callback."""
        for name, callback in list(self._callbacks.items()):
            try:
                callback(history)
            except StopTraining:
                raise
            except Exception as error:  # whatever it is, the training is worth more
                del self._callbacks[name]
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                self._log(f"{name} could not be made ({reason}) and will not be tried again; training goes on")


class CurveDrawer(Callback):
    """Refreshes curves.png and curves.pdf of a run directory."""

    def __init__(self, run_dir: Path, is_last: Callable[[], bool]) -> None:
        """Draw the run in `run_dir`; `is_last` says whether it ends with the evaluation at hand."""
        self._run_dir = run_dir
        self._is_last = is_last
        self._took = 0.0
        self._ended = time.monotonic()

    def on_evaluation(self, history: History) -> None:
        """Draw, unless the last drawing was just now; the last evaluation is always drawn."""
        began = time.monotonic()
        if not self._is_last() and began - self._ended < _SHARE_OF_TIME * self._took:
            return
        save_curves(read_history(self._run_dir), self._run_dir)
        self._ended = time.monotonic()
        self._took = self._ended - began


def evaluation_pictures(
    model: keras.Model, images: NDArray[np.uint8], labels: NDArray[np.int32], class_names: tuple[str, ...]
) -> Callable[[], dict[str, NDArray[np.uint8]]]:
    """A function that draws confusion matrix and examples, RGB uint8 (H, W, 3) by name, of the model as it then is."""
    figure(1, 1)  # finds out now, not after the first epoch, that matplotlib is missing
    forward = compiled_forward(fused_view(model))

    def draw() -> dict[str, NDArray[np.uint8]]:
        logits = [np.asarray(forward(images[i : i + _BATCH])) for i in range(0, len(images), _BATCH)]
        predictions = from_probabilities(np.exp(log_softmax(np.concatenate(logits))), labels, class_names)
        return {
            "confusion_matrix": pixels(draw_confusion(predictions.confusion(), class_names)),
            "examples": pixels(draw_examples(images, predictions, "random")),
        }

    return draw


def make_callbacks(run: Any, log: Callable[[str], None]) -> Callbacks | None:
    """Curves, event files and the user's own callbacks of a run; None where another worker has them."""
    if not run.distribution.is_chief:
        return None
    made: dict[str, Callable[[History], None]] = {}
    if can_draw():
        made["curves.png"] = CurveDrawer(run.run_dir.path, lambda: run.trainer.ended)
    else:
        log(WITHOUT_PLOTS)
    if run.config.tensorboard:
        from resnet_tf.training.tensorboard import TensorBoardLog

        shown = run.data.validation if len(run.data.validation) else run.data.train
        # Kept in memory: 1000 pictures of CIFAR's size, fewer of larger ones.
        images, labels = shown.take(2 * eval_batch_size(run.data.shape)).arrays()
        made["the TensorBoard files"] = TensorBoardLog(
            run.run_dir.path / "tensorboard",
            run.model,
            run.data.train.take(run.config.recipe.batch_size).arrays(),
            evaluation_pictures(run.eval_model, images, labels, run.data.class_names),
            run.config.tensorboard_every,
        )
    for number, callback in enumerate(run.callbacks):
        made[f"callback {number} ({getattr(callback, '__name__', type(callback).__name__)})"] = callback
    return Callbacks(made, log)
