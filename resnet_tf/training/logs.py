"""Logs of a run: per step, per evaluation, and on the terminal."""

import csv
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from resnet_tf.config import TrainConfig
from resnet_tf.errors import UserError
from resnet_tf.files import COUNT, Between, misfit, read_text, write_text
from resnet_tf.recipes import FINE_TUNING
from resnet_tf.reports.curves import TrainingHistory
from resnet_tf.reports.runs import Settings, clock, read_run, recipe_of
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.schedule import Schedule

COLUMNS = (
    *("iteration", "epoch", "learning_rate", "train_loss", "train_l2", "train_accuracy"),
    *("validation_loss", "validation_accuracy", "train_eval_loss", "train_eval_accuracy"),
    *("images_per_second", "evaluation_seconds", "seconds"),
)
# An evaluation, in metrics.csv and in checkpoints.
_AMOUNT = Between(0, 1e12)
_ROW = {
    **{f"{column}?": float | None for column in COLUMNS},
    **dict.fromkeys(("epoch", "images_per_second", "seconds"), _AMOUNT),
    **dict.fromkeys(("train_loss", "train_accuracy", "validation_accuracy"), float | None),
    "iteration": COUNT[1:],
    "learning_rate": _AMOUNT,
}
_MAX_UNLOGGED = 10**7  # iterations of a run whose log is not there to show them
RECORD = np.dtype([("loss", "<f4"), ("l2", "<f4"), ("accuracy", "<f4")])

History = list[dict[str, Any]]  # one mapping of COLUMNS per evaluation; a missing value is None


def read_iterations(path: Path) -> np.ndarray:
    """Read the training loss (cross-entropy), L2 term and accuracy of every iteration of a run.

    Args:
        path: `iterations.bin` of a run folder.

    Returns:
        Structured float32 array with the fields loss, l2 and accuracy; row i is step i.

    Raises:
        UserError: there is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; give the iterations.bin of a run folder", argument="path")
    return np.fromfile(path, RECORD)


class StepLog:
    """File of one 12-byte record per step, written in blocks."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on after `step` steps, cutting later records off; OSError where the file holds fewer."""
        self._path, self._written, self._unwritten = path, step * RECORD.itemsize, bytearray()
        if step and path.stat().st_size < self._written:
            raise OSError(f"{path} holds fewer than the {step} records that the checkpoint counts on")

    def append(self, results: np.ndarray) -> None:
        """Take the results of some steps, float32 (n, 3), into memory."""
        self._unwritten += np.ascontiguousarray(results, "<f4").tobytes()

    def flush(self) -> None:
        """Bring all records to the disk; where it refuses (OSError), they stay in memory for the next time."""
        with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
            file.truncate(self._written)
            file.seek(self._written)
            file.write(self._unwritten)
            file.flush()
            os.fsync(file.fileno())
        self._written += len(self._unwritten)
        self._unwritten.clear()


