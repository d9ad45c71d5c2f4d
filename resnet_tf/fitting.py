"""`train()`: a training from what a user asks for to its result."""

import contextlib
import dataclasses
import hashlib
import math
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet_tf import __version__
from resnet_tf.config import TrainConfig, make_config
from resnet_tf.data.dataset import is_image_dataset
from resnet_tf.data.image_io import cv2
from resnet_tf.data.loader import eval_batch_size
from resnet_tf.data.prepare import fingerprint_of, open_data, prepare_data
from resnet_tf.errors import UserError, optional_import
from resnet_tf.files import write_json, write_text
from resnet_tf.fused import fused_view
from resnet_tf.inference import output_type
from resnet_tf.models.registry import build_model
from resnet_tf.recipes import Recipe, check_validation
from resnet_tf.reports.curves import TrainingHistory, draw_curves
from resnet_tf.reports.plots import WITHOUT_PLOTS, can_draw
from resnet_tf.saving import load_model, read_sidecar, save_model
from resnet_tf.scoring import score_subset
from resnet_tf.training.callbacks import Callbacks, CurveDrawer, StopTraining, evaluation_pictures
from resnet_tf.training.distribute import Distribution, make_distribution, worker_lost_error
from resnet_tf.training.evaluator import make_evaluator
from resnet_tf.training.fine_tune import InitialWeights, UnfreezeAt, all_trainable, describe_trainable, freeze
from resnet_tf.training.logs import TrainLogger, read_history
from resnet_tf.training.optimizer import make_ema, make_optimizer, undecayed_variables
from resnet_tf.training.run_dir import (
    COMMAND,
    REPORT,
    RunDir,
    check_resumable,
    saved_statistics,
)
from resnet_tf.training.runtime import Device, choose_device, choose_precision, set_threads
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.step import balanced_weights, make_multi_step, make_train_step
from resnet_tf.training.trainer import Trainer

_NO_OPTIONS = {"shortcut": None, "width": 1, "use_bias": False}


