"""Trainings by several processes, and what they come to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from resnet_tf.cli.train import parse_options
from resnet_tf.config import make_config
from resnet_tf.training.logs import read_iterations

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ("--dataset", "shapes", "--device", "cpu", "--precision", "float32", "--threads", "1")
FLAGS = (
    *(*SHAPES, "--model", "resnet8_v2", "--iterations", "20", "--batch-size", "128", "--validation-size", "203"),
    *("--recipe", "he2015", "--schedule", "constant", "--learning-rate", "0.001"),
)


def start(*arguments: object) -> "subprocess.Popen[str]":
    """Start `python -m resnet_tf …` in a process group of its own."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "resnet_tf", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object) -> str:
    """Run `python -m resnet_tf …` to its end; return what it printed."""
    process = start(*arguments)
    out, err = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, arguments))} ended with {process.returncode}:\n{out}{err}")
    return out


def alone(folder: Path, *flags: str) -> Path:
    """Train in one process."""
    run("train", *flags, "--run-dir", folder)
    return folder


def together(workers: int, folder: Path, *flags: str) -> Path:
    """Train in several."""
    run("launch", "--workers", workers, "--", "train", *flags, "--run-dir", folder)
    return folder


def variables(folder: Path) -> dict[str, np.ndarray]:
    """All variables of a run as its last checkpoint has them."""
    with np.load(max((folder / "checkpoints").glob("step-*.npz"))) as archive:
        return {key: archive[key] for key in archive.files if key != "state.json"}


def farthest(one: Path, other: Path, weights_only: bool = False) -> float:
    """Largest difference between two runs in any variable, or in the weights alone."""
    mine, theirs = variables(one), variables(other)
    assert mine.keys() == theirs.keys()
    chosen = [key for key in mine if not weights_only or (key.startswith("model/") and "/moving_" not in key)]
    return max(float(np.abs(np.float64(mine[key]) - np.float64(theirs[key])).max()) for key in chosen)


def first_loss(folder: Path) -> float:
    """The loss of a run's first update."""
    return float(read_iterations(folder / "iterations.bin")["loss"][0])


def loss_of_shards(shards: int, *flags: str) -> float:
    """The mean loss of the stock network, fed the first batch in equal shards, on one device."""
    import keras
    import tensorflow as tf

    from resnet_tf.data.cifar import load_dataset
    from resnet_tf.data.prepare import prepare_data
    from resnet_tf.models.registry import build_model

    config = make_config(**parse_options(flags))
    data = prepare_data(load_dataset(config.dataset), config)
    images, labels = data.loader(config.recipe.batch_size, config.seed).batch(0)
    keras.utils.set_random_seed(config.seed)
    network = build_model(
        config.model, classes=len(data.class_names), input_shape=data.shape, mean=data.mean, std=data.std
    )
    losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(part, network(pixels, training=True)).numpy().mean()
        for pixels, part in zip(np.split(images, shards), np.split(labels, shards), strict=True)
    ]
    return float(np.mean(losses))


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that a launcher has started, in their order."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


def is_running(number: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_one(folder: Path, victim: int | None, after: int, *flags: str) -> tuple[float, str]:
    """Launch two workers, kill one when `after` updates are saved; return the seconds until all have ended, and why.

    Without a victim, it is the launcher that is killed.
    """
    launcher = start("launch", "--workers", 2, "--", "train", *flags, "--run-dir", folder)
    saved = folder / "checkpoints" / f"step-{after:09d}.sha256"
    while not saved.exists():
        if launcher.poll() is not None:
            raise RuntimeError(f"the launch ended by itself:\n{launcher.communicate()[1]}")
        time.sleep(0.05)
    workers = children(launcher)
    os.kill(launcher.pid if victim is None else workers[victim], signal.SIGKILL)
    killed = time.monotonic()
    _, err = launcher.communicate()  # to the end of all that hold its output
    took = time.monotonic() - killed
    if launcher.returncode == 0 or any(map(is_running, workers)):
        raise RuntimeError(f"code {launcher.returncode}, still running: {list(filter(is_running, workers))}\n{err}")
    return took, err.strip()
