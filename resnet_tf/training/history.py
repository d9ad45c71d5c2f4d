"""What a run leaves behind of its course: a record per iteration and a row per evaluation."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from resnet_tf.files import write_text

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


class IterationLog:
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
