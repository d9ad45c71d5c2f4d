import json
import math

import keras
import numpy as np
import pytest

from resnet_tf.errors import UserError
from resnet_tf.files import read_json, write_json
from resnet_tf.inference import EvalMetrics, compiled_forward, evaluate_arrays
from resnet_tf.models.foreign import output_type

# Powers of two as "probabilities × 8" make every expected number below exact arithmetic on logarithms.
LOGITS = np.log(
    [
        [4, 2, 1, 1],  # class 0
        [2, 4, 1, 1],  # class 1
        [1, 1, 4, 2],  # class 2
        [4, 2, 1, 1],  # class 0
        [1, 2, 1, 4],  # class 3
    ]
)
LABELS = np.array([0, 0, 2, 0, 2])


def indexed_images(count):
    """Pixel (0, 0, 0) of image i is i."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return images


def look_up(table):
    return lambda images: table[images[:, 0, 0, 0]].astype(np.float32)


def check_by_hand(result):
    # The true classes got 4, 2, 4, 4 and 1 eighths.
    assert result.loss == pytest.approx(math.log(2) * (1 + 2 + 1 + 1 + 3) / 5)
    assert (result.top1, result.top5, result.images) == (3 / 5, 1.0, 5)
    assert result.per_class == (2 / 3, None, 1 / 2, None)
    assert result.confusion == ((2, 1, 0, 0), (0, 0, 0, 0), (0, 0, 1, 1), (0, 0, 0, 0))
    assert result.images_per_second > 0


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 500])
def test_numbers_by_hand_at_any_batch_size(batch_size):
    images = indexed_images(5)
    check_by_hand(evaluate_arrays(look_up(LOGITS), images, LABELS, kind="logits", classes=4, batch_size=batch_size))
    shares = np.exp(LOGITS) / 8
    check_by_hand(evaluate_arrays(look_up(shares), images, LABELS, kind="softmax", classes=4, batch_size=batch_size))


def test_a_last_batch_of_three_weighs_as_three():
    rng = np.random.default_rng(0)
    table, labels = rng.normal(size=(203, 10)) * 3, rng.integers(0, 10, 203)
    # The last three are hopeless, so that a mean of batch means would be far off.
    table[200:] = 0
    table[200:, 0], labels[200:] = 50, 9
    result = evaluate_arrays(look_up(table), indexed_images(203), labels, kind="logits", classes=10, batch_size=50)
    table = table.astype(np.float32).astype(float)
    shares = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
    assert result.loss == pytest.approx(-np.log(shares[np.arange(203), labels]).mean())
    assert result.top1 == np.mean(table.argmax(axis=1) == labels)
    assert result.top5 == np.mean([label in np.argsort(-row)[:5] for row, label in zip(table, labels, strict=True)])
    assert np.sum(result.confusion) == result.images == 203


def test_every_image_is_seen_once_and_in_order():
    seen = []

    def forward(images):
        seen.extend(images[:, 0, 0, 0].tolist())
        return np.zeros((len(images), 4))

    evaluate_arrays(forward, indexed_images(7), [0] * 7, kind="logits", classes=4, batch_size=3)
    assert seen == list(range(7))


def test_as_dict_is_json():
    result = evaluate_arrays(look_up(LOGITS), indexed_images(5), LABELS, kind="logits", classes=4)
    record = result.as_dict()
    assert list(record) == ["loss", "top1", "top5", "images", "per_class", "confusion", "images_per_second"]
    assert json.loads(json.dumps(record)) == record


def test_a_diverged_network_has_a_nan_loss_and_no_more_than_chance():
    table = np.full((8, 4), np.nan)
    result = evaluate_arrays(look_up(table), indexed_images(8), [0, 1, 2, 3] * 2, kind="logits", classes=4)
    assert math.isnan(result.loss)
    assert result.top1 == 1 / 4


@pytest.mark.parametrize("labels", [[0, 4], [-1, 0]])
def test_labels_beyond_the_classes_are_the_users(labels):
    with pytest.raises(UserError, match="4 classes"):
        evaluate_arrays(look_up(LOGITS), indexed_images(2), labels, kind="logits", classes=4)


def test_another_number_of_outputs_is_the_users():
    with pytest.raises(UserError, match=r"\(5, 4\) where \(5, 10\)"):
        evaluate_arrays(look_up(LOGITS), indexed_images(5), LABELS, kind="logits", classes=10)


def test_no_images_is_the_users():
    with pytest.raises(UserError, match="no images"):
        evaluate_arrays(look_up(LOGITS), indexed_images(0), [], kind="logits", classes=4)


def test_a_batch_size_of_zero_is_the_users():
    with pytest.raises(UserError, match="batch size is 0"):
        evaluate_arrays(look_up(LOGITS), indexed_images(5), LABELS, kind="logits", classes=4, batch_size=0)


def test_programming_errors():
    with pytest.raises(ValueError, match="kind is 'probabilities'"):
        evaluate_arrays(look_up(LOGITS), indexed_images(5), LABELS, kind="probabilities", classes=4)
    with pytest.raises(ValueError, match="for 5 images"):
        evaluate_arrays(look_up(LOGITS), indexed_images(5), LABELS[:4], kind="logits", classes=4)


def network(*last, size=8):
    inputs = keras.Input((size, size, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    for layer in last:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def dense(activation=None):
    return keras.layers.Dense(4, activation=activation)


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        ([dense()], "logits"),
        ([dense("softmax")], "softmax"),
        ([dense(), keras.layers.Softmax()], "softmax"),
        ([dense(), keras.layers.Activation("softmax", dtype="float32")], "softmax"),
        ([dense(), keras.layers.Activation("linear", dtype="float32")], "logits"),
        ([dense("softmax"), keras.layers.Activation("linear", dtype="float32")], "softmax"),
        ([keras.Sequential([dense("softmax")])], "softmax"),
        ([dense(), keras.layers.Reshape((1, 4)), keras.layers.Flatten()], "logits"),  # as MobileNetV3 ends
        ([dense(), keras.layers.Reshape((4,)), keras.layers.Activation("softmax")], "softmax"),
    ],
)
def test_head_kind(last, kind, tmp_path):
    model = network(*last)
    assert output_type(model) == kind
    model.save(tmp_path / "model.keras")
    assert output_type(keras.models.load_model(tmp_path / "model.keras")) == kind


@pytest.mark.parametrize(
    ("last", "words"),
    [([keras.layers.Dense(4, "sigmoid", name="head")], "Dense 'head' with sigmoid"), ([], "GlobalAveragePooling2D")],
)
def test_another_head_is_named(last, words):
    with pytest.raises(UserError, match=words):
        output_type(network(*last))


@pytest.mark.parametrize("size", [8, None])
def test_compiled_forward_is_inference_traced_once(size):
    model = network(keras.layers.Dropout(0.9), dense(), size=size)
    forward = compiled_forward(model)
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    means = images.mean(axis=(1, 2)) / 255
    expected = means @ model.layers[-1].kernel.numpy()
    for part in (slice(0, 4), slice(4, 7)):
        np.testing.assert_allclose(forward(images[part]), expected[part], atol=1e-5)
    assert forward.experimental_get_tracing_count() == 1


def test_score_of_a_compiled_network():
    model = network(dense())
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    labels = np.argmax(model(images, training=False), axis=1)
    result = evaluate_arrays(compiled_forward(model), images, labels, kind=output_type(model), classes=4, batch_size=4)
    assert (result.top1, result.images) == (1.0, 7)


@pytest.mark.parametrize(("classes", "kept"), [(1000, True), (1001, False)])
def test_a_report_of_many_classes_can_be_read_again(tmp_path, classes, kept):
    matrix = ((5,) * classes,) * classes
    numbers = EvalMetrics(0.5, 0.5, 0.5, 5 * classes**2, (0.5,) * classes, matrix, 1.0).as_dict()
    assert ("confusion" in numbers) == kept
    write_json(tmp_path / "report.json", {"test": numbers, "best": {"test": numbers}})
    assert read_json(tmp_path / "report.json", {}, "")["best"]["test"]["images"] == 5 * classes**2
