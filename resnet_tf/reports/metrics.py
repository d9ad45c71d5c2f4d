"""Metrics from logits, probabilities and labels; NumPy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def predicted_classes(scores: ArrayLike) -> NDArray[np.int64]:
    """Return the class of the highest score, int64 (N,); of equal ones the first; NaN ranks lowest."""
    return np.argmax(_rankable(scores), axis=1)


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Count the images per (true class, predicted class), int64 (classes, classes)."""
    true, predicted = _checked_labels(labels, classes), _checked_labels(predictions, classes)
    if true.shape != predicted.shape:
        raise ValueError(f"there are {len(true)} labels but {len(predicted)} predictions")
    return np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)


def per_class_accuracy(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return each class's share of right predictions, float64 (C,); NaN for a class without images."""
    counts = np.asarray(confusion)
    images = counts.sum(axis=1)
    return np.where(images > 0, counts.diagonal() / np.maximum(images, 1), np.nan)


def precision_recall_f1(confusion: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return precision, recall and F1 of each class, float64 (C,) each, from counts per (true, predicted) class.

    A ratio of nothing to nothing is NaN: precision where a class was never predicted, recall where it has no images,
    F1 where neither happened.
    """
    counts = np.asarray(confusion, np.float64)
    right, predicted, true = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
    return _ratio(right, predicted), _ratio(right, true), _ratio(2 * right, predicted + true)


def calibration_bins(
    confidences: ArrayLike, right: ArrayLike, bins: int = 15
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Sort predictions by confidence into bins of equal width (arXiv:1706.04599, section 2).

    Args:
        confidences: probability of the predicted class, in [0, 1], (N,).
        right: whether the prediction was right, (N,).
        bins: number of bins; bin m holds confidences in (m / bins, (m + 1) / bins], the first one 0 as well.

    Returns:
        Images, sum of confidences and number right per bin: int64, float64 and float64 (bins,).
    """
    sure, hit = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    if sure.shape != hit.shape or sure.ndim != 1:
        raise ValueError(f"confidences {sure.shape} and right {hit.shape} must both be (N,)")
    if sure.size and not (sure.min() >= 0 and sure.max() <= 1 + 1e-9):
        raise ValueError(f"confidences run from {sure.min()} to {sure.max()}; they are probabilities")
    index = np.clip(np.ceil(sure * bins).astype(np.int64) - 1, 0, bins - 1)
    return (
        np.bincount(index, minlength=bins).astype(np.int64),
        np.bincount(index, sure, minlength=bins).astype(np.float64),
        np.bincount(index, hit, minlength=bins).astype(np.float64),
    )


def expected_calibration_error(confidences: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """Return the mean over the images of |accuracy − mean confidence| of their bin, a fraction; NaN for no images."""
    counts, sure, hit = calibration_bins(confidences, right, bins)
    images = counts.sum()
    return float(np.abs(hit - sure).sum() / images) if images else float("nan")


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def top_k_correct(scores: ArrayLike, labels: ArrayLike, k: int) -> int:
    """Count the images whose true class is among the k highest scores.

    Of equal scores the lower class index ranks first, and NaN ranks lowest. A k above the number of classes means
    all of them.
    """
    values = _rankable(scores)
    classes = values.shape[1]
    true = _checked_labels(labels, classes)[:, None]
    true_score = np.take_along_axis(values, true, axis=1)
    ahead = (values > true_score) | ((values == true_score) & (np.arange(classes) < true))
    return int(np.count_nonzero(ahead.sum(axis=1) < k))


def log_softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the log of the softmax along the last axis, float64, without overflow for finite logits."""
    values = np.asarray(logits, np.float64)
    # Infinite logits become NaN, which is the message; numpy's warning adds nothing.
    with np.errstate(invalid="ignore"):
        shifted = values - values.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy_sum(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the sum over the images of −log softmax(logits)[label], in nats, added in float64."""
    return -_sum_at_labels(log_softmax(logits), labels)


def cross_entropy_sum_from_probabilities(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the sum over the images of −log probability[label], in nats, added in float64.

    Probabilities below the smallest normal float32 count as that (a loss of 87.3), since a float32 softmax may
    underflow to 0.
    """
    floor = np.finfo(np.float32).tiny
    return -_sum_at_labels(np.log(np.maximum(np.asarray(probabilities, np.float64), floor)), labels)


def _sum_at_labels(values: NDArray[np.float64], labels: ArrayLike) -> float:
    true = _checked_labels(labels, values.shape[1])
    return float(np.take_along_axis(values, true[:, None], axis=1).sum())


def _rankable(scores: ArrayLike) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    return np.where(np.isnan(values), -np.inf, values)


def _checked_labels(labels: ArrayLike, classes: int) -> NDArray[np.int64]:
    checked = np.asarray(labels, np.int64)
    if checked.ndim != 1:
        raise ValueError(f"labels have the shape {checked.shape}; they must be (N,)")
    if checked.size and (checked.min() < 0 or checked.max() >= classes):
        raise ValueError(
            f"labels run from {checked.min()} to {checked.max()}; {classes} classes are 0 to {classes - 1}"
        )
    return checked


CHOICES = ("wrong", "right", "random")


@dataclass(frozen=True, eq=False)
class Predictions:
    """Classes and probabilities of a pass over N images.

    Attributes:
        labels: true classes, int64 (N,).
        classes: predicted classes, int64 (N,).
        confidences: probability of the predicted class, float64 (N,).
        class_names: names of all C classes.
    """

    labels: NDArray[np.int64]
    classes: NDArray[np.int64]
    confidences: NDArray[np.float64]
    class_names: tuple[str, ...]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which images were predicted rightly, (N,)."""
        return self.labels == self.classes

    def confusion(self) -> NDArray[np.int64]:
        """Images per (true class, predicted class), (C, C)."""
        return confusion_matrix(self.labels, self.classes, len(self.class_names))


def from_probabilities(probabilities: ArrayLike, labels: ArrayLike, class_names: tuple[str, ...]) -> Predictions:
    """Read predictions off probabilities (N, C) of images with true classes `labels` (N,).

    Raises:
        ValueError: the shapes do not fit, or a probability is not finite.
    """
    shares, true = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if shares.shape != (len(true), len(class_names)):
        raise ValueError(f"probabilities {shares.shape} do not fit {len(true)} labels and {len(class_names)} names")
    if not np.isfinite(shares).all():
        raise ValueError("some of its outputs are not finite")
    classes = predicted_classes(shares)
    confidences = np.take_along_axis(shares, classes[:, None], axis=1)[:, 0]
    return Predictions(true, classes, np.clip(confidences, 0.0, 1.0), tuple(class_names))


def choose_examples(predictions: Predictions, choice: str, count: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices of at most `count` images to show.

    Args:
        predictions: what was said of the set.
        choice: "wrong" (the surest mistakes first), "right" or "random" (drawn without order).
        count: how many.
        seed: of the draw.

    Raises:
        ValueError: the choice is not known.
    """
    if choice not in CHOICES:
        raise ValueError(f"examples={choice!r} is not known; allowed: {', '.join(CHOICES)}")
    if choice == "wrong":
        wrong = np.flatnonzero(~predictions.right)
        return wrong[np.argsort(-predictions.confidences[wrong], kind="stable")][:count]
    pool = np.flatnonzero(predictions.right) if choice == "right" else np.arange(len(predictions.labels))
    return np.random.default_rng(seed).permutation(pool)[:count]


def most_confused(confusion: NDArray[np.int64], count: int) -> list[tuple[int, int, int]]:
    """The largest counts off the diagonal: (true class, predicted class, images), largest first."""
    off = np.array(confusion)
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:count]
    pairs = [(int(i) // len(off), int(i) % len(off)) for i in order]
    return [(true, predicted, int(off[true, predicted])) for true, predicted in pairs if off[true, predicted]]
