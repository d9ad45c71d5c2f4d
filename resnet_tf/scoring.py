"""`evaluate()`: the metrics of a model on labelled images."""

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from resnet_tf.config import AnyPrecision
from resnet_tf.data.cifar import load_dataset
from resnet_tf.data.dataset import DATASETS, Dataset, check_name, is_image_dataset
from resnet_tf.data.image_check import images_to_test
from resnet_tf.data.loader import ArraySource, Subset
from resnet_tf.data.prepare import as_dataset, as_split, resized, subset_to_test
from resnet_tf.data.tf_batches import TfSubset
from resnet_tf.errors import UserError, some
from resnet_tf.fused import check_precision
from resnet_tf.inference import (
    EvalMetrics,
    compiled_inference,
    evaluate_batches,
    warn_unscaled,
    with_scaling,
)
from resnet_tf.models.foreign import check_classifier, output_type
from resnet_tf.prediction import crop_of
from resnet_tf.reports.metrics import from_probabilities, log_softmax
from resnet_tf.reports.runs import COMMAND
from resnet_tf.saving import NO_DATASET, model_path, open_model


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledDataset:
    """Images to evaluate a model on, with the name of the data set, what they are in words, and their classes.

    `train` are its training images, where those are an array.
    """

    name: str
    source: str
    class_names: Sequence[str]
    subset: Any
    train: Any = None


def evaluate(
    model: Any,
    data: Any = None,
    *,
    best: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    on_bad_image: str | None = None,
    batch_size: int | None = None,
    mean: Any = None,
    std: Any = None,
    input_scale: float | None = None,
    precision: AnyPrecision = "float32",
    fold_bn: bool = False,
    class_names: Sequence[str] | None = None,
    log: Callable[[str], None] | None = None,
) -> EvalMetrics:
    """Evaluate a model on labelled images, every image counted once.

    Args:
        model: a keras.Model of images that returns logits or softmax probabilities, a result of `train`, a .keras or
            .h5 file, a SavedModel, the directory of a run, or weights that ship with the package
            ("resnet20_v1:cifar10").
        data: a name ("cifar10", "shapes", "folder:PATH", …: its test images), a tuple (images uint8 (N, H, W, C),
            labels (N,)), a `Dataset` (its test images) or a `tf.data.Dataset` of (image batch, label batch); None takes
            what the model's sidecar says it was trained on.
        best: of a run, the model with the best validation accuracy, not the final one.
        data_dir: folder or archive with CIFAR.
        on_bad_image: "stop" or "skip" where image files are damaged; None as the model was trained.
        batch_size: images at once; None takes 500, fewer of large ones.
        mean: what a model without a normalization of its own gets subtracted from pixels 0-255: a number, one per
            channel, an image (or its .npy file), or "pixel-mean", the mean image of the training data (as in the Keras
            tutorial).
        std: what the difference is divided by: a number, or one per channel.
        input_scale: what it is multiplied by, in place of `std`, such as 1 / 255; 1 says that nothing is to be done.
        precision: what it computes in: "float32", "mixed_bfloat16", "mixed_float16", or "auto", as in `fused_view`.
        fold_bn: fold batch normalization into convolutions first.
        class_names: names of the classes where neither the data nor the model's sidecar has them.
        log: called with lines on what is assumed.

    Returns:
        Loss, top1, top5, per_class, confusion and more; `.report(folder)` writes the HTML report.

    Raises:
        UserError: the model, the data or an argument is not as it must be.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size={batch_size} is out of range; give 1 or more", argument="batch_size")
    check_precision(precision)
    if isinstance(data, str):
        check_name(data, data_dir)
    network, sidecar, name = open_model(model, best=best)
    check_classifier(network, name)
    tests = _find_tests(network, sidecar, name, data, data_dir, on_bad_image, class_names)
    if isinstance(mean, str) and mean == "pixel-mean":
        mean = _pixel_mean(tests)
    network, *_ = with_scaling((network, sidecar, name), mean, std, input_scale)
    # The files of this package say what they return, and so does a softmax.
    if log is not None and not sidecar and output_type(network) == "logits":
        log(f"{name} does not say what it returns: its outputs are taken as logits, as the last layer is linear")
    metrics = score_subset(network, name, tests, batch_size, precision, fold_bn, keep=True)
    warn_unscaled(network, sidecar, name)
    chance = 1 / len(tests.class_names)
    if metrics.top1 < chance + 0.05 * (1 - chance) + 3 * math.sqrt(chance * (1 - chance) / metrics.images):
        warnings.warn(
            f"top-1 {100 * metrics.top1:.2f} % is near chance, which is {100 * chance:.2f} %: check the scaling of the "
            "input (input_scale=…, mean=…, std=…), the data and the order of the classes",
            stacklevel=2,
        )
    run = model_path(model, best).parent if isinstance(model, str | os.PathLike) else getattr(model, "run_dir", None)
    curves = None if run is None else run / "curves.png"
    about = _about(network, sidecar, run)
    if isinstance(model, str | os.PathLike) and Path(model).is_dir():
        name += " (best model by validation)" if best else " (final model)"
    return dataclasses.replace(metrics, name=f"{name} on the test set of {tests.name}", curves=curves, about=about)


def _about(model: keras.Model, sidecar: dict[str, Any], run: Path | None) -> dict[str, str]:
    """What a model is and where it comes from, in words, as far as its sidecar and its run directory say."""
    about, recipe = {"network": str(sidecar.get("model", model.name))}, sidecar.get("recipe")
    if recipe:
        about["recipe"] = ": ".join(filter(None, (recipe["name"], recipe.get("about"))))
    if run is not None and (run / COMMAND).is_file():
        about["command"] = (run / COMMAND).read_text(encoding="utf-8").strip()
    return about


def _pixel_mean(tests: LabelledDataset) -> np.ndarray:
    if tests.train is None:
        raise UserError(
            f"mean='pixel-mean' needs training images in memory, and {tests.name} has none; give numbers or an image",
            argument="mean",
        )
    return np.asarray(np.mean(tests.train, axis=0, dtype=np.float64))


def _find_tests(
    model: keras.Model,
    sidecar: dict[str, Any],
    name: str,
    data: Any,
    data_dir: Any,
    on_bad_image: str | None,
    class_names: Sequence[str] | None,
) -> LabelledDataset:
    """The images to evaluate on as a model sees them."""
    known = sidecar.get("class_names")
    framed = "framing" in (sidecar.get("preprocessing") or {}) and len(model.input_shape) == 4
    crop = crop_of(model.input_shape, sidecar, None, None) if framed else None
    named = data is not None
    data = sidecar.get("dataset") if data is None else data
    if data is None or not (named or data in DATASETS or is_image_dataset(data)):  # arrays are of their process alone
        raise UserError(NO_DATASET.format(name), argument="data")
    if isinstance(data, str) and is_image_dataset(data):
        files = images_to_test(data, named, on_bad_image or sidecar.get("on_bad_image", "stop"), known)
        crop = crop or crop_of(model.input_shape, sidecar, None, None)
        return LabelledDataset(data, "own images", files.class_names, subset_to_test(files, crop))
    if isinstance(data, str):
        check_name(data, data_dir)
        data = load_dataset(data, data_dir)
    if isinstance(data, Dataset):
        data = as_dataset(data)
        if data.test is None:
            raise UserError(f"{data.name} has no test images; pass (images, labels)", argument="data")
        if known is not None and list(known) != list(data.class_names):
            raise UserError(
                f"{name} knows the classes {some(known)}; {data.name} has {some(data.class_names)}; evaluate it on "
                "what it was trained on (leave the data set out), or on images of its classes"
            )
        return LabelledDataset(data.name, data.source, data.class_names, subset_to_test(data, crop), data.train.images)
    outputs = int(model.output_shape[-1])
    names = tuple(known or class_names or (f"class {index}" for index in range(outputs)))
    if isinstance(data, tf.data.Dataset):
        return LabelledDataset("tf.data", "tf.data", names, TfSubset(data))
    split = as_split(data, "data")
    source = resized(ArraySource(split.images, split.labels), crop)
    return LabelledDataset("arrays", "arrays", names, Subset(source, np.arange(len(split))))


def check_input(model: keras.Model, name: str, dataset: str, size: Sequence[int]) -> None:
    """Refuse a model that does not take the images of a data set, which are of `size` (H, W, C)."""
    shape = model.input_shape
    if (
        not isinstance(shape, tuple)
        or len(shape) != 4
        or any(side not in (None, given) for side, given in zip(shape[1:], size, strict=True))
    ):
        raise UserError(f"{name} takes images of the shape {shape}, {dataset} has {tuple(size)}")


def score_subset(
    model: keras.Model,
    name: str,
    tests: LabelledDataset,
    batch_size: int | None = None,
    precision: AnyPrecision = "float32",
    fold_bn: bool = False,
    keep: bool = False,
) -> EvalMetrics:
    """Metrics of a model on images; `keep` keeps its predictions for a report."""
    check_input(model, name, tests.name, tests.subset[0].shape)
    kind = output_type(model)
    dtype = tf.float32 if tests.subset[0].dtype == np.float32 else tf.uint8
    compiled = compiled_inference(model, precision, fold_bn, dtype)
    probabilities: list[np.ndarray] = []

    def forward(batch: np.ndarray) -> np.ndarray:
        outputs = np.asarray(compiled(batch))
        if keep:
            probabilities.append(np.exp(log_softmax(outputs)) if kind == "logits" else outputs)
        return outputs

    names = tuple(tests.class_names)
    metrics = evaluate_batches(forward, tests.subset.batches(batch_size), kind=kind, classes=len(names))
    metrics = dataclasses.replace(metrics, data_source=tests.source, class_names=names)
    if not keep or not np.isfinite(metrics.loss):
        return metrics
    predictions = from_probabilities(np.concatenate(probabilities), tests.subset.labels, names)
    return dataclasses.replace(metrics, predictions=predictions, pictures=tests.subset)
