import hashlib

import numpy as np
import pytest

from resnet_tf.data.dataset import Split, fingerprint, stratified_split
from resnet_tf.data.loader import ArraySource, source_statistics
from resnet_tf.errors import UserError


def split_of(pixel=7, label=1):
    return Split(np.full((2, 1, 1, 3), pixel, np.uint8), np.array([0, label], np.int32))


def test_split_has_a_length():
    assert len(split_of()) == 2


def test_fingerprint_is_the_sha256_of_shape_pixels_and_labels():
    expected = hashlib.sha256(b"((2, 1, 1, 3), 'uint8')" + bytes([7] * 6) + bytes([0, 0, 0, 0, 1, 0, 0, 0]))
    assert fingerprint(split_of()) == expected.hexdigest()


def test_fingerprint_sees_pixels_labels_shape_and_order():
    plain = split_of()
    mixed = Split(np.arange(6, dtype=np.uint8).reshape(2, 1, 1, 3), np.array([0, 1], np.int32))
    others = [split_of(pixel=8), split_of(label=2), Split(plain.images.reshape(2, 1, 3, 1), plain.labels), mixed]
    others.append(Split(mixed.images[::-1], mixed.labels))
    assert len({fingerprint(split) for split in [plain, *others]}) == 6


def test_fingerprint_ignores_memory_layout_and_label_width():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    same = Split(np.asfortranarray(images), np.array([3, 4], np.int64))
    assert fingerprint(same) == fingerprint(Split(images, np.array([3, 4], np.int32)))


def test_five_thousand_of_cifar_are_five_hundred_a_class():
    labels = np.arange(50_000) % 10
    train, validation = stratified_split(labels, 5_000, seed=0)
    assert np.bincount(labels[validation]).tolist() == [500] * 10
    assert np.array_equal(np.sort(np.concatenate([train, validation])), np.arange(50_000))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()


@pytest.mark.parametrize(("size", "shares"), [(0.5, [4, 2, 1]), (7, [4, 2, 1]), (4, [2, 1, 1]), (1, [1, 0, 0])])
def test_shares_follow_the_largest_remainder(size, shares):
    # Of 13 images (7 + 4 + 2): a half rounds to 7, whose quotas are 3.77, 2.15, 1.08; of 4 they are 2.15, 1.23, 0.62.
    labels = np.array([0] * 7 + [1] * 4 + [2] * 2)
    validation = stratified_split(labels, size, seed=3)[1]
    assert np.bincount(labels[validation], minlength=3).tolist() == shares


@pytest.mark.parametrize("size", [0, 0.0])
def test_zero_leaves_validation_empty(size):
    train, validation = stratified_split(np.zeros(5, int), size, seed=0)
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert validation.tolist() == []


def test_split_depends_on_the_seed_alone():
    labels = np.arange(200) % 4
    again = [stratified_split(labels, 0.1, seed)[1].tolist() for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


@pytest.mark.parametrize("size", [-1, -0.1, 1.0, 1.5, 10, 11, float("nan"), True, 0.01, 0.99, np.int64(10)])
def test_senseless_sizes_are_refused_in_one_line(size):
    with pytest.raises(UserError, match=r"fraction in \[0, 1\)") as caught:
        stratified_split(np.zeros(10, int), size, seed=0)
    assert "\n" not in str(caught.value)


def channel_statistics(images):
    return source_statistics(ArraySource(images, np.zeros(len(images), int)), np.arange(len(images)))


def test_statistics_by_hand():
    # Red 0, 0, 0, 4: mean 1, variance (1 + 1 + 1 + 9) / 4 = 3. Green all 255. Blue 10, 20, 30, 40: variance 125.
    pixels = [[0, 255, 10], [0, 255, 20], [0, 255, 30], [4, 255, 40]]
    mean, std = channel_statistics(np.array(pixels, np.uint8).reshape(2, 1, 2, 3))
    assert mean == (1.0, 255.0, 25.0)
    assert std == (3**0.5, 0.0, 125**0.5)


def test_statistics_beyond_one_piece_agree_with_numpy():
    images = np.random.default_rng(0).integers(0, 256, (2_500, 4, 4, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, images.std((0, 1, 2)), rtol=1e-12)
