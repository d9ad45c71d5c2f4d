"""The run directory: one process at a time, one set of settings for its whole life."""

import os
import platform
import time
from pathlib import Path
from typing import IO, Any

from resnet_tf.config import DEFAULTS, TrainConfig
from resnet_tf.data.dataset import short_name
from resnet_tf.errors import UserError
from resnet_tf.files import RUN_FILES, write_json, write_text
from resnet_tf.recipes import default_recipe
from resnet_tf.reports.runs import COMMAND, PAGE, REPORT, SETTINGS, Settings, describe_diff, read_report, read_settings

_FOLDERS = ("checkpoints", "tensorboard")
# What follows from other settings and from files; of these, the two digests alone decide whether a run can go on.
_DERIVED = ("data.source", "data.fingerprint", "data.mean", "data.std", "weights.sha256")


class RunDir:
    """Settings, log, checkpoints, models and report of a run; made by `lock`, and never written with `read_only`.

    `argument` names it in messages.
    """

    def __init__(self, path: Path, argument: str = "run_dir") -> None:
        self.path, self.read_only = path, False
        self._kind = f"{argument.removesuffix('_dir')} folder"
        self._other = f"give another {argument}=…"
        self.advice = self._other + (", or overwrite=True to start anew" if argument == "run_dir" else "")
        self.checkpoints = path / "checkpoints"
        self._lock: IO[str] | None = None

    def lock(self) -> None:
        """Make the folder and take its lock, which ends with the process; UserError where another process has it."""
        if self.read_only:
            return
        import fcntl  # here, because runs can be read on systems that have none

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "a+", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{self._kind} {self.path} cannot be written ({error.strerror}); {self._other}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise UserError(f"{self._kind} {self.path} is in use by {owner}; wait for it or {self._other}") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        lock.flush()
        self._lock = lock
        for leftover in self.path.rglob(".new-*"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def settings(self) -> Settings | None:
        """The settings that the run was started with, or None for a new run."""
        self.check()
        path = self.path / SETTINGS
        return read_settings(path, self.advice) if path.exists() else None

    def report(self) -> dict[str, Any] | None:
        """The report of a finished run, or None."""
        path = self.path / REPORT
        return read_report(path, self.advice) if path.exists() else None

    def check(self) -> None:
        """Raise UserError where the folder holds other things than a run; touches nothing."""
        if (self.path / SETTINGS).exists():
            return
        try:
            # A start or an overwriting that was killed leaves these, and empty folders.
            own = ("lock", COMMAND)
            found = [p for p in self.path.iterdir() if p.name not in own and not p.name.startswith(".new-")]
            foreign = [p.name for p in found if p.name not in _FOLDERS or not p.is_dir() or any(p.iterdir())]
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self._kind} {self.path} cannot be read ({error.strerror}); {self._other}") from error
        if foreign:
            raise UserError(f"{self.path} is not empty and is not a {self._kind} (found {min(foreign)}); {self._other}")

    def create(self, settings: Settings, command: str | None = None) -> None:
        """Write the settings of a new run, and the command that asked for it."""
        if self.read_only:
            return
        if command is not None:
            write_text(self.path / COMMAND, f"{command}\n")
        write_json(self.path / SETTINGS, settings)

    def clear(self) -> None:
        """Remove what runs write here, settings last, so that an interrupted removal is still a run."""
        self.check()
        if self.read_only:
            return
        inside = (path for folder in _FOLDERS for path in (self.path / folder).glob("*"))
        for path in (self.path / REPORT, *inside, *(self.path / name for name in RUN_FILES), self.path / SETTINGS):
            path.unlink(missing_ok=True)

    def log(self, line: str) -> None:
        """Append a line to log.txt, as far as the disk allows."""
        if self.read_only:
            return
        try:
            with open(self.path / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        except OSError:
            return  # the same line goes to the terminal; a full disk must not end the training


def default_run_dir(config: TrainConfig, names_recipe: bool = True) -> str:
    """Where the command line puts a run that has no `run_dir`.

    Where the recipe is the default, an unfinished run from before `finetune` was that goes on.
    """
    parts = "-".join(part for part in (config.model, config.shortcut, short_name(config.dataset)) if part)
    recipes = config.recipe.name, default_recipe(config.model)
    folder, earlier = (f"runs/{parts}-{recipe}-seed{config.seed}" for recipe in recipes)
    unfinished = Path(earlier, SETTINGS).exists() and not Path(earlier, REPORT).exists()
    return earlier if unfinished and not names_recipe and not config.overwrite else folder


def check_resumable(run_dir: RunDir, saved: Settings, current: Settings) -> None:
    """Raise UserError unless a `saved` run can go on under the `current` settings, as far as those are known."""
    folder = f"run folder {run_dir.path}"
    asked = DEFAULTS | {key: value for key, value in current.items() if key not in _DERIVED}
    known = DEFAULTS | saved
    if differences := describe_diff({key: known.get(key) for key in asked}, asked):
        raise UserError(f"{folder} belongs to a run of other settings: {differences}; {run_dir.advice}")
    if "data.fingerprint" not in current:
        return
    if saved.get("weights.sha256") != current.get("weights.sha256"):
        weights = current.get("weights")
        raise UserError(f"{folder} was started from other weights than {weights} holds now; {run_dir.advice}")
    if saved.get("data.fingerprint") != current["data.fingerprint"]:
        sources = f"{saved.get('data.source')}, here {current['data.source']}"
        raise UserError(f"{folder} was started on other data ({sources}); give that data, {run_dir.advice}")


def describe_report(report: dict[str, Any], folder: Path) -> str:
    """The result of a run in a line or two, and where its page is."""
    test, best, last = report["test"], report.get("best"), f"{report['iterations']} iterations"
    if test is not None:
        of = f"loss {test['loss']:.4f}, {test['images']} images, {report['settings']['data.source']}"
        lines = [f"test accuracy {100 * test['top1']:.2f} % ({of}) after {last}"]
    elif (accuracy := report["training"].get("last_validation_accuracy")) is not None:
        validation = f"validation accuracy {100 * accuracy:.2f} % ({report['validation_images']} images)"
        lines = [f"no test images; {validation} after {last}"]
    else:
        lines = [f"no test images and no validation images: nothing is known of its accuracy after {last}"]
    if best is not None:
        of_test = "" if best["test"] is None else f", test {100 * best['test']['top1']:.2f} %"
        validation = f"validation {100 * best['validation_accuracy']:.2f} %{of_test}"
        lines.append(f"best by validation: iteration {best['iteration']}, {validation}")
    if (folder / PAGE).exists():
        lines.append(f"open {folder / PAGE}")
    return "\n".join(lines)


def saved_statistics(settings: Settings) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation that a run normalizes its images with; None where it did not write them down."""
    mean, std = settings.get("data.mean"), settings.get("data.std")
    return None if mean is None or std is None else (tuple(mean), tuple(std))
