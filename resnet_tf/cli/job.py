"""A training from its request to its report: where network, data, recipe and loop meet."""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from resnet_tf.cli.finetuning import InitialWeights
from resnet_tf.cli.material import Material, fingerprint_of, make_material, open_images
from resnet_tf.cli.request import Request
from resnet_tf.cli.results import finish, save_model
from resnet_tf.cli.train_options import describe_recipe
from resnet_tf.data.device_loader import DeviceCachedLoader, to_device
from resnet_tf.data.loader import Subset
from resnet_tf.errors import UserError, optional_import
from resnet_tf.fused import fused_view
from resnet_tf.models.registry import build_model
from resnet_tf.recipes import check_validation
from resnet_tf.training.callbacks import Callback, Callbacks, make_callbacks
from resnet_tf.training.distribute import Distribution, make_distribution, worker_lost_error
from resnet_tf.training.evaluator import Evaluator, make_evaluator
from resnet_tf.training.fine_tune import UnfreezeAt, describe_trainable, freeze
from resnet_tf.training.logs import TrainLogger
from resnet_tf.training.optimizer import make_ema, make_optimizer, undecayed_variables
from resnet_tf.training.run_dir import RunDir, check_resumable, saved_statistics
from resnet_tf.training.runtime import Device, choose_device, choose_precision, set_threads
from resnet_tf.training.schedule import Schedule
from resnet_tf.training.step import TrainStep, balanced_weights, make_multi_step, make_train_step
from resnet_tf.training.trainer import Trainer


def run_job(request: Request, folder: RunDir) -> dict[str, Any] | None:
    """Train what is asked for, from the start or from where the run folder is, and report.

    All that can be wrong with the request is found before the folder is touched. Where several workers share the run,
    only the chief writes there.

    Returns:
        The report, as written to report.json; None on other workers than the chief.

    Raises:
        UserError: something in the request, the data or the folder is not as it must be, or a worker is gone.
        Stopped: a signal stopped the training; it is saved.
    """
    try:
        return _run(request, folder)
    except tf.errors.OpError as error:
        lost = worker_lost_error(error)
        if lost is None:
            raise
        raise lost from error


def _run(request: Request, folder: RunDir) -> dict[str, Any] | None:
    known = (None if request.overwrite else folder.settings()) or {}
    threads = set_threads(request.threads or known.get("threads", 0))
    device = choose_device(request.device)
    policy, why = choose_precision(known.get("precision", request.precision), device)
    if request.deterministic:
        tf.config.experimental.enable_op_determinism()
    replicas = make_distribution(request.strategy, request.device, request.replicas)
    images = open_images(request)
    settings = request.settings() | {
        "data.source": images.source,
        "data.fingerprint": fingerprint_of(images),
        "precision": policy,
        "threads": threads,
    }
    pretrained = InitialWeights(request) if request.weights is not None else None
    if pretrained is not None:
        settings["weights.sha256"] = pretrained.digest
    if known:
        check_resumable(folder, known, settings)
    with contextlib.ExitStack() as stack:
        if replicas.strategy is None:
            stack.enter_context(tf.device(device.name))
        if not replicas.is_chief:
            folder = RunDir(folder.path, read_only=True)
        statistics = saved_statistics(known) or (pretrained.statistics if pretrained else None)
        material = make_material(images, request, statistics)
        settings |= {"data.mean": list(material.mean), "data.std": list(material.std)}
        with replicas.scope():
            job = Job(request, material, policy, device, pretrained, replicas)
        folder.lock()
        try:
            if replicas.is_chief and not known and not request.overwrite and folder.settings() is not None:
                raise UserError(f"run folder {folder.path} was started by another process just now; run this again")
            if request.overwrite:
                folder.clear()
            if not known:
                folder.create(settings)
            on = f"device {device.name} ({device.about})"
            if replicas.strategy is not None:
                on += f", {replicas.about}"
            job.train(folder, f"{on}, {threads} threads, precision {policy} ({why})")
            report = finish(job, folder, settings) if replicas.is_chief else None
            replicas.gather([0.0])  # nobody leaves before the chief is done: it would seem lost
            return report
        finally:
            folder.release()


class Job:
    """A run whose data, network and compiled step are ready.

    Attributes:
        model: what trains.
        average: what holds the moving averages of its weights, or None.
        judged: whichever of the two is validated, saved and tested.
    """

    def __init__(
        self,
        request: Request,
        material: Material,
        policy: str,
        device: Device,
        pretrained: InitialWeights | None = None,
        replicas: Distribution | None = None,
    ) -> None:
        """Build the network, its view, the optimizer and the step, in the scope of `replicas`.

        Raises:
            UserError: the builder refuses an option, there are too few images for a batch or replicas too many to
                share it, none to validate on where the recipe goes by them, the training ends before it is to
                unfreeze, or an optional package is missing.
        """
        recipe = request.recipe
        check_validation(recipe, len(material.validation))
        self.replicas = replicas or Distribution()
        self.replicas.check_batch(recipe.batch_size, recipe.accumulate)
        if request.jit_compile and self.replicas.strategy is not None:
            raise UserError("--jit-compile does not go with several devices; leave it out, or add --strategy none")
        length = recipe.length(len(material.train))
        if request.unfreeze_at is not None and request.unfreeze_at >= length:
            raise UserError(
                f"--unfreeze-at {request.unfreeze_at} is not before the end of the training, which has {length} "
                "iterations; give a smaller number, or leave it out"
            )
        self.schedule = Schedule(recipe, length, request.unfreeze_at, request.unfreeze_learning_rate)
        if request.tensorboard_every is not None:
            optional_import("tensorboard", "tensorboard")
            optional_import("matplotlib", "tensorboard")
        self.request, self.material, self.device = request, material, device
        share = self.replicas.index, self.replicas.workers
        self.batches = material.batches(recipe.batch_size, request.seed, share, recipe.accumulate)
        self.builder = pretrained.builder(request) if pretrained else request.builder
        self.model = self._build()
        if pretrained is not None:
            pretrained.fill(self.model)
        self.parameters = self.model.count_params() - sum(
            math.prod(v.shape) for v in self.model.non_trainable_variables
        )
        self.average = None if recipe.ema is None else make_ema(self.model)
        self.eval_model = self.average or self.model
        self.optimizer = make_optimizer(recipe, policy, undecayed_variables(self.model, recipe.decay))
        # Slots for all variables, those that only train later too.
        self.optimizer.build(self.model.trainable_variables)
        freeze(self.model, request.freeze)
        self.view = fused_view(self.model, policy, request.sync_bn)
        self.per_call = request.steps_per_call or _steps_per_call(device, material.shape)
        self.feed = to_device(
            self.batches,
            material.pictures,
            material.policy,
            wish=request.keep_on_device,
            is_gpu=device.is_gpu,
            per_call=self.per_call,
            replicas=self.replicas.count,
        )
        self.step, self.steps = self._functions()

    def _functions(self) -> tuple[TrainStep, TrainStep]:
        """One update of what trains now, and several in one call."""
        recipe, weights = self.request.recipe, None
        if recipe.class_weights == "balanced":
            weights = balanced_weights(self.material.train.labels, len(self.material.class_names))
        step = make_train_step(
            self.model,
            self.view,
            self.optimizer,
            recipe,
            self.request.jit_compile,
            class_weights=weights,
            accumulate=recipe.accumulate,
            ema_model=self.average,
            replicas=self.replicas.count,
            sync_bn=self.request.sync_bn,
        )
        step = self.replicas.step(step, recipe.accumulate)
        steps = make_multi_step(step, self.model)
        if isinstance(self.feed, DeviceCachedLoader):
            return self.feed.update(step), self.feed.update(steps, several=True)
        return step, steps

    def _build(self) -> keras.Model:
        keras.utils.set_random_seed(self.request.seed)
        try:
            return build_model(
                self.request.model,
                classes=len(self.material.class_names),
                input_shape=self.material.shape,
                mean=self.material.mean,
                std=self.material.std,
                **_asked(self.builder),
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def train(self, folder: RunDir, device: str, on_evaluation: Callback | None = None) -> None:
        """Train from the newest checkpoint, or from the start, to the last update.

        Args:
            folder: claimed run folder.
            device: a line on what it runs on.
            on_evaluation: called with all rows of the metrics after each evaluation, in place of curves and event
                files; what it raises ends the training.
        """
        request, recipe, material = self.request, self.request.recipe, self.material
        progress = TrainLogger(folder, self.schedule.iterations, self.batches.steps_per_epoch, recipe.batch_size)
        self.training = Trainer(
            model=self.model,
            optimizer=self.optimizer,
            step=self.step,
            schedule=self.schedule,
            loader=self.feed,
            evaluate=self._evaluation(material.validation) if len(material.validation) else None,
            save_best=lambda best: save_model(self, folder.path / "best.keras", best),
            run_dir=folder,
            evaluate_every=request.evaluate_every,
            checkpoint_every=request.checkpoint_iterations,
            checkpoint_seconds=request.checkpoint_seconds,
            logger=progress,
            rollbacks=request.rollbacks,
            patience=recipe.early_stopping,
            multi_step=self.steps,
            steps_per_execution=self.per_call,
            evaluate_train=self._evaluation(material.train) if request.eval_train else None,
            on_evaluation=on_evaluation or Callbacks(make_callbacks(self, folder.path, progress.log), progress.log),
            unfreeze=None
            if request.unfreeze_at is None
            else UnfreezeAt(
                self.model,
                request.unfreeze_at,
                self._functions,
                progress.log,
                freeze=request.freeze,
                train_bn=request.train_bn,
            ),
            ema_model=self.average,
            distribution=self.replicas,
        )
        progress.log(
            f"{request.model} on {request.dataset} ({material.source}), recipe {recipe.name}: {describe_recipe(recipe)}"
        )
        progress.log(device)
        if request.freeze != "none":
            progress.log(describe_trainable(self.model))
        if self.training.resume():
            progress.log(f"resuming at iteration {self.training.step} of {self.training.iterations}")
        try:
            self.training.fit()
        finally:
            progress.close()

    def _evaluation(self, part: Subset) -> Evaluator:
        return make_evaluator(self.eval_model, part, len(self.material.class_names), self.replicas)


def _asked(builder: dict[str, Any]) -> dict[str, Any]:
    """The builder's options without those that ask for nothing: not every network has each of them."""
    nothing = {"shortcut": None, "width": 1, "use_bias": False}
    return {key: value for key, value in builder.items() if value != nothing[key]}


def _steps_per_call(device: Device, shape: Sequence[int]) -> int:
    """A GPU is through with a step on small images before Python can ask for the next; a CPU never is."""
    small = max(shape[:2]) <= 64
    return 10 if device.is_gpu and small else 1
