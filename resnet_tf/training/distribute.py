"""Several devices or processes that share each batch."""

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from resnet_tf.errors import UserError
from resnet_tf.training.cluster import ClusterSpec, deadline, read_cluster_spec
from resnet_tf.training.state import Peers
from resnet_tf.training.step import TrainStep

STRATEGIES = ("auto", "none", "mirrored", "multiworker", "tpu")


class Distribution:
    """All replicas of a run, those of the other workers too.

    Attributes:
        strategy: TensorFlow's, or None where the run has one device.
        count: replicas in all.
        workers: processes that share the run.
        index: which of them this is.
        local: replicas of this process.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None, workers: int = 1, index: int = 0) -> None:
        """Take a strategy, and this process's place among its workers."""
        self.strategy = strategy
        self.count: int = 1 if strategy is None else strategy.num_replicas_in_sync
        self.workers, self.index = workers, index
        self.local = self.count // workers
        self._total: Any = None

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what the run writes."""
        return self.index == 0

    @property
    def about(self) -> str:
        """In a few words, who shares the work."""
        return f"{self.count} replicas in {self.workers} process{'es' if self.workers > 1 else ''}"

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where variables are made that all replicas have."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def check_batch(self, batch_size: int, accumulate: int = 1) -> None:
        """Find out whether a batch can be shared.

        Raises:
            UserError: it cannot be cut into equal parts.
        """
        parts = self.count * accumulate
        if batch_size % parts:
            of = f"{self.count} replicas" + (f" times --accumulate {accumulate}" if accumulate > 1 else "")
            raise UserError(
                f"--batch-size {batch_size} cannot be shared evenly by {of}; give a multiple of {parts}, such as "
                f"{max(1, batch_size // parts) * parts}"
            )

    def step(self, replica_step: TrainStep, parts: int = 1) -> TrainStep:
        """The update of all replicas from that of one of them, with the same signature.

        Args:
            replica_step: a `make_train_step` for this number of replicas.
            parts: equal parts of a batch that follow one another; replicas share each of them.

        Returns:
            step(images uint8 (B, H, W, C), labels int32 (B,), learning_rate float32 ()) -> float32 (3,), where B is
            this worker's share of the batch, and the results are those of the whole batch.
        """
        if self.strategy is None:
            return replica_step
        strategy = self.strategy
        of_replica: Any = replica_step.python_function  # type: ignore[attr-defined]

        @tf.function(input_signature=replica_step.input_signature)  # type: ignore[attr-defined]
        def step(images: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
            shares = self._split(images, parts), self._split(labels, parts)
            results = strategy.run(of_replica, args=(*shares, tf.identity(learning_rate)))
            return strategy.reduce(tf.distribute.ReduceOp.SUM, results, axis=None)

        return step

    def forward(self, network: keras.Model) -> Callable[[ArrayLike], NDArray[np.float32]]:
        """Compile inference on this worker's devices: uint8 (B, H, W, C) to the network's output (B, classes)."""
        strategy = self.strategy
        assert strategy is not None
        pixels = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)

        @tf.function(input_signature=[pixels])
        def run(images: tf.Tensor) -> list[tf.Tensor]:
            outputs = strategy.run(lambda part: network(part, training=False), args=(self._split(images),))
            return list(strategy.experimental_local_results(outputs))

        def forward(images: ArrayLike) -> NDArray[np.float32]:
            batch = np.asarray(images)
            # Every replica gets as many images; what fills up the last one is cut off again.
            filled = np.concatenate([batch, np.repeat(batch[-1:], -len(batch) % self.local, axis=0)])
            return np.concatenate([np.asarray(part) for part in run(filled)])[: len(batch)]

        return forward

    def gather(self, numbers: Sequence[float]) -> NDArray[np.float64]:
        """The numbers of every worker, float64 (workers, n); all workers must ask for it at the same moment."""
        own = np.asarray(numbers, np.float64)
        if self.workers == 1:
            return own[None]
        rows = np.zeros((self.workers, len(own)))
        rows[self.index] = own
        return self._sum(rows.ravel()).reshape(rows.shape)

    def from_chief(self, payload: bytes) -> bytes:
        """The chief's bytes, on every worker; all workers must ask for it at the same moment."""
        if self.workers == 1:
            return payload
        length = int(self.gather([len(payload)])[0, 0])
        if not length:
            return b""
        words = np.zeros(-(-length // 8), np.int64)
        if self.is_chief:
            words = np.frombuffer(payload.ljust(8 * len(words), b"\0"), np.int64)
        return self._sum(words).tobytes()[:length]

    def _split(self, batch: tf.Tensor, parts: int = 1) -> Any:
        """The rows of each local replica, in order, as a value that differs by replica."""
        assert self.strategy is not None
        with tf.device("CPU:0"):  # lest all of it goes to the first GPU
            rows = tf.reshape(batch, tf.concat([[parts, self.local, -1], tf.shape(batch)[1:]], axis=0))
            shares = [
                tf.ensure_shape(tf.reshape(share, tf.concat([[-1], tf.shape(batch)[1:]], axis=0)), batch.shape)
                for share in tf.unstack(rows, num=self.local, axis=1)
            ]
        first = self.index * self.local
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group - first]
        )

    def _sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over workers."""
        if self._total is None:
            self._total = self._make_total()
        return np.asarray(self._total(values))

    def _make_total(self) -> Callable[[NDArray[Any]], tf.Tensor]:
        strategy, first = self.strategy, self.index * self.local
        assert strategy is not None

        @tf.function(reduce_retracing=True)
        def total(values: tf.Tensor) -> tf.Tensor:
            parts = strategy.experimental_distribute_values_from_function(
                lambda context: values if context.replica_id_in_sync_group == first else tf.zeros_like(values)
            )
            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(parts,)), axis=None)

        return total


def make_distribution(wish: str, device: str, replicas: int | None = None) -> Distribution:
    """Start the strategy that is asked for; to be called before any operation runs, but after `set_threads`.

    Args:
        wish: one of `STRATEGIES`; "auto" takes "multiworker" where TF_CONFIG names several workers, "mirrored" where
            this machine has several GPUs and none was picked, and "none" otherwise.
        device: "auto", "cpu", "gpu" or "gpu:N".
        replicas: how many GPUs "mirrored" uses, all where None; on CPUs, into how many logical devices to divide it.

    Raises:
        UserError: the devices are not there, or the wishes contradict each other.
    """
    gpus = [] if device.startswith("cpu") else tf.config.list_physical_devices("GPU")
    cluster = read_cluster_spec()
    if wish == "auto":
        several = len(gpus) > 1 and ":" not in device
        wish = "multiworker" if cluster and len(cluster.addresses) > 1 else "mirrored" if several else "none"
    if replicas is not None and wish != "mirrored":
        raise UserError(f"--replicas says how many devices --strategy mirrored uses; the strategy here is {wish}")
    if wish != "none" and ":" in device:
        raise UserError(f"--device {device} is one device; with --strategy {wish} give --device gpu or cpu")
    if wish == "multiworker":
        if cluster is None:
            raise UserError(
                "--strategy multiworker needs TF_CONFIG; on one machine use: resnet-tf launch --workers N -- train …"
            )
        return _multiworker(cluster, device)
    if wish == "mirrored":
        return Distribution(_mirrored(len(gpus), replicas))
    return Distribution(_tpu() if wish == "tpu" else None)


def _mirrored(gpus: int, replicas: int | None) -> tf.distribute.Strategy:
    if gpus:
        count = replicas or gpus
        if count > gpus:
            raise UserError(f"--replicas {count}: TensorFlow sees {gpus} GPUs here")
        return tf.distribute.MirroredStrategy([f"GPU:{number}" for number in range(count)])
    if replicas is None:
        raise UserError("--strategy mirrored finds no GPUs; add --replicas N to divide the CPU into N logical devices")
    cpu = tf.config.list_physical_devices("CPU")[0]
    with contextlib.suppress(RuntimeError):  # this process has its devices already; perhaps they are as many
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    if len(tf.config.list_logical_devices("CPU")) != replicas:
        raise UserError(f"the CPU cannot be divided into {replicas} in this process any more; start a new one")
    return tf.distribute.MirroredStrategy(
        [f"CPU:{number}" for number in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def _multiworker(cluster: ClusterSpec, device: str) -> Distribution:
    if device.startswith("cpu"):
        tf.config.set_visible_devices([], "GPU")
    with deadline(cluster):
        try:
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            address = cluster.addresses[cluster.index]
            raise UserError(
                f"worker {cluster.index} cannot take its place at {address} ({error.message}); is the port in use?"
            ) from error
        replicas = Distribution(strategy, len(cluster.addresses), cluster.index)
        replicas.gather([0.0])  # the strategy is there before the others are
    # TensorFlow takes SIGTERM for itself, and then does nothing about it.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return replicas


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu="local")
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--strategy tpu finds no TPU ({reason}); use another --strategy or --device") from error


def worker_lost_error(error: Exception) -> UserError | None:
    """What an error of a collective operation means, where it means that a worker is gone."""
    if not isinstance(error, tf.errors.UnavailableError | tf.errors.AbortedError | tf.errors.CancelledError):
        return None
    return UserError(
        "another worker has ended or cannot be reached; start all workers again with the same command, "
        "and they go on from the last checkpoint"
    )


BLOCK = 25  # iterations between two looks at the results, so that the device need not wait for the host
_PERIOD = 1.0  # seconds that several workers aim at between two looks: a signal takes effect then


class DecisionSync:
    """Makes one decision of what each worker's clock and signals say.

    Clocks differ, and a signal reaches the workers at different moments; but a worker that stops or saves alone is
    missed in the next step. So they compare notes, where no one has to wait for it: at steps that all know to be a
    look, every so many steps as the chief says.

    Attributes:
        alone: whether there is only one worker.
    """

    def __init__(self, peers: Peers) -> None:
        """Take the workers of a run."""
        self._peers = peers
        self.alone = peers.workers == 1
        self._block = BLOCK if self.alone else 1
        self._began = time.monotonic()

    def due(self, steps: int, certain: bool, own: bool) -> bool:
        """Whether to look up `steps` updates after the last look.

        Args:
            steps: updates since then.
            certain: whether something is to be done that all workers know of.
            own: whether there is something that this worker alone knows of.
        """
        return certain or steps >= self._block or (own and self.alone)

    def reach(self, steps: int, signal: int | None, save: bool) -> tuple[int | None, bool]:
        """The signal that stops all workers, if one has come to any, and whether all save: as the chief's clock says.

        Args:
            steps: updates since the last look.
            signal: that has come to this worker.
            save: whether a checkpoint is due here.
        """
        if self.alone:
            return signal, save
        took = (time.monotonic() - self._began) / max(1, steps)
        block = max(1, min(BLOCK, int(_PERIOD / max(took, 1e-9))))
        notes = self._peers.gather([float(signal or 0), float(save), float(block)])
        self._block = int(notes[0, 2])
        return int(notes[:, 0].max()) or None, bool(notes[0, 1])

    def go_on(self) -> None:
        """Note that the next step begins."""
        self._began = time.monotonic()
