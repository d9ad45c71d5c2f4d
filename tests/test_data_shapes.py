import numpy as np
import pytest

from resnet_tf.data.shapes import load_shapes


@pytest.fixture(scope="module")
def shapes():
    return load_shapes(train_size=6_000, test_size=1_000)


def test_form(shapes):
    assert shapes.train.images.shape == (6_000, 32, 32, 3)
    assert shapes.test.images.shape == (1_000, 32, 32, 3)
    assert shapes.train.images.dtype == np.uint8
    assert shapes.train.labels.dtype == np.int32
    assert (shapes.name, shapes.source) == ("shapes", "built-in")
    assert len(set(shapes.class_names)) == 10


def test_classes_are_balanced(shapes):
    assert np.bincount(shapes.train.labels).tolist() == [600] * 10
    assert np.bincount(shapes.test.labels).tolist() == [100] * 10


def test_an_image_depends_on_seed_split_and_index_alone(shapes):
    small = load_shapes(train_size=30, test_size=20)
    assert np.array_equal(small.train.images, shapes.train.images[:30])
    assert np.array_equal(small.test.images, shapes.test.images[:20])
    assert not np.array_equal(load_shapes(seed=1, train_size=1, test_size=1).train.images, small.train.images[:1])


def test_no_image_occurs_twice(shapes):
    images = np.concatenate([shapes.train.images, shapes.test.images])
    assert len({image.tobytes() for image in images}) == 7_000


def test_the_whole_range_of_values_is_used_and_color_tells_nothing(shapes):
    assert shapes.train.images.min() == 0
    assert shapes.train.images.max() == 255
    color = shapes.train.images.mean((1, 2))
    by_class = np.stack([color[shapes.train.labels == label].mean(0) for label in range(10)])
    # Five standard errors of a class mean over 600 images, whose own deviation is about 60.
    assert np.abs(by_class - color.mean(0)).max() < 5 * 60 / 600**0.5


def test_a_linear_model_does_not_solve_it(shapes):
    flat = shapes.train.images.reshape(6_000, -1).astype(np.float32)
    mean, std = flat.mean(0), flat.std(0)
    train, labels = (flat - mean) / std, shapes.train.labels
    weights = np.zeros((3_072, 10), np.float32)
    rng = np.random.default_rng(0)
    for batch in np.concatenate([rng.permutation(6_000).reshape(30, 200) for _ in range(8)]):
        scores = np.exp(np.clip(train[batch] @ weights, -30, 30))
        error = scores / scores.sum(1, keepdims=True) - np.eye(10, dtype=np.float32)[labels[batch]]
        weights -= 0.003 * train[batch].T @ error / 200
    train_accuracy = ((train @ weights).argmax(1) == labels).mean()
    scores = ((shapes.test.images.reshape(1_000, -1) - mean) / std) @ weights
    assert train_accuracy > 0.15, "the linear model has learnt nothing, so the bound below would say nothing"
    assert (scores.argmax(1) == shapes.test.labels).mean() < 0.6
