"""Several devices or processes that share each batch, and the evaluation of a network by all of them."""

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from resnet_tf.data.loader import Subset
from resnet_tf.errors import UserError
from resnet_tf.inference import compiled_forward, evaluate_batches, logits_view
from resnet_tf.process import ClusterSpec, read_cluster_spec, startup_watchdog
from resnet_tf.training.step import TrainStep

Evaluator = Callable[[], tuple[float, float]]  # gives loss and accuracy
BLOCK = 25  # steps between two looks at the results, so that the device need not wait for the host
_PERIOD = 1.0  # seconds that several workers aim at between two decisions: a signal takes effect then


class Distribution:
    """The `count` replicas of a run, `local` of them in this process, number `index` of `workers` (0: the chief)."""

    def __init__(self, strategy: tf.distribute.Strategy | None = None, workers: int = 1, index: int = 0) -> None:
        self.strategy, self.workers, self.index = strategy, workers, index
        self.count: int = 1 if strategy is None else strategy.num_replicas_in_sync
        self.local = self.count // workers

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @property
    def about(self) -> str:
        return f"{self.count} replicas in {self.workers} process{'es' if self.workers > 1 else ''}"

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where to make variables that all replicas have."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def check_batch(self, batch_size: int, accumulate: int = 1) -> None:
        """Raise UserError where a batch cannot be cut into equal shards, one a replica and microbatch."""
        shards = self.count * accumulate
        if batch_size % shards:
            of = f"{self.count} replicas" + (f" times accumulate={accumulate}" if accumulate > 1 else "")
            advice = f"give a multiple of {shards}, such as {max(1, batch_size // shards) * shards}"
            raise UserError(f"batch_size={batch_size} cannot be shared evenly by {of}; {advice}")

    def step(self, replica_step: TrainStep, microbatches: int = 1) -> TrainStep:
        """The step of all replicas from that of one (`make_train_step`), with the same signature.

        It takes this worker's shard of the batch, of whose microbatches each replica gets its shard, and returns the
        results of the whole batch.
        """
        if self.strategy is None:
            return replica_step
        strategy = self.strategy
        of_replica: Any = replica_step.python_function  # type: ignore[attr-defined]

        @tf.function(input_signature=replica_step.input_signature, autograph=False)  # type: ignore[attr-defined]
        def step(images: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
            shards = self._split(images, microbatches), self._split(labels, microbatches)
            results = strategy.run(of_replica, args=(*shards, tf.identity(learning_rate)))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, results, axis=None)

        return step

    def forward(self, model: keras.Model) -> Callable[[ArrayLike], NDArray[np.float32]]:
        """Compile inference on this worker's devices: uint8 (B, H, W, C) to the model's output (B, classes)."""
        strategy = self.strategy
        assert strategy is not None
        pixels = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)

        @tf.function(input_signature=[pixels], autograph=False)
        def run(images: tf.Tensor) -> list[tf.Tensor]:
            outputs = strategy.run(lambda shard: model(shard, training=False), args=(self._split(images),))
            return list(strategy.experimental_local_results(outputs))

        def forward(images: ArrayLike) -> NDArray[np.float32]:
            batch = np.asarray(images)
            # Every replica gets as many images; what pads the last one is cut off again.
            padded = np.concatenate([batch, np.repeat(batch[-1:], -len(batch) % self.local, axis=0)])
            return np.concatenate([np.asarray(output) for output in run(padded)])[: len(batch)]

        return forward

    def gather(self, numbers: Sequence[float]) -> NDArray[np.float64]:
        """The numbers of every worker, float64 (workers, n); all workers must ask for it at the same moment."""
        own = np.asarray(numbers, np.float64)
        if self.workers == 1:
            return own[None]
        table = np.zeros((self.workers, len(own)))
        table[self.index] = own
        return np.asarray(self._sum_over_workers(table))

    def _split(self, batch: tf.Tensor, microbatches: int = 1) -> Any:
        """The rows of each local replica, in order, as a value that differs by replica."""
        assert self.strategy is not None
        with tf.device("CPU:0"):  # lest all of it goes to the first GPU
            grouped = tf.reshape(batch, tf.concat([[microbatches, self.local, -1], tf.shape(batch)[1:]], axis=0))
            shards = [
                tf.ensure_shape(tf.reshape(shard, tf.concat([[-1], tf.shape(batch)[1:]], axis=0)), batch.shape)
                for shard in tf.unstack(grouped, num=self.local, axis=1)
            ]
        first = self.index * self.local
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: shards[context.replica_id_in_sync_group - first]
        )

    @functools.cached_property
    def _sum_over_workers(self) -> Callable[[NDArray[np.float64]], tf.Tensor]:
        strategy, first = self.strategy, self.index * self.local
        assert strategy is not None

        @tf.function(reduce_retracing=True)
        def total(values: tf.Tensor) -> tf.Tensor:
            # A worker's first replica has its values, the others have zeros.
            summands = strategy.experimental_distribute_values_from_function(
                lambda context: values if context.replica_id_in_sync_group == first else tf.zeros_like(values)
            )
            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(summands,)), axis=None)

        return total


