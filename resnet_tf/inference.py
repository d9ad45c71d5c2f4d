"""Run a network on images: compiled, in batches, and scored."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import isnan
from time import perf_counter
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from resnet_tf.errors import UserError
from resnet_tf.reports import metrics

OutputType = Literal["logits", "softmax"]

_LOSS_SUMS = {
    "logits": metrics.cross_entropy_sum,
    "softmax": metrics.cross_entropy_sum_from_probabilities,
}


@dataclass(frozen=True)
class EvalMetrics:
    """What a network scores on a set of images.

    `loss` is the mean cross-entropy in nats; `top1`, `top5` and `per_class` are fractions, None for a class without
    images; `confusion` counts images, rows are true classes. `images_per_second` leaves the first batch out where
    there are others, because compiling falls into it.
    """

    loss: float
    top1: float
    top5: float
    images: int
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    images_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers and lists for JSON; the loss of a diverged network stays NaN."""
        return asdict(self) | {
            "per_class": list(self.per_class),
            "confusion": [list(row) for row in self.confusion],
        }


def output_type(model: keras.Model) -> OutputType:
    """Tell from the last layer whether `model` returns logits or softmax probabilities.

    Raises UserError for a model that ends in anything else.
    """
    layers = list(model.layers)
    # A linear Activation is the usual way to cast the output to float32; what counts stands before it.
    while len(layers) > 1 and isinstance(layers[-1], keras.layers.Activation) and _is_linear(layers[-1]):
        layers.pop()
    last = layers[-1]
    if isinstance(last, keras.Model):
        return output_type(last)
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        return "softmax"
    if _is_linear(last):
        return "logits"
    activation = getattr(getattr(last, "activation", None), "__name__", "no activation")
    raise UserError(
        f"the network ends in {type(last).__name__} {last.name!r} with {activation}; only a linear or a softmax "
        "output can be scored: rebuild it to return logits"
    )


def compiled_forward(network: keras.Model) -> Callable[[ArrayLike], tf.Tensor]:
    """Compile inference: uint8 (B, H, W, C) to the network's output (B, classes), traced once for every B."""
    images = tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)

    @tf.function(input_signature=[images])
    def forward(batch: tf.Tensor) -> tf.Tensor:
        return network(batch, training=False)

    return forward


def score(
    forward: Callable[[NDArray[np.uint8]], Any],
    images: NDArray[np.uint8],
    labels: ArrayLike,
    *,
    kind: OutputType,
    classes: int,
    batch_size: int = 500,
) -> EvalMetrics:
    """Score `forward` on uint8 images (N, H, W, C) with integer labels (N,), in batches; the last may be smaller.

    Otherwise as `score_batches`; raises ValueError also for lengths that differ.
    """
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; give 1 or more")
    true = np.asarray(labels)
    if true.shape != (len(images),):
        raise ValueError(f"labels have the shape {true.shape} for {len(images)} images")
    parts = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
    return score_batches(forward, ((images[part], true[part]) for part in parts), kind=kind, classes=classes)


def score_batches(
    forward: Callable[[NDArray[np.uint8]], Any],
    batches: Iterable[tuple[NDArray[np.uint8], ArrayLike]],
    *,
    kind: OutputType,
    classes: int,
) -> EvalMetrics:
    """Score `forward` on batches of uint8 images (B, H, W, C) and integer labels (B,), one of them in memory at a time.

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
        images_per_second=_rate(sizes, seconds),
    )


def _rate(sizes: list[int], seconds: list[float]) -> float:
    first = 1 if len(sizes) > 1 else 0
    return sum(sizes[first:]) / sum(seconds[first:])


def _is_linear(layer: keras.Layer) -> bool:
    return getattr(layer, "activation", None) is keras.activations.linear


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
