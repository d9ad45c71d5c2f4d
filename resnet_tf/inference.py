"""Run a network on images: compiled, in batches, and scored."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from time import perf_counter
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from resnet_tf.config import AnyPrecision
from resnet_tf.errors import UserError
from resnet_tf.folding import fold_batch_norm
from resnet_tf.fused import fused_view
from resnet_tf.models.foreign import OutputType, begins_normalized, output_type, scaled
from resnet_tf.reports import metrics
from resnet_tf.reports.html import write_report

_LOSS_SUMS = {
    "logits": metrics.cross_entropy_sum,
    "softmax": metrics.cross_entropy_sum_from_probabilities,
}
# A report has two such matrices, and no JSON above `files.MAX_JSON` is read again.
_MAX_CONFUSION = 1000


@dataclass(frozen=True)
class EvalMetrics:
    """How a network does on a set of images.

    Attributes:
        loss: mean cross-entropy in nats.
        top1: fraction of images whose true class has the highest output.
        top5: fraction of images whose true class is among the five highest.
        images: number of images.
        per_class: fraction right of each class, None for a class without images.
        confusion: images by true class (rows) and predicted class.
        images_per_second: without the first batch, where there are others, because compiling falls into it.
        name: the model and the data in words.
        data_source: in words, which variant of the data it is.
        class_names: names of the classes.
        about: what is known of the model, in words (network, recipe, command), for the head of the report.
    """

    loss: float
    top1: float
    top5: float
    images: int
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    images_per_second: float
    name: str = ""
    data_source: str | None = None
    class_names: tuple[str, ...] = ()
    about: dict[str, str] = field(default_factory=dict, compare=False)
    predictions: metrics.Predictions | None = field(default=None, compare=False)
    pictures: Any = field(default=None, compare=False)
    curves: Path | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values and lists for JSON; the loss of a diverged network stays NaN.

        Of more than 1000 classes the confusion matrix is left out.
        """
        small = len(self.confusion) <= _MAX_CONFUSION
        return {
            "loss": self.loss,
            "top1": self.top1,
            "top5": self.top5,
            "images": self.images,
            "per_class": list(self.per_class),
            **({"confusion": [list(row) for row in self.confusion]} if small else {}),
            "images_per_second": self.images_per_second,
        }

    def describe(self) -> str:
        """The numbers as a person reads them, with the confusion matrix of up to 20 classes."""
        lines = [
            f"loss {self.loss:.4f}, top-1 {100 * self.top1:.2f} %, top-5 {100 * self.top5:.2f} %, "
            f"{self.images} images, {self.images_per_second:.0f} images/s"
        ]
        names = self.class_names or tuple(f"class {index}" for index in range(len(self.per_class)))
        width = max(map(len, names))
        if len(names) <= 20:
            lines.append("share right, and images by true class (rows) and predicted class (columns):")
            lines.append(f"{'':{width + 9}}" + "".join(f" {name[:5]:>5}" for name in names))
        for name, share, row in zip(names, self.per_class, self.confusion, strict=True):
            percent = "   -  " if share is None else f"{100 * share:6.2f}"
            counts = " " + " ".join(f"{count:5d}" for count in row) if len(row) <= 20 else ""
            lines.append(f"{name:>{width}} {percent} %{counts}")
        return "\n".join(lines)

    def report(self, folder: str | Path, examples: str = "wrong") -> Path:
        """Write pictures, tables and report.html to a folder.

        Args:
            folder: made if missing; files of the same names are replaced.
            examples: which images it shows: "wrong" (the surest mistakes), "right" or "random".

        Returns:
            Path of report.html.

        Raises:
            UserError: the folder cannot be written, or the model's outputs are not finite.
        """
        folder = Path(folder)
        if self.predictions is None:
            raise UserError(f"{self.name or 'these metrics'} came without predictions; use resnet_tf.evaluate()")
        numbers = self.as_dict() | ({} if self.data_source is None else {"data_source": self.data_source})
        more = [("Course of the training", self.curves)] if self.curves and self.curves.exists() else []
        try:
            write_report(
                folder,
                self.predictions,
                self.pictures,
                numbers,
                title=self.name,
                about=self.about,
                examples=examples,
                more_pictures=more,
            )
        except OSError as error:
            raise UserError(
                f"report={str(folder)!r} cannot be written ({error.strerror}); give another folder", argument="report"
            ) from error
        return folder / "report.html"

    def __repr__(self) -> str:
        return (
            f"<EvalMetrics loss {self.loss:.4f}, top1 {100 * self.top1:.2f} %, top5 {100 * self.top5:.2f} %, "
            f"{self.images} images>"
        )


def logits_view(model: keras.Model, policy: AnyPrecision = "float32", sync_bn: bool = False) -> keras.Model:
    """`fused_view` of a model, which returns logits where the model returns their softmax."""
    view = fused_view(model, policy, sync_bn)
    if output_type(model) == "logits":
        return view
    return keras.Model(view.inputs[0], _LogitsOf(dtype="float32")(view.outputs[0]), name=view.name)


class _LogitsOf(keras.layers.Layer):
    def call(self, probabilities: tf.Tensor) -> tf.Tensor:
        # Where Keras' losses find them too. The log is as good until the softmax rounds to 0, which has no gradient.
        logits = getattr(probabilities, "_keras_logits", None)
        return tf.math.log(tf.maximum(probabilities, np.finfo(np.float32).tiny)) if logits is None else logits


