import keras
import numpy as np
import pytest

from resnet_tf.training.step import balanced_weights, cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(7, 4)).astype(np.float32) * 3
LABELS = np.array([0, 1, 2, 3, 0, 0, 2], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_that_of_keras_and_of_numpy(smoothing):
    ours = np.asarray(cross_entropy(LABELS, LOGITS, smoothing))
    targets = np.eye(4)[LABELS] * (1 - smoothing) + smoothing / 4
    log_shares = LOGITS - np.log(np.exp(LOGITS.astype(float)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(ours, -(targets * log_shares).sum(axis=1), rtol=1e-5)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    np.testing.assert_allclose(ours, np.asarray(theirs(np.eye(4, dtype=np.float32)[LABELS], LOGITS)), rtol=1e-5)


def test_class_weights_are_factors_of_the_images():
    plain, weighed = (np.asarray(cross_entropy(LABELS, LOGITS, 0.1, weights)) for weights in (None, [1, 2, 0.5, 0]))
    np.testing.assert_allclose(weighed, plain * np.array([1, 2, 0.5, 0, 1, 1, 0.5]), rtol=1e-6)


def test_balanced_weights_by_hand():
    # 8 images of 4 classes: 8 / (4 · n).
    np.testing.assert_allclose(balanced_weights([0, 0, 0, 0, 1, 2, 2, 3], 4), [0.5, 2, 1, 2])
    np.testing.assert_array_equal(balanced_weights([0, 0, 2], 3), [0.5, 0, 1])