def train(
    model: str | keras.Model = "resnet20_v2",
    data: Any = "cifar10",
    *,
    validation: Any = None,
    test: Any = None,
    recipe: str | Recipe | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    callbacks: Sequence[Callable[[list[dict[str, Any]]], None]] = (),
    class_names: Sequence[str] | None = None,
    steps_per_epoch: int | None = None,
    verbose: bool = True,
    command: str | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a network by a recipe, or go on with the run in `run_dir`.

    Args:
        model: name of a network (`list_models()`), or a functional `keras.Model` that takes raw pixels (0-255) and
            returns logits, which is trained as it is.
        data: what to train on: a name ("cifar10", "cifar100", "shapes", "folder:PATH", "list:FILE"), a tuple (images
            uint8 (N, H, W, C), integer labels (N,)), a `Dataset`, or a `tf.data.Dataset` of (image batch, label batch),
            which is used with its own batches, order and augmentation.
        validation: likewise (tuple, `Dataset`, `tf.data.Dataset`, folder or list); None splits `validation_size` of the
            training images off, by class and seed (not for tf.data).
        test: likewise; None takes the test images of the data set, False leaves them unread.
        recipe: name of a recipe in `RECIPES`, or a `Recipe`; None takes the paper's for the network.
        run_dir: directory of the run. Where it holds the same run unfinished, that goes on to the bit; where it is
            finished, its result is returned. None uses a temporary directory.
        callbacks: called with the evaluations so far after each; see `Callback`.
        class_names: names of the classes where the data has none.
        steps_per_epoch: batches an epoch of a tf.data.Dataset whose cardinality is infinite or unknown.
        verbose: print progress.
        command: the command line that asks for this, for the run's records.
        **options: fields of the recipe (epochs=8, learning_rate=0.05, …) and of the run (seed, precision, augment,
            input_size, weights, freeze, device, threads, evaluate_every, …), the flags of `resnet-tf train` by name.

    Returns:
        The trained model with its history, test metrics and report.

    Raises:
        UserError: an argument, the data, a file or the run directory is not as it must be; nothing was changed.
        KeyboardInterrupt: Ctrl-C or a signal stopped it; it is saved, and the same call goes on.
    """
    call = command or describe_call(model, data, recipe, run_dir, options)
    given = None
    if isinstance(model, keras.Model):
        given, options = model, {**options, "model_sha256": check_trainable(model)}
        model = given.name
    named = isinstance(data, str | Path)
    dataset = str(data) if named else getattr(data, "name", "arrays")
    config = make_config(
        recipe,
        model=model,
        dataset=dataset,
        run_dir=None if run_dir is None else str(run_dir),
        data_given=not named,
        **options,
    )
    with contextlib.ExitStack() as stack:
        data_arguments = DataArguments(data, validation, test, class_names, steps_per_epoch)
        folder = Path(config.run_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        run = _Run(config, RunDir(folder), given, data_arguments, list(callbacks), verbose, call)
        try:
            with _random_states():
                return run.result()
        except tf.errors.OpError as error:
            lost = worker_lost_error(error)
            if lost is None:
                raise
            raise lost from error


@contextlib.contextmanager
def _random_states() -> Any:
    """Leave the global generators of Python and NumPy, which seeding the initialization resets, as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class _Run:
    """One run: its parts, in the order in which they must be made, and its files."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: RunDir,
        given_model: keras.Model | None,
        data_arguments: DataArguments,
        callbacks: list[Any],
        verbose: bool,
        command: str,
    ) -> None:
        self.config, self.run_dir, self.given_model = config, run_dir, given_model
        self.data_arguments = data_arguments
        self.callbacks, self.verbose, self.command = callbacks, verbose, command

    def log(self, line: str) -> None:
        """Print a line that belongs to no log yet."""
        if self.verbose:
            print(line)

    def result(self) -> TrainingResult:
        """Train, unless that is done already."""
        config, run_dir = self.config, self.run_dir
        known = (None if config.overwrite else run_dir.settings()) or {}
        threads = set_threads(config.threads if config.threads is not None else known.get("threads"))
        device = choose_device(config.device)
        policy, why = choose_precision(known.get("precision", config.precision), device)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        distribution = make_distribution(config.strategy, config.device, config.replicas)
        raw = open_data(self.data_arguments, config, self.log)
        settings = config.settings() | {
            "data.source": raw.source,
            "data.fingerprint": fingerprint_of(raw),
            "precision": policy,
            "threads": threads,
        }
        weights = InitialWeights(config.weights, config.model) if config.weights is not None else None
        if weights is not None:
            settings["weights.sha256"] = weights.digest
        if known:
            check_resumable(run_dir, known, settings)
            if run_dir.report() is not None:
                return TrainingResult.load(run_dir.path, not isinstance(raw, TfData))
        with contextlib.ExitStack() as stack:
            if distribution.strategy is None:
                stack.enter_context(tf.device(device.name))
            statistics = saved_statistics(known) or (weights.statistics if weights else None)
            self.data = prepare_data(raw, config, statistics, self.data_arguments)
            settings |= {"data.mean": list(self.data.mean), "data.std": list(self.data.std)}
            with distribution.scope():
                self._build(policy, device, weights, distribution)
            run_dir.lock(read_only=not distribution.is_chief)
            try:
                if distribution.is_chief:
                    self._start(known, settings)
                distribution.gather([0.0])  # the others read what the chief has made of the directory
                about = f"device {device.name} ({device.about})"
                if distribution.strategy is not None:
                    about += f", {distribution.about}"
                self._fit(f"{about}, {threads} threads, precision {policy} ({why})")
                if distribution.is_chief:
                    report = self._write_report(settings)
                else:
                    report = {"iterations": self.trainer.step}
                distribution.gather([0.0])  # nobody leaves before the chief is done: it would seem lost
                return self._result(report)
            finally:
                run_dir.release()

    def _start(self, known: dict[str, Any], settings: dict[str, Any]) -> None:
        """Make the directory that of this run."""
        run_dir, overwrite = self.run_dir, self.config.overwrite
        if not known and not overwrite and run_dir.settings() is not None:
            raise UserError(f"run folder {run_dir.path} was started by another process just now; run this again")
        if overwrite:
            run_dir.clear()
        if not known:
            run_dir.create(settings)
            write_text(run_dir.path / COMMAND, f"{self.command}\n")

    def _build(
        self, policy: str, device: Device, weights: InitialWeights | None, distribution: Distribution
    ) -> None:
        """Make network, view, optimizer and step, in the scope of `distribution`."""
        config, data, recipe = self.config, self.data, self.config.recipe
        check_validation(recipe, len(data.validation))
        distribution.check_batch(recipe.batch_size, recipe.accumulate)
        if config.jit_compile and distribution.strategy is not None:
            raise UserError("jit_compile=True does not go with several devices; leave it out, or add strategy='none'")
        self.device, self.distribution = device, distribution
        shard = distribution.index, distribution.workers
        loader = data.loader(recipe.batch_size, config.seed, shard, recipe.accumulate)
        length = recipe.length_of(loader.steps_per_epoch)
        if config.unfreeze_at is not None and config.unfreeze_at >= length:
            raise UserError(
                f"unfreeze_at={config.unfreeze_at} is not before the end of the training, which has {length} "
                "iterations; give a smaller number, or leave it out"
            )
        self.schedule = Schedule(recipe, length, config.unfreeze_at, config.unfreeze_learning_rate)
        if config.tensorboard:
            optional_import("tensorboard", "tensorboard")
            optional_import("matplotlib", "tensorboard")
        self.builder = weights.builder(config) if weights else config.builder
        # The order from here on decides the bits: seed, build, weights, average, optimizer, freeze, view.
        self.model = self._model()
        if weights is not None:
            weights.load_into(self.model)
        self.parameters = self.model.count_params() - sum(
            math.prod(v.shape) for v in self.model.non_trainable_variables
        )
        self.ema_model = None if recipe.ema is None else make_ema(self.model)
        self.eval_model = self.ema_model or self.model
        self.optimizer = make_optimizer(recipe, policy, undecayed_variables(self.model, recipe.decay))
        # Slots for all variables, those that only train later too.
        self.optimizer.build(self.model.trainable_variables)
        freeze(self.model, config.freeze)
        self.view = fused_view(self.model, policy, config.sync_bn)
        self.steps_per_execution = config.steps_per_execution or _steps_per_execution(device, data.shape)
        self.loader = self._to_device(loader)
        self.steps = self._make_steps()

    def _to_device(self, loader: Any) -> Any:
        if isinstance(self.data, TfData):
            return loader
        return to_device(
            loader,
            self.data.images,
            self.data.transform,
            keep=self.config.keep_on_device,
            is_gpu=self.device.is_gpu,
            steps_per_execution=self.steps_per_execution,
            replicas=self.distribution.count,
        )

    def _make_steps(self) -> tuple[TrainStep, TrainStep]:
        """One step of what trains now, and several in one call."""
        recipe, class_weights = self.config.recipe, None
        if recipe.class_weights == "balanced":
            class_weights = balanced_weights(self.data.train.labels, len(self.data.class_names))
        step = make_train_step(
            self.model,
            self.view,
            self.optimizer,
            recipe,
            jit_compile=self.config.jit_compile,
            class_weights=class_weights,
            accumulate=recipe.accumulate,
            ema_model=self.ema_model,
            replicas=self.distribution.count,
            sync_bn=self.config.sync_bn,
            image_dtype=self.data.image_dtype,
        )
        step = self.distribution.step(step, recipe.accumulate)
        steps = make_multi_step(step, self.model, self.data.image_dtype)
        if isinstance(self.loader, DeviceCachedLoader):
            return self.loader.update(step), self.loader.update(steps, several=True)
        return step, steps

    def _model(self) -> keras.Model:
        keras.utils.set_random_seed(self.config.seed)
        if self.given_model is not None:
            check_classes(self.given_model, self.data.shape, len(self.data.class_names))
            return self.given_model
        asked = {key: value for key, value in self.builder.items() if value != _NO_OPTIONS[key]}
        try:
            return build_model(
                self.config.model,
                classes=len(self.data.class_names),
                input_shape=self.data.shape,
                mean=self.data.mean,
                std=self.data.std,
                **asked,
            )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from error

    def _fit(self, about: str) -> None:
        """Train from the newest checkpoint, or from the start, to the last step."""
        config, recipe, data = self.config, self.config.recipe, self.data
        logger = TrainLogger(
            self.run_dir,
            self.schedule.iterations,
            self.loader.steps_per_epoch,
            self.loader.batch_size,
            verbose=self.verbose,
        )
        classes = len(data.class_names)
        self.trainer = Trainer(
            model=self.model,
            optimizer=self.optimizer,
            step=self.steps[0],
            multi_step=self.steps[1],
            steps_per_execution=self.steps_per_execution,
            schedule=self.schedule,
            loader=self.loader,
            evaluate=make_evaluator(self.eval_model, data.validation, classes, self.distribution)
            if len(data.validation)
            else None,
            evaluate_train=make_evaluator(self.eval_model, data.train, classes, self.distribution)
            if config.eval_train
            else None,
            save_best=self._save_best,
            run_dir=self.run_dir,
            evaluate_every=config.evaluate_every,
            checkpoint_every=config.checkpoint_steps,
            checkpoint_seconds=config.checkpoint_seconds,
            logger=logger,
            rollbacks=3 if config.on_nan == "rollback" else 0,
            patience=recipe.early_stopping,
            on_evaluation=make_callbacks(
                self.run_dir.path, self.model, self.eval_model, data, config, self.callbacks, lambda: self.trainer.ended, logger.log
            )
            if self.distribution.is_chief
            else None,
            unfreeze=self._make_unfreeze(logger.log),
            ema_model=self.ema_model,
            distribution=self.distribution,
        )
        logger.log(f"{config.model} on {config.dataset} ({data.source}), recipe {recipe.name}: {recipe.describe()}")
        logger.log(about)
        if config.freeze != "none":
            logger.log(describe_trainable(self.model))
        if self.trainer.resume():
            logger.log(f"resuming at iteration {self.trainer.step} of {self.trainer.iterations}")
        try:
            self.trainer.fit()
        except StopTraining:
            logger.log(f"ended by a callback after {self.trainer.step} iterations")
        finally:
            logger.close()

    def _make_unfreeze(self, log: Callable[[str], None]) -> UnfreezeAt | None:
        config = self.config
        if config.unfreeze_at is None:
            return None
        return UnfreezeAt(config.unfreeze_at, self.model, config.freeze, config.train_bn, self._make_steps, log)

    def _save_best(self, best: dict[str, Any]) -> None:
        if self.distribution.is_chief:
            with all_trainable(self.eval_model):
                save_model(self.eval_model, self.run_dir.path / "best.keras", self.sidecar(best))

    def sidecar(self, metrics: dict[str, Any]) -> dict[str, Any]:
        return make_sidecar(self.config, self.data, self.builder, metrics)

    def _write_report(self, settings: dict[str, Any]) -> dict[str, Any]:
        with all_trainable(self.eval_model):
            return write_run_report(self, settings)

    def _result(self, report: dict[str, Any]) -> TrainingResult:
        course = read_history(self.run_dir.path) if self.trainer.history and self.distribution.is_chief else None
        return TrainingResult(
            model=self.eval_model,
            history=self.trainer.history,
            best=report.get("best"),
            test=report.get("test"),
            report=report,
            run_dir=None if self.config.run_dir is None else self.run_dir.path,
            exact_resume=self.data.exact_resume,
            sidecar=self.sidecar({}),
            course=course,
        )
