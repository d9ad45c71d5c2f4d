"""What a run comes to: its saved models with what they need to be understood, and its report."""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from resnet_tf import __version__
from resnet_tf.cli.evaluate import load_model
from resnet_tf.cli.material import Material
from resnet_tf.cli.scoring import LabelledDataset, score_model
from resnet_tf.data.dataset import is_image_dataset
from resnet_tf.data.image_io import cv2
from resnet_tf.errors import UserError
from resnet_tf.files import write_json, write_with
from resnet_tf.process import recursion_limit
from resnet_tf.training.fine_tune import all_trainable
from resnet_tf.training.run_dir import REPORT, RunDir

if TYPE_CHECKING:
    from resnet_tf.cli.job import Job


def save_model(job: "Job", path: Path, metrics: dict[str, Any]) -> None:
    """Write the model and, beside it, what a plain Keras file has no room for.

    Raises:
        OSError: the disk refuses.
    """
    with recursion_limit(len(job.eval_model.layers)), all_trainable(job.eval_model):
        write_with(path, job.eval_model.save)
    request, material = job.request, job.material
    sidecar = {
        "class_names": list(material.class_names),
        "preprocessing": _preprocessing(material),
        "model": request.model,
        "builder": job.builder,
        "dataset": request.dataset,
        "data_source": material.source,
        **({"on_bad_image": request.on_bad_image} if is_image_dataset(request.dataset) else {}),
        "recipe": request.recipe.as_dict(),
        "metrics": metrics,
    }
    write_json(path.with_suffix(".json"), sidecar)


def _preprocessing(material: Material) -> dict[str, Any]:
    framing = {} if material.framing is None else {"framing": asdict(material.framing)}
    return {
        "input": "RGB pixels 0-255, uint8 or float",
        "shape": list(material.shape),
        "mean": list(material.mean),
        "std": list(material.std),
        "normalization": "first layer of the model",
        **framing,
    }


def finish(job: "Job", folder: RunDir, settings: dict[str, Any]) -> dict[str, Any]:
    """Save the final model, read the test images once where there are any, and report from the saved files.

    Raises:
        UserError: the disk refuses; the run stays resumable.
    """
    final = folder.path / "final.keras"
    material, training = job.material, job.training
    try:
        save_model(job, final, {})
        report = {
            "settings": settings,
            "parameters": job.parameters,
            "iterations": training.step,
            "steps_per_epoch": job.batches.steps_per_epoch,
            "train_images": len(material.train),
            "validation_images": len(material.validation),
            "training": _course(training.history),
            "test": _test(final, material),
            "device": job.device.about,
            **({} if job.replicas.strategy is None else {"replicas": job.replicas.about}),
            "versions": versions(),
        }
        save_model(job, final, {"test": report["test"]})
        if training.best is not None:
            report["best"] = {**training.best, "test": _test(folder.path / "best.keras", material)}
        write_json(folder.path / REPORT, report)
    except OSError as error:
        raise UserError(
            f"the results of {folder.path} could not be written ({error.strerror or error}); "
            "make room and run the same command again"
        ) from error
    return report


def _test(path: Path, material: Material) -> dict[str, Any] | None:
    """The score of a saved model on the test images, or None where there are none."""
    if material.test is None:
        return None
    tests = LabelledDataset(material.name, material.source, material.class_names, material.test)
    return score_model(load_model(path), path, tests).as_dict()


def _course(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the training took and where it ended, from the rows of the metrics."""
    return {
        "seconds": rows[-1]["seconds"],
        "median_images_per_second": float(np.median([row["images_per_second"] for row in rows])),
        "last_train_loss": rows[-1]["train_loss"],
        "last_train_accuracy": rows[-1]["train_accuracy"],
        "last_validation_accuracy": rows[-1]["validation_accuracy"],
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
