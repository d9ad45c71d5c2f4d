"""Devices, precision, threads and signals of a run."""

import os
import platform
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import tensorflow as tf

from resnet_tf.errors import UserError
from resnet_tf.training.cluster import WORKERS_HERE


@dataclass(frozen=True)
class Device:
    """A device as TensorFlow names it ("/CPU:0"), and as people do."""

    name: str
    about: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return "GPU" in self.name


def set_threads(threads: int) -> int:
    """Let each operation use this many threads, 0 for `default_threads`; to be called before any operation runs.

    Returns:
        The number in force. It decides the order of sums, and so the last bits of every result.

    Raises:
        UserError: operations have already run with another number.
    """
    threads = threads or default_threads()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        if tf.config.threading.get_intra_op_parallelism_threads() != threads:
            raise UserError(f"the number of threads cannot change to {threads} in this process: {error}") from error
    return threads


def default_threads() -> int:
    """One per core; processes that `launch` has started on one machine share its cores."""
    return max(1, available_cores() // int(os.environ.get(WORKERS_HERE, "1")))


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_device(wish: str) -> Device:
    """The device for "auto", "cpu", "gpu" or "gpu:N"; GPUs get memory growth.

    Raises:
        UserError: there is no such device; the message names those that there are.
    """
    kind, _, number = wish.lower().partition(":")
    gpus = tf.config.list_physical_devices("GPU")
    if kind not in ("auto", "cpu", "gpu") or (number and not (kind == "gpu" and number.isdigit())):
        raise UserError(f"--device {wish} is not known; allowed: auto, cpu, gpu, gpu:0, gpu:1, …")
    index = int(number or 0)
    if kind == "cpu" or (kind == "auto" and not gpus):
        cores = available_cores()
        return Device("/CPU:0", f"{_processor()}, {cores} core{'' if cores == 1 else 's'}")
    if index >= len(gpus):
        raise UserError(f"--device {wish}: TensorFlow sees {len(gpus)} GPUs here; use --device cpu or auto")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    details = tf.config.experimental.get_device_details(gpus[index])
    return Device(f"/GPU:{index}", str(details.get("device_name", "GPU")))


def choose_precision(wish: str, device: Device) -> tuple[str, str]:
    """The dtype policy of a run, and why.

    Args:
        wish: a dtype policy, or "auto", which takes the fastest that the device computes natively.
        device: where the run computes.

    Returns:
        "float32", "mixed_bfloat16" or "mixed_float16", and the reason in a few words.
    """
    if wish != "auto":
        return wish, "as asked"
    if device.is_gpu:
        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
        capability = details.get("compute_capability", (0, 0))
        if capability >= (8, 0):
            return "mixed_bfloat16", "the GPU is of the Ampere generation or later"
        if capability >= (7, 0):
            return "mixed_float16", "the GPU has tensor cores, but none for bfloat16"
        return "float32", "the GPU has no tensor cores"
    flags = _processor_flags()
    for flag in ("amx_bf16", "avx512_bf16", "bf16"):
        if flag in flags:
            return "mixed_bfloat16", f"the processor has {flag}"
    return "float32", "the processor has no bfloat16 arithmetic"


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _processor_flags() -> set[str]:
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


def _processor() -> str:
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


class StopRequest:
    """Context in which the first signal asks for a stop and a second one, but a hang-up, ends the process at once.

    Attributes:
        signal: number of the signal that came, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        """Nothing is installed before the context is entered."""
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in self.SIGNALS:
            # nohup has hang-ups ignored, and so they stay.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGHUP:
                return  # a terminal that closes may send several
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
