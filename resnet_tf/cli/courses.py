"""Run folders as the pictures and tables take them. Imports no TensorFlow."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resnet_tf.errors import UserError
from resnet_tf.evaluation.course import Course
from resnet_tf.recipes import Recipe
from resnet_tf.training.history import read_iterations
from resnet_tf.training.run_folder import RunFolder
from resnet_tf.training.schedule import Schedule


def read_course(folder: Path) -> Course:
    """The course of a run, finished or not, from its folder.

    Raises:
        UserError: the folder holds no run, or one that has not been evaluated yet, or a file is damaged.
    """
    settings = RunFolder(folder).settings()
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
    return Course(folder.resolve().name, losses[: last["iteration"]], rates, rows, steps_per_epoch)


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