def make_distribution(strategy: str, device: str, replicas: int | None = None) -> Distribution:
    """Start strategy "auto", "none", "mirrored", "multiworker" or "tpu" on device "auto", "cpu", "gpu" or "gpu:N".

    To be called before any operation runs, after `set_threads`. "auto" takes "multiworker" where TF_CONFIG names
    several workers, "mirrored" where this machine has several GPUs and none was picked. `replicas` is how many GPUs
    "mirrored" uses, or into how many devices it divides the CPU.
    """
    gpus = [] if device.startswith("cpu") else tf.config.list_physical_devices("GPU")
    cluster = read_cluster_spec()
    if strategy == "auto":
        several = len(gpus) > 1 and ":" not in device
        strategy = "multiworker" if cluster and len(cluster.addresses) > 1 else "mirrored" if several else "none"
    if replicas is not None and strategy != "mirrored":
        raise UserError(f"replicas=… says how many devices strategy='mirrored' uses; the strategy here is {strategy}")
    if strategy != "none" and ":" in device:
        raise UserError(f"device={device!r} is one device; with strategy={strategy!r} give device='gpu' or 'cpu'")
    if strategy == "multiworker":
        return _multiworker(cluster, device)
    if strategy == "mirrored":
        return Distribution(_mirrored(len(gpus), replicas))
    return Distribution(_tpu() if strategy == "tpu" else None)


def _mirrored(gpus: int, replicas: int | None) -> tf.distribute.Strategy:
    if gpus:
        count = replicas or gpus
        if count > gpus:
            raise UserError(f"replicas={count}: TensorFlow sees {gpus} GPUs here")
        return tf.distribute.MirroredStrategy([f"GPU:{number}" for number in range(count)])
    if replicas is None:
        raise UserError("strategy='mirrored' finds no GPUs; add replicas=N to divide the CPU into N logical devices")
    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # this process has its devices already; perhaps they are as many
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    if len(tf.config.list_logical_devices("CPU")) != replicas:
        raise UserError(f"the CPU cannot be divided into {replicas} in this process any more; start a new one")
    return tf.distribute.MirroredStrategy(
        [f"CPU:{number}" for number in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _multiworker(cluster: ClusterSpec | None, device: str) -> Distribution:
    if cluster is None:
        raise UserError("strategy='multiworker' needs TF_CONFIG; here: resnet-tf launch --workers N -- train …")
    if device.startswith("cpu"):
        tf.config.set_visible_devices([], "GPU")
    with startup_watchdog(cluster):
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            address = cluster.addresses[cluster.index]
            raise UserError(
                f"worker {cluster.index} cannot take its place at {address} ({error.message}); is the port in use?"
            ) from error
        distribution = Distribution(strategy, len(cluster.addresses), cluster.index)
        distribution.gather([0.0])  # the strategy is there before the others are
    if threading.current_thread() is threading.main_thread():
        # TensorFlow takes SIGTERM for itself, and then does nothing about it.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return distribution


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"strategy='tpu' finds no TPU ({reason}); use another strategy=… or device=…") from error


def make_evaluator(
    model: keras.Model, subset: Subset, classes: int, distribution: Distribution, image_dtype: tf.DType = tf.uint8
) -> Evaluator:
    """A function for loss and accuracy on a subset: each worker scores its shard, and all get the same numbers."""
    view = logits_view(model)
    forward = compiled_forward(view, image_dtype) if distribution.strategy is None else distribution.forward(view)
    shard = subset.shard(distribution.index, distribution.workers)

    def evaluate() -> tuple[float, float]:
        sums = np.zeros(3)
        if len(shard):
            result = evaluate_batches(forward, shard.batches(), kind="logits", classes=classes)
            if distribution.workers == 1:
                return result.loss, result.top1
            sums[:] = result.loss * result.images, result.top1 * result.images, result.images
        loss, right, images = distribution.gather(sums.tolist()).sum(axis=0).tolist()
        return loss / images, round(right) / images

    return evaluate


@contextlib.contextmanager
def lost_workers_told() -> Iterator[None]:
    """Say what an error of a collective operation means, where it means that a worker is gone."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise UserError(
            "another worker has ended or cannot be reached; start all workers again with the same command, "
            "and they go on from the last checkpoint"
        ) from error


class DecisionSync:
    """Makes all workers stop and save at the same step: they compare notes every so many, as the chief's clock says."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self.alone = distribution.workers == 1
        self._block = BLOCK if self.alone else 1
        self._began = time.monotonic()

    def due(self, steps: int, known_to_all: bool, known_here: bool) -> bool:
        """Whether to decide `steps` steps after the last decision, given what all workers or this one has to do."""
        return known_to_all or steps >= self._block or (known_here and self.alone)

    def sync_decisions(self, steps: int, signal: int | None, save: bool) -> tuple[int | None, bool]:
        """The signal that stops all workers, if any has got one, and whether all save, given what this one knows."""
        if self.alone:
            return signal, save
        took = (time.monotonic() - self._began) / max(1, steps)
        block = max(1, min(BLOCK, int(_PERIOD / max(took, 1e-9))))
        notes = self._distribution.gather([float(signal or 0), float(save), float(block)])
        self._block = int(notes[0, 2])
        return int(notes[:, 0].max()) or None, bool(notes[0, 1])

    def restart_clock(self) -> None:
        """Note that the next step begins: evaluations and checkpoints do not count as its time."""
        self._began = time.monotonic()
