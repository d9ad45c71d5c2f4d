"""One training of a search: no test set, no report, and an end before time where it promises little."""

import gc
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from resnet_tf.cli.job import Job
from resnet_tf.cli.material import make_material, open_images
from resnet_tf.cli.request import Request
from resnet_tf.cli.study import Report
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.runtime import choose_device, choose_precision, set_threads
from resnet_tf.training.trainer import Diverged


class _GivenUp(Exception):  # noqa: N818
    """The trial does worse than the median of the others."""


class Trials:
    """Trainings on one data set and device."""

    def __init__(self, request: Request) -> None:
        """Load what `request` and all later ones share.

        Raises:
            UserError: the data or the device is not there.
        """
        self._threads = set_threads(request.threads)
        self._device = choose_device(request.device)
        self._policy, _ = choose_precision(request.precision, self._device)
        self._images = open_images(request)

    def run(self, request: Request, report: Report) -> float | None:
        """Train, and tell `report` the validation accuracy of each epoch.

        Returns:
            Validation accuracy at the end, 0 where the training diverged, or None where `report` said to give up.

        Raises:
            UserError: the network and the data do not fit.
            Stopped: a signal stopped the training.
        """

        def watch(rows: list[dict[str, Any]]) -> None:
            if report(rows[-1]["validation_accuracy"], len(rows)):
                raise _GivenUp

        keras.utils.clear_session()
        gc.collect()
        folder = RunDir(Path(request.run_dir))
        with tf.device(self._device.name):
            job = Job(request, make_material(self._images, request), self._policy, self._device)
            folder.lock()
            try:
                folder.create(request.settings() | {"precision": self._policy, "threads": self._threads})
                job.train(folder, f"device {self._device.name}, precision {self._policy}", watch)
            except _GivenUp:
                return None
            except Diverged:
                return 0.0
            finally:
                folder.release()
        return float(job.training.history[-1]["validation_accuracy"])