class TrainLogger:
    """Prints evaluations and keeps the progress bar, which is shown on terminals and in notebooks only."""

    def __init__(
        self, run_dir: RunDir, iterations: int, steps_per_epoch: int, batch_size: int, verbose: bool = True
    ) -> None:
        self._run_dir, self._verbose = run_dir, verbose
        self._iterations, self._steps_per_epoch, self._batch_size = iterations, steps_per_epoch, batch_size
        self._epoch, self._epoch_began = -1, time.monotonic()
        is_shown = verbose and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self._bar = tqdm(total=iterations, unit="it", dynamic_ncols=True, disable=not is_shown)

    def started(self, config: TrainConfig, source: str, images: int | None) -> None:
        """Say what is trained on what, by which recipe, and where small data made the batch smaller."""
        recipe = config.recipe
        default = ", the default for own images and given weights" if recipe.name == FINE_TUNING else ""
        self.log(f"{config.model} on {config.dataset} ({source}), recipe {recipe.name}{default}: {recipe.describe()}")
        if images is not None and self._batch_size < recipe.batch_size:
            share = f"{100 * recipe.max_batch_share:g} % of the {images} images to train on"
            self.log(f"batches of {self._batch_size} images in place of {recipe.batch_size}: at most {share}")

    def progress(self, step: int, results: np.ndarray, learning_rate: float) -> None:
        """Move the bar to `step`; `results` (n, 3) are loss, L2 and accuracy of the last n steps."""
        if self._bar.disable:
            return
        epoch = step // self._steps_per_epoch
        loss, _, accuracy = results.mean(axis=0)
        values = {"loss": f"{loss:.3f}", "acc": f"{100 * accuracy:.1f}%", "lr": f"{learning_rate:g}"}
        if self._bar.format_dict["rate"]:
            values["img/s"] = f"{self._bar.format_dict['rate'] * self._batch_size:.0f}"
        if epoch != self._epoch:
            epochs, took = -(-self._iterations // self._steps_per_epoch), time.monotonic() - self._epoch_began
            last = f", last {took:.0f}s" if self._epoch >= 0 else ""
            self._bar.set_description(f"epoch {min(epoch + 1, epochs)}/{epochs}{last}", False)
            self._epoch, self._epoch_began = epoch, time.monotonic()
        self._bar.set_postfix(values, refresh=False)
        self._bar.n = step
        self._bar.refresh()

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """Print an evaluation as a line."""
        # By the latest pace, as a run may have moved to another machine; it is rounded, and may be 0.
        left = (self._iterations - metrics["iteration"]) * self._batch_size / max(metrics["images_per_second"], 0.1)
        columns = [f"iteration {metrics['iteration']}/{self._iterations} epoch {metrics['epoch']:g}"]
        for name, key in (("", "train"), ("validation ", "validation")):
            loss, accuracy = metrics[f"{key}_loss"], metrics[f"{key}_accuracy"]
            if accuracy is not None:
                columns.append(f"{name}loss {loss:.4f} accuracy {100 * accuracy:.2f} %")
        columns += [
            f"lr {metrics['learning_rate']:g}",
            f"{metrics['images_per_second']:.0f} images/s",
            f"{clock(metrics['seconds'])} elapsed, {clock(left)} left",
        ]
        self.log(" | ".join(columns))

    def log(self, line: str) -> None:
        """Print a line on stdout, above the bar, and keep it in the log."""
        if self._verbose:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
        self._run_dir.log(line)

    def close(self) -> None:
        self._bar.close()


def write_history(folder: Path, history: History) -> None:
    """Replace metrics.csv and metrics.jsonl by these evaluations; a missing value is an empty field or null."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(folder / "metrics.csv", text.getvalue())
    write_text(folder / "metrics.jsonl", "".join(json.dumps(metrics) + "\n" for metrics in history))


def read_metrics(folder: Path) -> History:
    """The evaluations in a run's metrics.csv; none where it has not been written yet."""
    path = folder / "metrics.csv"
    try:
        history = [
            {key: float(text) if text else None for key, text in fields.items()}
            | {"iteration": int(fields["iteration"])}
            for fields in csv.DictReader(io.StringIO(read_text(path), newline=""))
        ]
        check_history(history)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the run folder again") from error
    return history


def check_history(history: Any) -> None:
    """Raise ValueError where something is not the evaluations of a run."""
    if (found := misfit(history, [_ROW], "evaluation")) is not None:
        raise ValueError(f"it {found}")
    iterations = [metrics["iteration"] for metrics in history]
    if iterations != sorted(set(iterations)):
        raise ValueError("its iterations do not rise")


def read_history(folder: Path) -> TrainingHistory:
    """The losses, learning rates and evaluations of a run, finished or not; UserError where there is none yet."""
    settings, _ = read_run(folder)
    history = read_metrics(folder)
    if not history:
        raise UserError(f"{folder} has no evaluation yet; wait for the end of its first epoch")
    last = history[-1]
    # Epochs are written with four digits: early in a long one that is 0.
    steps_per_epoch = max(1.0, round(last["iteration"] / max(last["epoch"], 1e-4)))
    log = folder / "iterations.bin"
    losses = read_iterations(log)["loss"].astype(np.float64) if log.is_file() else np.empty(0)
    if last["iteration"] > max(_MAX_UNLOGGED, len(losses)):
        raise UserError(f"{folder} has {last['iteration']:,} iterations and no log of them; copy the run folder again")
    learning_rates = _learning_rates(settings, history, int(steps_per_epoch))
    return TrainingHistory(folder.resolve().name, losses[: last["iteration"]], learning_rates, history, steps_per_epoch)


def _learning_rates(settings: Settings, history: History, steps_per_epoch: int) -> np.ndarray:
    """Learning rate of every step so far: the recipe's, or where feedback changed it, that of each evaluation."""
    recipe = recipe_of(settings)
    length = recipe.length_of(steps_per_epoch)
    schedule = Schedule(recipe, length, settings.get("unfreeze_at"), settings.get("unfreeze_learning_rate"))
    schedule.state["warm"] = True
    ends = [metrics["iteration"] for metrics in history]
    observed = [metrics["learning_rate"] for metrics in history]
    if np.isclose([schedule.learning_rate(end - 1) for end in ends], observed).all():
        return np.array([schedule.learning_rate(step) for step in range(ends[-1])])
    return np.repeat(observed, np.diff(ends, prepend=0))
