"""Logs of a run: per step, per evaluation, and on the terminal."""

import csv
import dataclasses
import datetime
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_tf.errors import UserError
from resnet_tf.files import write_text
from resnet_tf.recipes import Recipe
from resnet_tf.reports.curves import TrainingHistory
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.schedule import Schedule

COLUMNS = (
    "iteration",
    "epoch",
    "learning_rate",
    "train_loss",
    "train_l2",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "train_eval_loss",
    "train_eval_accuracy",
    "images_per_second",
    "evaluation_seconds",
    "seconds",
)
RECORD = np.dtype([("loss", "<f4"), ("l2", "<f4"), ("accuracy", "<f4")])


def read_iterations(path: Path) -> np.ndarray:
    """The training loss (cross-entropy), L2 term and accuracy of every iteration of a run.

    Args:
        path: `iterations.bin` of a run folder.

    Returns:
        Structured float32 array with the fields loss, l2 and accuracy; row i is update i.
    """
    return np.fromfile(path, RECORD)


class StepLog:
    """File of one 12-byte record per update, written in blocks."""

    def __init__(self, path: Path, step: int) -> None:
        """Go on with the log of a run that has done `step` updates; later records are cut off.

        Raises:
            OSError: the file cannot be written, or holds fewer records than updates were done.
        """
        self._path = path
        self._written = step * RECORD.itemsize
        self._unwritten = bytearray()
        if step and path.stat().st_size < self._written:
            raise OSError(f"{path} holds fewer than the {step} records that the checkpoint counts on")

    def append(self, results: np.ndarray) -> None:
        """Take the results of some updates, float32 (n, 3), into memory."""
        self._unwritten += np.ascontiguousarray(results, "<f4").tobytes()

    def flush(self) -> None:
        """Bring all records to the disk; on failure they stay in memory for the next time.

        Raises:
            OSError: the disk is full, read-only or gone.
        """
        with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
            file.truncate(self._written)
            file.seek(self._written)
            file.write(self._unwritten)
            file.flush()
            os.fsync(file.fileno())
        self._written += len(self._unwritten)
        self._unwritten.clear()


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replace metrics.csv and metrics.jsonl by these rows; a missing value is an empty field or null.

    Raises:
        OSError: the files cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "metrics.csv", text.getvalue())
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


class Progress:
    """Prints evaluations and keeps the bar; quiet between evaluations where stderr is no terminal."""

    def __init__(self, folder: RunDir, iterations: int, steps_per_epoch: int, batch_size: int) -> None:
        """Show a run of `iterations` updates; `folder` keeps the log."""
        self._folder = folder
        self._iterations = iterations
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._epoch_began = time.monotonic()
        self._epoch = -1
        self._bar = tqdm(total=iterations, unit="it", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def progress(self, step: int, results: np.ndarray, learning_rate: float) -> None:
        """Move the bar to `step`; `results` (n, 3) are loss, L2 and accuracy of the last n updates."""
        if self._bar.disable:
            return
        epoch = step // self._steps_per_epoch
        values = {
            "loss": f"{results[:, 0].mean():.3f}",
            "acc": f"{100 * results[:, 2].mean():.1f}%",
            "lr": f"{learning_rate:g}",
        }
        if self._bar.format_dict["rate"]:
            values["img/s"] = f"{self._bar.format_dict['rate'] * self._batch_size:.0f}"
        if epoch != self._epoch:
            self._bar.set_description(f"epoch {epoch + 1}, last {time.monotonic() - self._epoch_began:.0f}s", False)
            self._epoch, self._epoch_began = epoch, time.monotonic()
        self._bar.set_postfix(values, refresh=False)
        self._bar.n = step
        self._bar.refresh()

    def evaluated(self, row: dict[str, Any]) -> None:
        """Print a row of the metrics as a line."""
        # By the latest pace, as a run may have moved to another machine; it is rounded, and may be 0.
        left = (self._iterations - row["iteration"]) * self._batch_size / max(row["images_per_second"], 0.1)
        parts = [
            f"iteration {row['iteration']}/{self._iterations} epoch {row['epoch']:g}",
            f"loss {row['train_loss']:.4f} accuracy {100 * row['train_accuracy']:.2f} %",
        ]
        if row["validation_accuracy"] is not None:
            accuracy = 100 * row["validation_accuracy"]
            parts.append(f"validation loss {row['validation_loss']:.4f} accuracy {accuracy:.2f} %")
        parts += [
            f"lr {row['learning_rate']:g}",
            f"{row['images_per_second']:.0f} images/s",
            f"{clock(row['seconds'])} elapsed, {clock(left)} left",
        ]
        self.log(" | ".join(parts))

    def log(self, line: str) -> None:
        """Print a line on stdout, above the bar, and keep it in the log."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
        self._folder.log(line)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(datetime.timedelta(seconds=round(seconds)))


def read_history(folder: Path) -> TrainingHistory:
    """The course of a run, finished or not, from its folder.

    Raises:
        UserError: the folder holds no run, or one that has not been evaluated yet, or a file is damaged.
    """
    settings = RunDir(folder).settings()
    if settings is None:
        raise UserError(f"{folder} holds no run; name the folder that train wrote (--run-dir)")
    rows = read_rows(folder)
    if not rows:
        raise UserError(f"{folder} has no evaluation yet; wait for the end of its first epoch")
    last = rows[-1]
    # Epochs are written with four digits: early in a long one that is 0.
    steps_per_epoch = max(1.0, round(last["iteration"] / max(last["epoch"], 1e-4)))
    log = folder / "iterations.bin"
    losses = read_iterations(log)["loss"].astype(np.float64) if log.exists() else np.empty(0)
    rates = _rates(settings, rows, int(steps_per_epoch))
    return TrainingHistory(folder.resolve().name, losses[: last["iteration"]], rates, rows, steps_per_epoch)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv, a missing value as None; no rows where it has not been written yet.

    Raises:
        UserError: it is damaged.
    """
    path = folder / "metrics.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [_row(fields) for fields in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the run folder again") from error


def _row(fields: dict[str, str]) -> dict[str, Any]:
    return {key: float(text) if text else None for key, text in fields.items()} | {
        "iteration": int(fields["iteration"])
    }


def _rates(settings: dict[str, Any], rows: list[dict[str, Any]], steps_per_epoch: int) -> np.ndarray:
    """Learning rate of every update so far: the recipe's, or where feedback changed it, that of each evaluation."""
    names = {field.name for field in dataclasses.fields(Recipe)}
    values = {key.removeprefix("recipe."): value for key, value in settings.items() if key.startswith("recipe.")}
    recipe = Recipe(about="", **{key: value for key, value in values.items() if key in names})
    length = recipe.iterations or max(1, round((recipe.epochs or 0) * steps_per_epoch))
    schedule = Schedule(recipe, length, settings.get("unfreeze_at"), settings.get("unfreeze_learning_rate"))
    schedule.state["warm"] = True
    rates = np.array([schedule.learning_rate(step) for step in range(rows[-1]["iteration"])])
    if all(np.isclose(rates[row["iteration"] - 1], row["learning_rate"]) for row in rows):
        return rates
    starts = [0, *(row["iteration"] for row in rows[:-1])]
    return np.repeat(
        [row["learning_rate"] for row in rows], [row["iteration"] - s for s, row in zip(starts, rows, strict=True)]
    )
