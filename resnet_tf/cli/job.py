"""A training from its request to its report: where network, data, recipe and loop meet."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet_tf import __version__
from resnet_tf.cli.datasets import load_dataset
from resnet_tf.cli.evaluate import score_file
from resnet_tf.cli.progress import Progress
from resnet_tf.cli.train_options import Request, describe_recipe
from resnet_tf.cli.watchers import CurveDrawer, Watcher, Watchers
from resnet_tf.data.augment import PadCropFlip, mean_fill
from resnet_tf.data.dataset import Dataset, channel_statistics, fingerprint, stratified_split
from resnet_tf.data.pipeline import ArraySource, Batches
from resnet_tf.errors import UserError
from resnet_tf.evaluation.canvas import WITHOUT_PLOTS, can_draw
from resnet_tf.evaluation.score import compiled_forward, score
from resnet_tf.extras import need
from resnet_tf.files import write_json, write_with
from resnet_tf.fused import fused_view
from resnet_tf.models.registry import build_model
from resnet_tf.opencv import cv2
from resnet_tf.recipes import Recipe
from resnet_tf.recursion import room_for_depth
from resnet_tf.training.contracts import Intervals
from resnet_tf.training.devices import Device, choose_device, choose_precision, set_threads
from resnet_tf.training.loop import Training
from resnet_tf.training.optim import make_optimizer
from resnet_tf.training.run_folder import REPORT, RunFolder
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.steps import make_train_step, make_train_steps


def run_job(request: Request, folder: RunFolder) -> dict[str, Any]:
    """Train what is asked for, from the start or from where the run folder is, and report.

    All that can be wrong with the request is found before the folder is touched.

    Returns:
        The report, as written to report.json.

    Raises:
        UserError: something in the request, the data or the folder is not as it must be.
        Stopped: a signal stopped the training; it is saved.
    """
    known = (None if request.overwrite else folder.settings()) or {}
    threads = set_threads(request.threads or known.get("threads", 0))
    device = choose_device(request.device)
    policy, why = choose_precision(known.get("precision", request.precision), device)
    if request.deterministic:
        tf.config.experimental.enable_op_determinism()
    data = load_dataset(request.dataset, request.data_dir)
    settings = request.settings() | {
        "data.source": data.source,
        "data.fingerprint": fingerprint(data.train),
        "precision": policy,
        "threads": threads,
    }
    if known and known["data.fingerprint"] != settings["data.fingerprint"]:
        raise UserError(
            f"run folder {folder.path} was started on other data ({known['data.source']}, here {data.source}); "
            "give that --data-dir, another --run-dir, or --overwrite to start anew"
        )
    with tf.device(device.name):
        job = Job(request, data, policy, device)
        folder.claim()
        try:
            if not known and not request.overwrite and folder.settings() is not None:
                raise UserError(f"run folder {folder.path} was started by another process just now; run this again")
            if request.overwrite:
                folder.empty()
            if not known:
                folder.start(settings)
            job.train(folder, f"device {device.name} ({device.about}), {threads} threads, precision {policy} ({why})")
            return job.finish(folder, settings, device.about)
        finally:
            folder.release()


class Job:
    """A run whose data, network and compiled step are ready."""

    def __init__(self, request: Request, data: Dataset, policy: str, device: Device) -> None:
        """Split the data, build the network, its view, the optimizer and the step.

        Raises:
            UserError: the builder refuses an option, there are too few images for a batch, or an optional package
                is missing.
        """
        recipe = request.recipe
        if request.tensorboard_every is not None:
            need("tensorboard", "tensorboard")
            need("matplotlib", "tensorboard")
        self.request, self.data, self.device = request, data, device
        self.train_part, self.validation = stratified_split(data.train.labels, recipe.validation_size, request.seed)
        self.mean, self.std = channel_statistics(data.train.images[self.train_part])
        self.batches = Batches(
            ArraySource(data.train.images, data.train.labels),
            _augmentation(recipe, self.mean),
            batch_size=recipe.batch_size,
            seed=request.seed,
            indices=self.train_part,
        )
        self.model = self._build()
        self.optimizer = make_optimizer(recipe, policy)
        self.optimizer.build(self.model.trainable_variables)
        self.step = make_train_step(
            self.model, fused_view(self.model, policy), self.optimizer, recipe, request.jit_compile
        )
        self.schedule = Schedule(recipe, recipe.length(len(self.train_part)))

    def _build(self) -> keras.Model:
        keras.utils.set_random_seed(self.request.seed)
        try:
            return build_model(
                self.request.model,
                classes=len(self.data.class_names),
                input_shape=self.data.train.images.shape[1:],
                mean=self.mean,
                std=self.std,
                **_asked(self.request.builder),
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def train(self, folder: RunFolder, device: str, on_evaluation: Watcher | None = None) -> None:
        """Train from the newest checkpoint, or from the start, to the last update.

        Args:
            folder: claimed run folder.
            device: a line on what it runs on.
            on_evaluation: called with all rows of the metrics after each evaluation, in place of curves and event
                files; what it raises ends the training.
        """
        request, recipe = self.request, self.request.recipe
        progress = Progress(folder, self.schedule.iterations, self.batches.steps_per_epoch, recipe.batch_size)
        self.training = Training(
            model=self.model,
            optimizer=self.optimizer,
            step=self.step,
            schedule=self.schedule,
            batches=self.batches,
            validate=self._evaluation(self.validation) if len(self.validation) else None,
            save_best=lambda best: self._save(folder.path / "best.keras", best),
            folder=folder,
            intervals=Intervals(request.evaluate_every, request.checkpoint_iterations, request.checkpoint_seconds),
            reporter=progress,
            rollbacks=request.rollbacks,
            steps=make_train_steps(self.step, self.model),
            steps_per_call=request.steps_per_call or _steps_per_call(self.device, self.data),
            evaluate_train=self._evaluation(self.train_part) if request.eval_train else None,
            on_evaluation=on_evaluation or Watchers(self._watchers(folder, progress.say), progress.say),
        )
        progress.say(
            f"{request.model} on {request.dataset} ({self.data.source}), "
            f"recipe {recipe.name}: {describe_recipe(recipe)}"
        )
        progress.say(device)
        if self.training.resume():
            progress.say(f"resuming at iteration {self.training.step} of {self.training.iterations}")
        try:
            self.training.run()
        finally:
            progress.close()

    def _watchers(self, folder: RunFolder, say: Callable[[str], None]) -> dict[str, Watcher]:
        """What looks on at evaluations, by what it makes."""
        watchers: dict[str, Watcher] = {}
        if can_draw():
            watchers["curves.png"] = CurveDrawer(folder.path, self.schedule.iterations)
        else:
            say(WITHOUT_PLOTS)
        if self.request.tensorboard_every is not None:
            watchers["the TensorBoard files"] = self._tensorboard(folder.path, self.request.tensorboard_every)
        return watchers

    def _tensorboard(self, folder: Path, every: int) -> Watcher:
        from resnet_tf.cli.pictures import evaluation_pictures
        from resnet_tf.training.tensorboard import TensorBoardLog

        train, batch = self.data.train, self.train_part[: self.request.recipe.batch_size]
        looked_at = (self.validation if len(self.validation) else self.train_part)[:1000]
        return TensorBoardLog(
            folder / "tensorboard",
            self.model,
            (train.images[batch], train.labels[batch]),
            evaluation_pictures(self.model, train.images[looked_at], train.labels[looked_at], self.data.class_names),
            every,
        )

    def _evaluation(self, part: np.ndarray) -> Any:
        """A function that returns loss and accuracy on a part of the training images, in float32."""
        images, labels = self.data.train.images[part], self.data.train.labels[part]
        forward = compiled_forward(fused_view(self.model))

        def evaluate() -> tuple[float, float]:
            result = score(forward, images, labels, kind="logits", classes=len(self.data.class_names))
            return result.loss, result.top1

        return evaluate

    def _save(self, path: Path, metrics: dict[str, Any]) -> None:
        """Write the model and, beside it, what a plain Keras file has no room for."""
        with room_for_depth(len(self.model.layers)):
            write_with(path, self.model.save)
        sidecar = {
            "class_names": list(self.data.class_names),
            "preprocessing": {
                "input": "RGB pixels 0-255, uint8 or float",
                "shape": list(self.data.train.images.shape[1:]),
                "mean": list(self.mean),
                "std": list(self.std),
                "normalization": "first layer of the model",
            },
            "model": self.request.model,
            "builder": self.request.builder,
            "dataset": self.request.dataset,
            "data_source": self.data.source,
            "recipe": self.request.recipe.as_dict(),
            "metrics": metrics,
        }
        write_json(path.with_suffix(".json"), sidecar)

    def finish(self, folder: RunFolder, settings: dict[str, Any], device: str) -> dict[str, Any]:
        """Save the final model, read the test set once, and report from the saved files.

        Raises:
            UserError: the disk refuses; the run stays resumable.
        """
        final, best = folder.path / "final.keras", folder.path / "best.keras"
        try:
            self._save(final, {})
            report = {
                "settings": settings,
                "parameters": sum(int(np.prod(v.shape)) for v in self.model.trainable_variables),
                "iterations": self.schedule.iterations,
                "steps_per_epoch": self.batches.steps_per_epoch,
                "train_images": len(self.data.train) - len(self.validation),
                "validation_images": len(self.validation),
                "training": _course(self.training.rows),
                "test": score_file(final, self.data).as_dict(),
                "device": device,
                "versions": versions(),
            }
            self._save(final, {"test": report["test"]})
            if self.training.best is not None:
                report["best"] = {**self.training.best, "test": score_file(best, self.data).as_dict()}
            write_json(folder.path / REPORT, report)
        except OSError as error:
            raise UserError(
                f"the results of {folder.path} could not be written ({error.strerror or error}); "
                "make room and run the same command again"
            ) from error
        return report


def _asked(builder: dict[str, Any]) -> dict[str, Any]:
    """The builder's options without those that ask for nothing: not every network has each of them."""
    nothing = {"shortcut": None, "width": 1, "use_bias": False}
    return {key: value for key, value in builder.items() if value != nothing[key]}


def _steps_per_call(device: Device, data: Dataset) -> int:
    """A GPU is through with a step on small images before Python can ask for the next; a CPU never is."""
    small = max(data.train.images.shape[1:3]) <= 64
    return 10 if device.is_gpu and small else 1


def _augmentation(recipe: Recipe, mean: Sequence[float]) -> PadCropFlip:
    return PadCropFlip(
        recipe.pad,
        mode="reflect" if recipe.pad_mode == "reflect" else "constant",
        fill=mean_fill(mean) if recipe.pad_mode == "mean" else (0,),
    )


def _course(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the training took and where it ended, from the rows of the metrics."""
    return {
        "seconds": rows[-1]["seconds"],
        "median_images_per_second": float(np.median([row["images_per_second"] for row in rows])),
        "last_train_loss": rows[-1]["train_loss"],
        "last_train_accuracy": rows[-1]["train_accuracy"],
    }


def versions() -> dict[str, str]:
    """Versions of what computed the result."""
    return {
        "resnet_tf": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
