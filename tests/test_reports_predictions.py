import numpy as np
import pytest

from resnet_tf.reports import metrics
from resnet_tf.reports.metrics import Predictions, choose_examples, from_probabilities, most_confused

TRUE = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3]
PREDICTED = [0, 0, 1, 2, 1, 1, 0, 2, 2, 2, 1, 4, 3, 2]
# scikit-learn 1.9: confusion_matrix and precision_recall_fscore_support(zero_division=nan) of the above.
CONFUSION = [[2, 1, 1, 0, 0], [1, 2, 0, 0, 0], [0, 1, 3, 0, 1], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
PRECISION = [2 / 3, 0.5, 0.6, 1.0, 0.0]
RECALL = [0.5, 2 / 3, 0.6, 0.5, np.nan]
F1 = [4 / 7, 4 / 7, 0.6, 2 / 3, 0.0]


def predictions(confidences, right, classes=3):
    labels = np.arange(len(right)) % classes
    said = np.where(right, labels, (labels + 1) % classes)
    return Predictions(labels, said, np.asarray(confidences, float), tuple("abc"[:classes]))


def test_per_class_figures_are_those_of_scikit_learn():
    confusion = metrics.confusion_matrix(TRUE, PREDICTED, 5)
    assert confusion.tolist() == CONFUSION
    for ours, theirs in zip(metrics.precision_recall_f1(confusion), (PRECISION, RECALL, F1), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_agreement_with_scikit_learn_itself():
    theirs = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 7, 1000), rng.integers(0, 6, 1000)
    confusion = metrics.confusion_matrix(true, said, 7)
    np.testing.assert_array_equal(confusion, theirs.confusion_matrix(true, said, labels=range(7)))
    expected = theirs.precision_recall_fscore_support(true, said, labels=range(7), zero_division=np.nan)
    for ours, other in zip(metrics.precision_recall_f1(confusion), expected[:3], strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-12)


def test_calibration_error_by_hand():
    # Five bins. (0.8, 1]: two images, confidences sum to 1.8, one right: off by 0.8.
    # (0.4, 0.6]: three images, confidences sum to 1.45, two right: off by 0.55. Together 1.35 of 5 images.
    confidences, right = [0.95, 0.55, 0.85, 0.45, 0.45], [1, 1, 0, 0, 1]
    assert metrics.expected_calibration_error(confidences, right, 5) == pytest.approx(0.27)


def test_a_bin_holds_its_upper_edge():
    counts, sure, hit = metrics.calibration_bins([0.0, 0.25, 0.26, 0.5, 1.0], [1, 0, 1, 1, 0], 4)
    assert counts.tolist() == [2, 2, 0, 1]
    np.testing.assert_allclose(sure, [0.25, 0.76, 0, 1])
    assert hit.tolist() == [1, 2, 0, 0]


def test_the_calibration_of_no_images():
    assert np.isnan(metrics.expected_calibration_error([], []))


def test_reading_probabilities():
    read = from_probabilities([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], [1, 2], ("a", "b", "c"))
    assert read.classes.tolist() == [1, 0]
    assert read.right.tolist() == [True, False]
    np.testing.assert_allclose(read.confidences, [0.7, 0.5])
    with pytest.raises(ValueError, match="not finite"):
        from_probabilities([[np.nan, 1.0]], [0], ("a", "b"))
    with pytest.raises(ValueError, match="do not fit"):
        from_probabilities([[0.5, 0.5]], [0], ("a", "b", "c"))


def test_wrong_examples_are_the_surest_mistakes():
    said = predictions([0.5, 0.9, 0.8, 0.99, 0.7], [0, 0, 1, 1, 0])
    assert choose_examples(said, "wrong", 10).tolist() == [1, 4, 0]
    assert choose_examples(said, "wrong", 2).tolist() == [1, 4]


def test_right_and_random_examples():
    said = predictions(np.full(30, 0.5), np.arange(30) % 3 > 0)
    right = choose_examples(said, "right", 100)
    assert sorted(right) == [i for i in range(30) if i % 3]
    assert right.tolist() != sorted(right)
    assert len(set(choose_examples(said, "random", 12))) == 12
    with pytest.raises(ValueError, match="wrong, right, random"):
        choose_examples(said, "best", 1)


def test_most_confused_pairs():
    assert most_confused(np.array([[9, 3, 0], [1, 8, 5], [0, 0, 7]]), 2) == [(1, 2, 5), (0, 1, 3)]
    assert most_confused(np.eye(3, dtype=int), 5) == []
