"""What a training comes to: its result in Python, and the models and report that it leaves in its run directory."""

import contextlib
import dataclasses
import filecmp
import os
import platform
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet_tf import __version__
from resnet_tf.data.dataset import is_image_dataset
from resnet_tf.data.image_io import cv2
from resnet_tf.errors import UserError
from resnet_tf.files import write_json
from resnet_tf.inference import EvalMetrics
from resnet_tf.models.registry import set_class_names
from resnet_tf.reports.curves import TrainingHistory, draw_curves
from resnet_tf.reports.html import write_report
from resnet_tf.reports.runs import COMMAND, read_run
from resnet_tf.saving import load_model, read_sidecar, save_model
from resnet_tf.scoring import LabelledDataset, score_subset
from resnet_tf.training.logs import read_history
from resnet_tf.training.run_dir import REPORT, describe_report


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingResult:
    """What a training came to.

    Attributes:
        model: the trained network, a stock Keras model that takes raw pixels and returns logits; where the recipe
            averages the weights, the average.
        history: one dict per evaluation; `pandas.DataFrame(result.history)` opens it.
        best: iteration, validation accuracy and, with test images, the test metrics of the model with the best
            validation accuracy; None without validation images.
        test: metrics of `model` on the test images (loss, top1, top5, per_class, confusion, images), or None.
        report: everything that report.json holds.
        run_dir: the run's directory; None where it was a temporary one.
        exact_resume: whether an interrupted run goes on to the same bits; a tf.data.Dataset must be deterministic
            itself for that.
        class_names: names of the classes in the order of the outputs.
    """

    model: keras.Model
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    test: dict[str, Any] | None
    report: dict[str, Any]
    run_dir: Path | None
    exact_resume: bool
    sidecar: dict[str, Any]
    curves: TrainingHistory | None

    def __post_init__(self) -> None:
        set_class_names(self.model, self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of the outputs."""
        return tuple(self.sidecar["class_names"])

    def plot(self) -> Any:
        """Draw loss, accuracies and learning rate; returns a matplotlib figure.

        Raises:
            UserError: matplotlib is not installed, or nothing was evaluated.
        """
        if self.curves is None:
            raise UserError("there is no evaluation to plot")
        return draw_curves(self.curves)

    def __repr__(self) -> str:
        test = "" if self.test is None else f", test accuracy {100 * self.test['top1']:.2f} %"
        where = "" if self.run_dir is None else f", run_dir={str(self.run_dir)!r}"
        return f"<TrainingResult {self.model.name}: {self.report['iterations']} iterations{test}{where}>"

    @classmethod
    def of_run(cls, run: Any, report: dict[str, Any]) -> "TrainingResult":
        """The result of a run in this process, from its report."""
        history, curves = run.trainer.history, None
        if history and run.distribution.is_chief:
            with contextlib.suppress(UserError):  # the disk may have refused metrics.csv, and taken all else
                curves = read_history(run.run_dir.path)
        return cls(
            model=run.eval_model,
            history=history,
            best=report.get("best"),
            test=report.get("test"),
            report=report,
            run_dir=None if run.config.run_dir is None else run.run_dir.path,
            exact_resume=run.data.exact_resume,
            sidecar=make_sidecar(run, {}),
            curves=curves,
        )

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str]) -> "TrainingResult":
        """The result of a finished run, from its directory.

        Raises UserError where there is no run, or an unfinished one.
        """
        run_dir = Path(run_dir)
        _, report = read_run(run_dir)
        if report is None:
            raise UserError(
                f"run folder {run_dir} holds an unfinished run; the call or command in its {COMMAND} goes on with it",
                argument="run_dir",
            )
        final, curves = run_dir / "final.keras", read_history(run_dir)
        return cls(
            model=load_model(final),
            history=[dict(row) for row in curves.history],
            best=report.get("best"),
            test=report["test"],
            report=report,
            run_dir=run_dir,
            exact_resume=report["settings"]["dataset"] != "tf.data",
            sidecar=read_sidecar(final),
            curves=curves,
        )


def describe_call(model: Any, data: Any, recipe: Any, run_dir: Any, options: dict[str, Any]) -> str:
    """The Python call, for the records: objects by their kind."""

    def shown(value: Any) -> str:
        return (
            repr(value) if isinstance(value, str | int | float | bool | tuple | None) else f"<{type(value).__name__}>"
        )

    arguments = [shown(model), "<arrays>" if isinstance(data, tuple) else shown(data)]
    named = {"recipe": recipe, "run_dir": None if run_dir is None else str(run_dir), **options}
    arguments += [f"{name}={shown(value)}" for name, value in named.items() if value is not None]
    return f"resnet_tf.train({', '.join(arguments)})"


def make_sidecar(run: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """What a plain Keras file has no room for, as JSON."""
    config, data = run.config, run.data
    framing = {} if data.crop is None else {"framing": dataclasses.asdict(data.crop)}
    return {
        "class_names": list(data.class_names),
        "preprocessing": {
            "input": "RGB pixels 0-255, uint8 or float",
            "shape": list(data.shape),
            "mean": list(data.mean),
            "std": list(data.std),
            "normalization": "first layer of the model",
            **framing,
        },
        "model": config.model,
        "builder": run.builder,
        "dataset": config.dataset,
        "data_source": data.source,
        **({"on_bad_image": config.on_bad_image} if is_image_dataset(config.dataset) else {}),
        "recipe": config.recipe.as_dict(),
        "metrics": metrics,
    }


def write_run_report(run: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Save the final model, read the test images once where there are any, and report from the saved files.

    Raises UserError where the disk refuses; the run stays resumable.
    """
    folder, data, trainer = run.run_dir.path, run.data, run.trainer
    final = folder / "final.keras"
    try:
        save_model(run.eval_model, final, make_sidecar(run, {}))
        tested = None if data.test is None else _score(final, data, data.test, keep=True)
        report = {
            "settings": settings,
            "parameters": run.parameters,
            "iterations": trainer.step,
            "steps_per_epoch": run.loader.steps_per_epoch,
            "train_images": len(data.train),
            "validation_images": len(data.validation),
            "training": _training_summary(trainer.history),
            "test": None if tested is None else tested.as_dict(),
            "device": run.device.about,
            **({} if run.distribution.strategy is None else {"replicas": run.distribution.about}),
            "versions": versions(),
        }
        write_json(final.with_suffix(".json"), make_sidecar(run, {"test": report["test"]}))
        best = folder / "best.keras"
        if trainer.best is not None and best.exists():
            try:
                same = data.test is None or filecmp.cmp(best, final, shallow=False)
                scored = report["test"] if same else _score(best, data, data.test).as_dict()
                report["best"] = {**trainer.best, "test": scored}
            except UserError as error:
                raise UserError(f"{error}; put a copy back, or remove it: the run then ends without one") from error
        if run.config.run_dir is not None and run.given_data.test is not False:
            _write_page(run, tested)
        write_json(folder / REPORT, report)  # last: where it is, the run is finished
    except OSError as error:
        raise UserError(
            f"the results of {folder} could not be written ({error.strerror or error}); "
            "make room and run the same command again"
        ) from error
    if run.verbose:
        print(describe_report(report, folder))
    return report


def _score(path: Path, data: Any, subset: Any, keep: bool = False) -> EvalMetrics:
    images = LabelledDataset(data.name, data.source, data.class_names, subset)
    return score_subset(load_model(path), str(path), images, keep=keep)


def _write_page(run: Any, tested: EvalMetrics | None) -> None:
    """Write report.html and its pictures, of the validation images where there are no test images."""
    folder, data, recipe = run.run_dir.path, run.data, run.config.recipe
    kind = "test" if tested is not None else "validation"
    if tested is None and len(data.validation):
        tested = _score(folder / "final.keras", data, data.validation, keep=True)
    if tested is None or tested.predictions is None:
        return
    curves = folder / "curves.png"
    try:
        write_report(
            folder,
            tested.predictions,
            tested.pictures,
            tested.as_dict() | {"data_source": data.source},
            title=f"{run.config.model} on the {kind} set of {data.name}",
            about={"recipe": f"{recipe.name}: {recipe.about}", "command": run.command},
            more_pictures=[("Course of the training", curves)] if curves.exists() else [],
            write_numbers=False,
        )
    except OSError as error:
        run.run_dir.log(f"report.html could not be written: {error.strerror or error}")


def _training_summary(history: list[dict[str, Any]]) -> dict[str, Any]:
    """What the training took and where it ended."""
    last = history[-1]
    return {
        "seconds": last["seconds"],
        "median_images_per_second": float(np.median([row["images_per_second"] for row in history])),
        "last_train_loss": last["train_loss"],
        "last_train_accuracy": last["train_accuracy"],
        "last_validation_accuracy": last["validation_accuracy"],
    }


def versions() -> dict[str, str]:
    """Versions of what computed the result."""
    return {
        "resnet_tf": __version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }
