"""Devices, precision, threads and random states of a run."""

import contextlib
import functools
import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from resnet_tf.config import AnyPrecision, Precision
from resnet_tf.errors import UserError
from resnet_tf.process import ONEDNN, WORKERS_HERE

# A convolution that is not faster by as much loses it to the conversions around it.
_WORTHWHILE = 1.1


@dataclass(frozen=True)
class Device:
    """A device as TensorFlow names it ("/CPU:0"), and as people do."""

    name: str
    about: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU."""
        return "GPU" in self.name

    @property
    def index(self) -> int:
        """Its number among those of its kind."""
        return int(self.name.rpartition(":")[2])


def set_threads(threads: int | None) -> int:
    """Set how many threads sum, which decides the last bits (0: one per core, None: as it is); return the number."""
    if threads is None:
        return tf.config.threading.get_intra_op_parallelism_threads() or available_cores()
    threads = threads or default_threads()
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        if (now := set_threads(None)) != threads:
            raise UserError(
                f"the number of threads cannot change to {threads} in this process, where TensorFlow has begun with "
                f"{now}; start another, and call this before anything that computes"
            ) from error
    return threads


def default_threads() -> int:
    """One per core; processes that `launch` has started on one machine share its cores."""
    return max(1, available_cores() // int(os.environ.get(WORKERS_HERE, "1")))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(device: str) -> Device:
    """The device for "auto", "cpu", "gpu" or "gpu:N"; GPUs get memory growth."""
    kind, _, number = device.lower().partition(":")
    gpus = tf.config.list_physical_devices("GPU")
    if kind not in ("auto", "cpu", "gpu") or (number and not (kind == "gpu" and number.isdigit())):
        raise UserError(f"device={device!r} is not known; allowed: auto, cpu, gpu, gpu:0, gpu:1, …")
    index = int(number or 0)
    if kind == "cpu" or (kind == "auto" and not gpus):
        cores = available_cores()
        processor = _cpuinfo("model name") or platform.processor() or platform.machine()
        return Device("/CPU:0", f"{processor}, {cores} core{'' if cores == 1 else 's'}")
    if index >= len(gpus):
        raise UserError(f"device={device!r}: TensorFlow sees {len(gpus)} GPUs here; use device='cpu' or device='auto'")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    details = tf.config.experimental.get_device_details(gpus[index])
    return Device(f"/GPU:{index}", str(details.get("device_name", "GPU")))


def choose_precision(precision: AnyPrecision, device: Device) -> tuple[Precision, str]:
    """The dtype policy of a run, and why; "auto" takes the fastest that the device computes natively."""
    if precision != "auto":
        return precision, "as asked"
    if device.is_gpu:
        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[device.index])
        capability = details.get("compute_capability", (0, 0))
        if capability >= (8, 0):
            return "mixed_bfloat16", "the GPU is of the Ampere generation or later"
        if capability >= (7, 0):
            return "mixed_float16", "the GPU has tensor cores, but none for bfloat16"
        return "float32", "the GPU has no tensor cores"
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    found = next((flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags), None)
    if found is None:
        return "float32", "the processor has no bfloat16"
    speed = bfloat16_speed()
    why = f"the processor has {found}, in which convolutions run at {speed:.1f} times the speed of float32"
    return ("mixed_bfloat16" if speed > _WORTHWHILE else "float32"), why


@functools.cache
def bfloat16_speed() -> float:
    """How many times as fast as in float32 this processor trains a usual convolution in bfloat16, measured once.

    The instructions do not tell: some processors multiply no faster in them, and pay for the conversions.
    """

    def step_in(dtype: tf.DType) -> Callable[[], object]:
        images, kernel = tf.ones((8, 28, 28, 64), dtype), tf.ones((3, 3, 64, 64), dtype)

        @tf.function
        def step() -> list[tf.Tensor]:
            y = tf.nn.conv2d(images, kernel, 1, "SAME")
            by_images = tf.compat.v1.nn.conv2d_backprop_input(images.shape, kernel, y, [1] * 4, "SAME")
            return [by_images, tf.compat.v1.nn.conv2d_backprop_filter(images, kernel.shape, y, [1] * 4, "SAME")]

        return lambda: [gradient.numpy() for gradient in step()]

    with tf.init_scope(), tf.device("/CPU:0"):
        steps = [step_in(dtype) for dtype in (tf.float32, tf.bfloat16)]
        seconds = [[_seconds(step) for step in steps] for _ in range(12)][2:]
    wide, narrow = (min(times) for times in zip(*seconds, strict=True))
    return wide / narrow


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def lacks_onednn() -> bool:
    """Whether TensorFlow computes without oneDNN because that is its default here: on x86 processors without VNNI."""
    flags = _cpuinfo("flags").split()
    return bool(flags) and ONEDNN not in os.environ and not {"avx512_vnni", "avx_vnni"}.intersection(flags)


@functools.cache
def has_bfloat16_kernels() -> bool:
    """Whether oneDNN computes in bfloat16 here; elsewhere TensorFlow's own kernels also sum in it."""
    return not {"avx512f", "avx_ne_convert"}.isdisjoint(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    """The first value of a key in /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    pairs = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


@contextlib.contextmanager
def preserved_random_states() -> Iterator[None]:
    """Leave the global generators of Python and NumPy, which seeding the initialization resets, as they were."""
    states = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
