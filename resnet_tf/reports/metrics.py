"""Metrics from logits, probabilities and labels; NumPy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def predicted_classes(scores: ArrayLike) -> NDArray[np.int64]:
    """The class of the highest score, int64 (N,); of equal scores the first; NaN ranks lowest."""
    return np.argmax(_rankable(scores), axis=1)


def top_k_correct(scores: ArrayLike, labels: ArrayLike, k: int) -> int:
    """How many images have their true class among the k highest scores; equal scores rank by class, NaN lowest."""
    values = _rankable(scores)
    classes = values.shape[1]
    true = np.asarray(labels, np.int64)[:, None]
    true_score = np.take_along_axis(values, true, axis=1)
    ahead = (values > true_score) | ((values == true_score) & (np.arange(classes) < true))
    return int(np.count_nonzero(ahead.sum(axis=1) < k))


def _rankable(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    return np.where(np.isnan(values), -np.inf, values)


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """The log of the softmax along the last axis, float64, without overflow for finite logits."""
    values = np.asarray(logits, np.float64)
    # Infinite logits become NaN, which is the message; numpy's warning adds nothing.
    with np.errstate(invalid="ignore"):
        shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy_sum(logits: ArrayLike, labels: ArrayLike) -> float:
    """The sum over the images of −log softmax(logits)[label], in nats, added in float64."""
    return -_sum_at_labels(log_softmax(logits), labels)


def cross_entropy_sum_from_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The sum over the images of −log probability[label], in nats (float64); a float32 that underflowed costs 87.3."""
    clipped = np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float32).tiny)
    return -_sum_at_labels(np.log(clipped), labels)


def _sum_at_labels(values: NDArray[np.float64], labels: ArrayLike) -> float:
    return float(np.take_along_axis(values, np.asarray(labels, np.int64)[:, None], axis=1).sum())


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Images per (true class, predicted class), int64 (classes, classes)."""
    true, predicted = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class_accuracy(confusion: ArrayLike) -> NDArray[np.float64]:
    """The fraction of each class's images predicted correctly, float64 (C,); NaN for a class without images."""
    return precision_recall_f1(confusion)[1]


def precision_recall_f1(confusion: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Precision, recall and F1 of each class, float64 (C,) each, from counts (true, predicted); 0/0 is NaN."""
    counts = np.asarray(confusion, np.float64)
    correct, predicted, true = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    return _ratio(correct, predicted), _ratio(correct, true), _ratio(2 * correct, predicted + true)


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), np.nan)


def most_confused(confusion: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """The largest counts off the diagonal: (true class, predicted class, images), largest first."""
    off = np.array(confusion)
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    pairs = [(int(i) // len(off), int(i) % len(off)) for i in order]
    return [(true, predicted, int(off[true, predicted])) for true, predicted in pairs if off[true, predicted]]


def calibration_bins(
    confidences: ArrayLike, right: ArrayLike, bins: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Images, sum of confidences and number right per confidence bin, (bins,) each (arXiv:1706.04599, section 2).

    Bin m holds the confidences in (m / bins, (m + 1) / bins], the first one 0 as well.
    """
    confidence, correct = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins).astype(np.int64)
    sums, hits = (np.bincount(index, v, minlength=bins).astype(np.float64) for v in (confidence, correct))
    return counts, sums, hits


def expected_calibration_error(confidences: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """The mean over the images of |accuracy − mean confidence| of their bin, a fraction; NaN for no images."""
    counts, confidence, correct = calibration_bins(confidences, right, bins)
    images = counts.sum()
    return float(np.abs(correct - confidence).sum() / images) if images else float("nan")


@dataclass(frozen=True, eq=False)
class Predictions:
    """True and predicted classes, int64 (N,), and the probability of the predicted class, float64 (N,)."""

    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    confidences: NDArray[np.float64]
    class_names: tuple[str, ...]

    @property
    def right(self) -> NDArray[np.bool_]:
        return self.labels == self.classes

    def confusion(self) -> NDArray[np.int64]:
        return confusion_matrix(self.labels, self.classes, len(self.class_names))


def from_probabilities(probabilities: ArrayLike, labels: ArrayLike, class_names: tuple[str, ...]) -> Predictions:
    """Predictions from probabilities (N, C); ValueError where shapes do not fit or a probability is not finite."""
    scores, true = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if scores.shape != (len(true), len(class_names)):
        raise ValueError(f"probabilities {scores.shape} do not fit {len(true)} labels and {len(class_names)} names")
    if not np.isfinite(scores).all():
        raise ValueError("some of its outputs are not finite")
    classes = predicted_classes(scores)
    confidences = np.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
    return Predictions(true, classes, np.clip(confidences, 0.0, 1.0), tuple(class_names))


def choose_examples(predictions: Predictions, examples: str, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices of at most `count` images: "wrong" (most confident first), "right" or "random" (both drawn)."""
    if examples not in ("wrong", "right", "random"):
        raise ValueError(f"invalid examples={examples!r}; expected one of wrong, right, random")
    if examples == "wrong":
        wrong = np.flatnonzero(~predictions.right)
        return wrong[np.argsort(-predictions.confidences[wrong], kind="stable")][:count]
    pool = np.flatnonzero(predictions.right) if examples == "right" else np.arange(len(predictions.labels))
    return np.random.default_rng(seed).permutation(pool)[:count]