def with_scaling(
    opened: tuple[keras.Model, dict[str, Any], str], mean: Any, std: Any, input_scale: float | None
) -> tuple[keras.Model, dict[str, Any], str]:
    """A model of `open_model` behind the scaling of its input that is asked for."""
    model, sidecar, name = opened
    asked = [key for key, v in (("mean", mean), ("std", std), ("input_scale", input_scale)) if v is not None]
    if not asked:
        return opened
    if begins_normalized(model):
        raise UserError(f"{name} scales its input itself, in its first layers; leave {asked[0]}=… out")
    return scaled(model, _image(mean), std, input_scale), sidecar, name


def warn_unscaled(model: keras.Model, sidecar: dict[str, Any], name: str) -> None:
    """Warn where nothing says that a model takes raw pixels, which it is given."""
    if not sidecar.get("preprocessing") and not begins_normalized(model):
        warnings.warn(
            f"{name} does not begin with a Rescaling or Normalization layer: it is given raw pixels 0-255; if it was "
            "trained on scaled ones, pass input_scale=… (such as 1/255), mean=… and std=… (input_scale=1 for raw ones)",
            stacklevel=3,
        )


def _image(mean: Any) -> Any:
    """A mean, read from its file where that is given."""
    if not isinstance(mean, str | Path):
        return mean
    try:
        return np.load(mean)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"mean={str(mean)!r} cannot be read ({error}); give numbers 0-255 or a file of numpy.save", argument="mean"
        ) from error


def compiled_forward(network: keras.Model, image_dtype: tf.DType = tf.uint8) -> Callable[[ArrayLike], tf.Tensor]:
    """Compile inference: images (B, H, W, C) to the network's output (B, classes), traced once for every B."""
    images = tf.TensorSpec((None, *network.input_shape[1:]), image_dtype)

    @tf.function(input_signature=[images], autograph=False)
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return network(batch, training=False)

    return forward


def compiled_inference(
    model: keras.Model, precision: AnyPrecision = "float32", fold_bn: bool = False, image_dtype: tf.DType = tf.uint8
) -> Callable[[ArrayLike], tf.Tensor]:
    """Compile a model's inference through its fused view; a model that is not functional runs as it stands."""
    if not hasattr(model, "operations"):
        return compiled_forward(model, image_dtype)
    return compiled_forward(fused_view(fold_batch_norm(model) if fold_bn else model, precision), image_dtype)


def evaluate_arrays(
    forward: Callable[[NDArray[np.uint8]], Any],
    images: NDArray[np.uint8],
    labels: ArrayLike,
    *,
    kind: OutputType,
    classes: int,
    batch_size: int = 500,
) -> EvalMetrics:
    """Evaluate `forward` on uint8 images (N, H, W, C) with integer labels (N,), in batches; the last may be smaller.

    Otherwise as `evaluate_batches`; raises ValueError also for lengths that differ.
    """
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; give 1 or more")
    true = np.asarray(labels)
    if true.shape != (len(images),):
        raise ValueError(f"labels have the shape {true.shape} for {len(images)} images")
    parts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    return evaluate_batches(forward, ((images[part], true[part]) for part in parts), kind=kind, classes=classes)


def evaluate_batches(
    forward: Callable[[NDArray[np.uint8]], Any],
    batches: Iterable[tuple[NDArray[np.uint8], ArrayLike]],
    *,
    kind: OutputType,
    classes: int,
) -> EvalMetrics:
    """Evaluate `forward` on batches of uint8 images (B, H, W, C) and integer labels (B,), one in memory at a time.

    `forward` maps a batch to outputs (B, classes) of the given `kind`. Raises UserError for no images and where
    outputs, labels and `classes` disagree, ValueError for an unknown kind.
    """
    if kind not in _LOSS_SUMS:
        raise ValueError(f"kind is {kind!r}; it is one of {', '.join(_LOSS_SUMS)}")
    loss, top1, top5 = 0.0, 0, 0
    sizes: list[int] = []
    seconds: list[float] = []
    confusion = np.zeros((classes, classes), np.int64)
    for images, labels in batches:
        true = _checked_labels(labels, classes)
        began = perf_counter()
        outputs = np.asarray(forward(images))
        seconds.append(perf_counter() - began)
        sizes.append(len(true))
        _check_outputs(outputs, len(true), classes)
        loss += _LOSS_SUMS[kind](outputs, true)
        top1 += metrics.top_k_correct(outputs, true, 1)
        top5 += metrics.top_k_correct(outputs, true, 5)
        confusion += metrics.confusion_matrix(true, metrics.predicted_classes(outputs), classes)
    count = sum(sizes)
    if not count:
        raise UserError("there are no images to score; give at least one")
    per_class = tuple(None if isnan(share) else share for share in metrics.per_class_accuracy(confusion).tolist())
    return EvalMetrics(
        loss=loss / count,
        top1=top1 / count,
        top5=top5 / count,
        images=count,
        per_class=per_class,
        confusion=tuple(map(tuple, confusion.tolist())),
        images_per_second=_images_per_second(sizes, seconds),
    )


def _images_per_second(sizes: list[int], seconds: list[float]) -> float:
    first = 1 if len(sizes) > 1 else 0
    return sum(sizes[first:]) / sum(seconds[first:])


def _checked_labels(labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    true = np.asarray(labels, np.int64)
    if true.min() < 0 or true.max() >= classes:
        raise UserError(
            f"labels run from {true.min()} to {true.max()} but the network has {classes} classes (0 to {classes - 1}); "
            "evaluate it on the data it was made for"
        )
    return true


def _check_outputs(outputs: np.ndarray, images: int, classes: int) -> None:
    if outputs.shape != (images, classes):
        raise UserError(
            f"the network's output has the shape {outputs.shape} where ({images}, {classes}) was expected; "
            f"use a classifier of {classes} classes"
        )
