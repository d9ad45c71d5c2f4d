"""What a network said of a labelled set, image by image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_tf import metrics

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
        return metrics.confusion_matrix(self.labels, self.classes, len(self.class_names))


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
    classes = metrics.predicted_classes(shares)
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
