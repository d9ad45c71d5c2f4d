"""`train()`: a training from what a user asks for to its result."""

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from resnet_tf.config import Precision, TrainConfig, make_config
from resnet_tf.data.prepare import DataArguments, fingerprint_of, open_data, prepare_data
from resnet_tf.data.tf_batches import DeviceCachedLoader, TfData, to_device
from resnet_tf.errors import UserError, optional_import
from resnet_tf.inference import logits_view
from resnet_tf.models.foreign import check_classes, check_trainable, custom_classes, plain_functional
from resnet_tf.models.layers import as_trainable, describe_trainable, freeze
from resnet_tf.models.registry import build_model
from resnet_tf.pretrained.importer import InitialWeights
from resnet_tf.process import ONEDNN
from resnet_tf.recipes import Recipe, check_validation
from resnet_tf.results import TrainingResult, describe_call, make_sidecar, write_run_report
from resnet_tf.runtime import choose_device, choose_precision, lacks_onednn, preserved_random_states, set_threads
from resnet_tf.saving import save_model
from resnet_tf.training.callbacks import StopTraining, as_callbacks, make_callbacks
from resnet_tf.training.distribute import Evaluator, lost_workers_told, make_distribution, make_evaluator
from resnet_tf.training.logs import History, TrainLogger
from resnet_tf.training.run_dir import RunDir, check_resumable, saved_statistics
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.step import (
    StepFunctions,
    balanced_weights,
    make_ema,
    make_multi_step,
    make_optimizer,
    make_train_step,
    undecayed_variables,
)
from resnet_tf.training.trainer import Trainer, UnfreezeAt


