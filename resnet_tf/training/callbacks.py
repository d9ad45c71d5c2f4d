"""Callbacks run after each evaluation; a failing one is disabled, never fatal."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from resnet_tf.cli.job import Job

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


Rows = list[dict[str, Any]]
Callback = Callable[[Rows], None]

# A drawing may take one part in so many of the time since the last one; on short epochs some are left out.
_SHARE = 50


class Callbacks:
    """Calls each callback after an evaluation; one that fails is reported once and then left alone."""

    def __init__(self, callbacks: dict[str, Callback], log: Callable[[str], None]) -> None:
        """Take the callbacks by what they make, and where to report a failure."""
        self._watchers = dict(callbacks)
        self._say = log

    def __call__(self, rows: Rows) -> None:
        """Show all evaluations so far to every callback."""
        for name, callback in list(self._watchers.items()):
            try:
                callback(rows)
            except Exception as error:  # whatever it is, the training is worth more
                del self._watchers[name]
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                self._say(f"{name} could not be made ({reason}) and will not be tried again; training goes on")


class CurveDrawer:
    """Refreshes curves.png and curves.pdf of a run folder."""

    def __init__(self, folder: Path, is_last: Callable[[], bool]) -> None:
        """Draw the run in `folder`; `is_last` says whether it ends with the evaluation at hand."""
        self._folder = folder
        self._is_last = is_last
        self._took = 0.0
        self._ended = time.monotonic()

    def __call__(self, rows: Rows) -> None:
        """Draw, unless the last drawing was just now; the last evaluation is always drawn.

        Raises:
            OSError: the disk refuses.
        """
        began = time.monotonic()
        if not self._is_last() and began - self._ended < _SHARE * self._took:
            return
        save_curves(read_history(self._folder), self._folder)
        self._ended = time.monotonic()
        self._took = self._ended - began


def make_callbacks(job: "Job", folder: Path, log: Callable[[str], None]) -> dict[str, Callback]:
    """What looks on at the evaluations of a job, by what it makes in its run folder; nothing where the chief does."""
    callbacks: dict[str, Callback] = {}
    if not job.replicas.is_chief:
        return callbacks
    if can_draw():
        callbacks["curves.png"] = CurveDrawer(folder, lambda: job.training.ended)
    else:
        log(WITHOUT_PLOTS)
    if job.request.tensorboard_every is not None:
        callbacks["the TensorBoard files"] = _tensorboard(job, folder, job.request.tensorboard_every)
    return callbacks


def _tensorboard(job: "Job", folder: Path, every: int) -> Callback:
    from resnet_tf.training.tensorboard import TensorBoardLog

    material = job.material
    looked_at = material.validation if len(material.validation) else material.train
    # Kept in memory: 1000 pictures of CIFAR's size, fewer of larger ones.
    looked_at = looked_at.take(2 * eval_batch_size(material.shape))
    return TensorBoardLog(
        folder / "tensorboard",
        job.model,
        material.train.take(job.request.recipe.batch_size).arrays(),
        evaluation_pictures(job.eval_model, *looked_at.arrays(), material.class_names),
        every,
    )
