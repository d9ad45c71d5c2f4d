import math

import numpy as np
import pytest

from resnet_tf.reports import metrics


def test_confusion_rows_are_true_classes():
    confusion = metrics.confusion_matrix([0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 0, 2], 4)
    assert confusion.dtype == np.int64
    assert confusion.tolist() == [[1, 2, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]


def test_per_class_accuracy_is_nan_without_images():
    shares = metrics.per_class_accuracy([[1, 2, 0], [0, 0, 0], [1, 0, 3]])
    np.testing.assert_array_equal(shares, [1 / 3, np.nan, 3 / 4])


# Class 3 leads, then 1, then 0 and 2 tie (0 first), then 4.
SCORES = [[0.1, 0.2, 0.1, 0.5, 0.0]]
RANKS = {3: 1, 1: 2, 0: 3, 2: 4, 4: 5}


@pytest.mark.parametrize(("label", "rank"), RANKS.items())
def test_top_k_by_hand(label, rank):
    assert [metrics.top_k_correct(SCORES, [label], k) for k in range(1, 8)] == [int(k >= rank) for k in range(1, 8)]


def test_top_k_sums_over_images():
    assert metrics.top_k_correct(SCORES * 5, [0, 1, 2, 3, 4], 3) == 3


def test_equal_scores_do_not_all_count_as_right():
    flat = np.zeros((10, 10))
    assert [metrics.top_k_correct(flat, np.arange(10), k) for k in (1, 5, 10)] == [1, 5, 10]


def test_not_a_number_ranks_lowest_everywhere():
    scores = [[np.nan, 1.0, np.nan], [np.nan, np.nan, np.nan]]
    assert metrics.predicted_classes(scores).tolist() == [1, 0]
    assert metrics.top_k_correct(scores, [0, 2], 1) == 0
    assert metrics.top_k_correct(scores, [0, 2], 2) == 1


def test_top_1_agrees_with_the_predicted_class():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (500, 6)).astype(np.float32), rng.integers(0, 6, 500)
    assert metrics.top_k_correct(scores, labels, 1) == np.sum(np.argmax(scores, axis=1) == labels)


def test_log_softmax_by_hand():
    # exp of the logits is 1, 2, 5: shares 1/8, 2/8, 5/8.
    logits = np.log([[1.0, 2.0, 5.0]]).astype(np.float32)
    ours = metrics.log_softmax(logits)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, np.log([[1 / 8, 2 / 8, 5 / 8]]), rtol=1e-6)


def test_log_softmax_of_huge_logits():
    np.testing.assert_array_equal(metrics.log_softmax([[1e30, 0.0], [-1e30, 0.0]]), [[0, -1e30], [-1e30, 0]])


@pytest.mark.filterwarnings("error")
def test_infinite_logits_give_nan_quietly():
    assert math.isnan(metrics.cross_entropy_sum([[np.inf, 0.0]], [0]))


def test_cross_entropy_by_hand():
    logits = np.log([[1.0, 3.0], [1.0, 1.0]])
    assert metrics.cross_entropy_sum(logits, [1, 0]) == pytest.approx(math.log(4 / 3) + math.log(2))
    assert metrics.cross_entropy_sum(np.zeros((7, 10)), np.arange(7)) == pytest.approx(7 * math.log(10))


def test_cross_entropy_is_added_in_float64():
    # 2²⁴ + 1 is not a float32.
    logits = np.array([[0, 2**24], [1, 0]], np.float32)
    expected = 2**24 + math.log1p(math.exp(-1))
    assert metrics.cross_entropy_sum(logits, [0, 0]) == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_from_probabilities_by_hand():
    probabilities = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    assert metrics.cross_entropy_sum_from_probabilities(probabilities, [0, 0]) == pytest.approx(math.log(4))
    # The smallest normal float32 is 2^-126.
    assert metrics.cross_entropy_sum_from_probabilities(probabilities, [1, 1]) == pytest.approx(
        math.log(4 / 3) + 126 * math.log(2)
    )