def train(
    model: str | keras.Model = "resnet20_v2",
    data: Any = "cifar10",
    *,
    validation: Any = None,
    test: Any = None,
    recipe: str | Recipe | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    callbacks: Callable[[History], None] | Sequence[Callable[[History], None]] = (),
    class_names: Sequence[str] | None = None,
    steps_per_epoch: int | None = None,
    verbose: bool = True,
    command: str | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a network by a recipe, or go on with the run in `run_dir`.

    Args:
        model: name of a network (`list_models()`), or a functional or built sequential `keras.Model` that takes raw
            pixels (0-255) and returns logits or softmax probabilities, which is trained as it is; losses of its own
            (regularizers) are added to the recipe's.
        data: what to train on: a name ("cifar10", "cifar100", "shapes", "folder:PATH", "list:FILE"), a tuple (images
            uint8 (N, H, W, C), labels (N,) or one-hot (N, classes)), a `Dataset`, or a `tf.data.Dataset` of (image
            batch, label batch), which is used with its own batches, order and augmentation.
        validation: likewise (tuple, `Dataset`, `tf.data.Dataset`, folder or list); None splits `validation_size` of the
            training images off, by class and seed (not for tf.data).
        test: likewise; None takes the test images of the data set, False leaves them unread.
        recipe: name of a recipe in `RECIPES`, or a `Recipe`; None takes the paper's for the network, "finetune" for
            image folders and lists and where weights are given.
        run_dir: directory of the run. Where it holds the same run unfinished, that goes on to the bit; where it is
            finished, its result is returned. None uses a temporary directory.
        callbacks: one or several, called with the evaluations so far after each; see `Callback`.
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
    made, call = as_callbacks(callbacks), command or describe_call(model, data, recipe, run_dir, options)
    given = None
    if isinstance(model, keras.Model):
        given = plain_functional(model)
        options = {**options, "model_sha256": check_trainable(given, options)}
        model = re.sub(r"^(functional|sequential)_\d+$", r"\1", given.name)  # Keras counts them on in a process
    elif not isinstance(model, str):
        found = type(model).__name__
        raise UserError(f"model is {found}; expected a name of list_models() or a keras.Model", argument="model")
    named = isinstance(data, str | Path)
    kind = "tf.data" if isinstance(data, tf.data.Dataset) else getattr(data, "name", "arrays")
    config = make_config(
        recipe,
        model=model,
        dataset=str(data) if named else kind,
        run_dir=None if run_dir is None else str(run_dir),
        data_given=not named,
        **options,
    )
    outputs = 0 if given is None else given.output_shape[-1]
    arguments = DataArguments(data, validation, test, class_names, steps_per_epoch, outputs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved_random_states())
        stack.enter_context(lost_workers_told())
        if given is not None:  # what the run saves is read again
            stack.enter_context(keras.saving.custom_object_scope(custom_classes(given)))
        folder = Path(config.run_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        return _Run(config, RunDir(folder), given, arguments, made, verbose, call).result()


@dataclass(eq=False)
class _Run:
    """One run: its parts, made in the order that decides the bits, and its files."""

    config: TrainConfig
    run_dir: RunDir
    given_model: keras.Model | None
    given_data: DataArguments
    callbacks: list[Callable[[History], None]]
    verbose: bool
    command: str

    def result(self) -> TrainingResult:
        """Train, unless that is done already."""
        config, run_dir = self.config, self.run_dir
        known = (None if config.overwrite else run_dir.settings()) or {}
        threads = set_threads(config.threads or known.get("threads", config.threads))
        self.device = device = choose_device(config.device)
        precision = known.get("precision", "auto") if config.precision == "auto" else config.precision
        policy, why = choose_precision(precision, device)
        if config.deterministic:
            tf.config.experimental.enable_op_determinism()
        self.distribution = distribution = make_distribution(config.strategy, config.device, config.replicas)
        raw = open_data(self.given_data, config, print if self.verbose else lambda line: None)
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
                return TrainingResult.load(run_dir.path)
        run_dir.read_only = not distribution.is_chief
        with contextlib.ExitStack() as stack:
            if distribution.strategy is None:
                stack.enter_context(tf.device(device.name))
            statistics = saved_statistics(known) or (weights.statistics if weights else None)
            self.data = prepare_data(raw, config, statistics, self.given_data)
            settings |= {"data.mean": list(self.data.mean), "data.std": list(self.data.std)}
            with distribution.scope():
                self._build(policy, weights)
            run_dir.lock()
            stack.callback(run_dir.release)
            if distribution.is_chief and not known and not config.overwrite and run_dir.settings() is not None:
                raise UserError(f"run folder {run_dir.path} was started by another process just now; run this again")
            if config.overwrite:
                run_dir.clear()
            if not known:
                run_dir.create(settings, self.command)
            distribution.gather([0.0])  # the directory is as the run finds it before anyone reads checkpoints
            shared = "" if distribution.strategy is None else f", {distribution.about}"
            self._fit(f"device {device.name} ({device.about}){shared}, {threads} threads, precision {policy} ({why})")
            report: dict[str, Any] = {"iterations": self.trainer.step}
            if distribution.is_chief:
                with as_trainable(self.frozen):
                    report = write_run_report(self, settings)
            distribution.gather([0.0])  # nobody leaves before the chief is done: it would seem lost
            return TrainingResult.of_run(self, report)

    def _build(self, policy: Precision, weights: InitialWeights | None) -> None:
        """Make loader, network, view, optimizer and step, in the scope of the distribution."""
        config, data, recipe, distribution = self.config, self.data, self.config.recipe, self.distribution
        check_validation(recipe, len(data.validation))
        multiple = recipe.accumulate * distribution.count
        batch_size = recipe.batch_size if isinstance(data, TfData) else recipe.batch_for(len(data.train), multiple)
        distribution.check_batch(batch_size, recipe.accumulate)
        if config.jit_compile and distribution.strategy is not None:
            raise UserError("jit_compile=True does not go with several devices; leave it out, or add strategy='none'")
        loader: Any = data.loader(
            batch_size, config.seed, (distribution.index, distribution.workers), recipe.accumulate
        )
        length = recipe.length_of(loader.steps_per_epoch)
        if config.unfreeze_at is not None and config.unfreeze_at >= length:
            raise UserError(
                f"unfreeze_at={config.unfreeze_at} is not before the end of the training, which has {length} "
                "iterations; give a smaller number, or leave it out"
            )
        self.schedule = Schedule(recipe, length, config.unfreeze_at, config.unfreeze_learning_rate)
        for package in ("tensorboard", "matplotlib") if config.tensorboard else ():
            optional_import(package, "tensorboard")
        self.builder = weights.builder(config) if weights else config.builder
        # The order from here on decides the bits: seed, build, weights, average, optimizer, freeze, view.
        self.model = self._model()
        if weights is not None:
            weights.load_into(self.model)
        self.parameters = sum(math.prod(variable.shape) for variable in self.model.trainable_variables)
        self.ema_model = None if recipe.ema is None else make_ema(self.model)
        self.eval_model = self.ema_model or self.model
        self.optimizer = make_optimizer(recipe, policy, undecayed_variables(self.model, recipe.decay))
        # Slots for all variables, those that only train later too.
        self.optimizer.build(self.model.trainable_variables)
        self.frozen = freeze(self.model, config.freeze)
        self.view = logits_view(self.model, policy, config.sync_bn)
        # A GPU is through with a step on small images before Python can ask for the next; a CPU never is.
        several = self.device.is_gpu and max(data.shape[:2]) <= 64
        self.steps_per_execution = config.steps_per_execution or (10 if several else 1)
        self.loader = to_device(
            loader,
            data.images,
            data.transform,
            keep=config.keep_on_device,
            is_gpu=self.device.is_gpu,
            steps_per_execution=self.steps_per_execution,
            replicas=distribution.count,
        )
        self.steps = self._make_steps()

    def _model(self) -> keras.Model:
        keras.utils.set_random_seed(self.config.seed)
        data = self.data
        if self.given_model is not None:
            check_classes(self.given_model, data.shape, len(data.class_names))
            return self.given_model
        # Not every network has each option: those that ask for nothing stay away.
        asked = {key: value for key, value in self.builder.items() if value not in (None, False, 1)}
        asked |= {"mean": data.mean, "std": data.std}
        try:
            return build_model(self.config.model, classes=len(data.class_names), input_shape=data.shape, **asked)
        except ValueError as error:
            raise UserError(str(error)) from error

    def _make_steps(self) -> StepFunctions:
        """One step of what trains now, and several in one call."""
        recipe, dtype, class_weights = self.config.recipe, self.data.image_dtype, None
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
            image_dtype=dtype,
        )
        step = self.distribution.step(step, recipe.accumulate)
        steps = make_multi_step(step, self.model, dtype)
        if isinstance(self.loader, DeviceCachedLoader):
            return self.loader.update(step), self.loader.update(steps, several=True)
        return step, steps

    def _fit(self, about: str) -> None:
        """Train from the newest checkpoint, or from the start, to the last step."""
        config, data, loader, length = self.config, self.data, self.loader, self.schedule.iterations
        checkpoint_steps, checkpoint_seconds = config.checkpoint_interval
        logger = TrainLogger(self.run_dir, length, loader.steps_per_epoch, loader.batch_size, verbose=self.verbose)
        callbacks = make_callbacks(self, logger.log)
        switch, how = config.unfreeze_at, (self._make_steps, logger.log, self.frozen, config.train_bn)
        self.trainer = Trainer(
            model=self.model,
            optimizer=self.optimizer,
            step_functions=self.steps,
            steps_per_execution=self.steps_per_execution,
            schedule=self.schedule,
            loader=loader,
            evaluate=self._evaluator(data.validation) if len(data.validation) else None,
            evaluate_train=self._evaluator(data.train) if config.eval_train else None,
            save_best=self._save_best,
            run_dir=self.run_dir,
            evaluate_every=config.evaluate_every or max(config.recipe.min_evaluate_every, loader.steps_per_epoch),
            checkpoint_every=checkpoint_steps,
            checkpoint_seconds=checkpoint_seconds,
            logger=logger,
            rollbacks=3 if config.on_nan == "rollback" else 0,
            patience=config.recipe.early_stopping,
            on_evaluation=callbacks,
            unfreeze=None if switch is None else UnfreezeAt(self.model, switch, *how),
            ema_model=self.ema_model,
            distribution=self.distribution,
        )
        with contextlib.closing(logger):
            logger.started(config, data.source, None if isinstance(data, TfData) else len(data.train))
            logger.log(about)
            if not self.device.is_gpu and lacks_onednn():
                logger.log(f"{ONEDNN}=1, set before TensorFlow is imported, makes training faster on this processor")
            if self.model.losses and config.recipe.weight_decay:
                logger.log("the model's own regularizers count beside weight_decay; weight_decay=0 leaves them alone")
            if config.freeze != "none":
                logger.log(describe_trainable(self.model, self.frozen))
            try:
                if self.trainer.resume():
                    logger.log(f"resuming at iteration {self.trainer.step} of {length}")
                self.trainer.fit()
            except StopTraining:
                logger.log(f"ended by a callback after {self.trainer.step} iterations")
            if callbacks is not None:
                callbacks.finish(self.trainer.history)

    def _evaluator(self, subset: Any) -> Evaluator:
        classes = len(self.data.class_names)
        return make_evaluator(self.eval_model, subset, classes, self.distribution, self.data.image_dtype)

    def _save_best(self, best: dict[str, Any]) -> None:
        with as_trainable(self.frozen):
            save_model(self.eval_model, self.run_dir.path / "best.keras", make_sidecar(self, best))
