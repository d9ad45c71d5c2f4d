"""A run's progress: a bar on a terminal, a line per evaluation everywhere."""

import datetime
import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_tf.training.run_folder import RunFolder


class Progress:
    """Prints evaluations and keeps the bar; quiet between evaluations where stderr is no terminal."""

    def __init__(self, folder: RunFolder, iterations: int, steps_per_epoch: int, batch_size: int) -> None:
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
        self.say(" | ".join(parts))

    def say(self, line: str) -> None:
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
