"""Images on the device: the pixels of OpenCV, and the updates of batches that come from the host."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet_tf.data.loader import ArraySource, TrainLoader
from resnet_tf.data.tf_batches import DeviceCachedLoader, PrefetchToDevice, to_device
from resnet_tf.data.transforms import NoTransform, PadCropFlip
from resnet_tf.errors import UserError
from resnet_tf.fused import fused_view
from resnet_tf.models.resnet import cifar_resnet
from resnet_tf.recipes import get_recipe
from resnet_tf.training import checkpoint
from resnet_tf.training.step import make_multi_step, make_optimizer, make_train_step


def some_batches(transform, shape=(6, 5, 3), count=40):
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (count, *shape), dtype=np.uint8), rng.integers(0, 10, count))
    batches = TrainLoader(source, transform, batch_size=8, seed=1, indices=np.arange(0, count, 2))
    return batches, DeviceCachedLoader(batches, source, transform)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (PadCropFlip(2, fill=(1, 2, 3)), (6, 5, 3)),
        (PadCropFlip(4, fill=(9,)), (3, 7, 1)),
        (PadCropFlip(7, fill=(1, 2, 3)), (4, 4, 3)),
        (PadCropFlip(0), (4, 4, 3)),
        (PadCropFlip(3, mode="reflect"), (6, 5, 3)),
        (PadCropFlip(6, mode="reflect"), (4, 3, 3)),
        (PadCropFlip(2, mode="reflect"), (1, 1, 3)),
    ],
)
def test_the_pixels_are_those_of_opencv(transform, shape):
    batches, resident = some_batches(transform, shape)
    flipped = set()
    for step, (indices, params) in enumerate(resident.iterate(0, 5)):
        expected, _ = batches.batch(step)
        np.testing.assert_array_equal(resident.images(tf.constant(indices), tf.constant(params)), expected)
        flipped |= set(params[:, 2].tolist())
    assert flipped == {0, 1}


def test_a_pixel_by_hand():
    image = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    transform = PadCropFlip(1, fill=(70, 80, 90))
    source = ArraySource(image, [0])
    resident = DeviceCachedLoader(TrainLoader(source, transform, batch_size=1, seed=0), source, transform)
    # Down and right by one of the padded corner at (2, 1): the lower row of the image, then the pad; mirrored.
    found = resident.images(tf.constant([0], tf.int64), tf.constant([[2, 1, 1]], tf.int64)).numpy()
    np.testing.assert_array_equal(found[0], [[[9, 10, 11], [6, 7, 8]], [[70, 80, 90], [70, 80, 90]]])


def test_updates_are_those_of_batches_from_the_host():
    transform, after = PadCropFlip(2, fill=(120,)), []
    for on_device in (False, True):
        keras.utils.set_random_seed(3)
        model = cifar_resnet(8, version=1, input_shape=(8, 8, 3))
        recipe = get_recipe("he2015")
        optimizer = make_optimizer(recipe, "float32")
        optimizer.build(model.trainable_variables)
        step = make_train_step(model, fused_view(model, "float32"), optimizer, recipe, jit_compile=False)
        steps = make_multi_step(step, model)
        batches, resident = some_batches(transform, (8, 8, 3))
        feed = resident if on_device else batches
        if on_device:
            step, steps = resident.update(step), resident.update(steps, several=True)
        first, *rest = feed.iterate(0, 4)
        results = [step(*first, np.float32(0.1)).numpy()]
        columns = [np.stack(column) for column in zip(*rest, strict=True)]
        results.extend(steps(*columns, np.full(3, 0.1, np.float32)).numpy())
        after.append((np.stack(results), *(v.numpy() for v in model.variables)))
        assert int(optimizer.iterations) == 4
    for host, device in zip(*after, strict=True):
        np.testing.assert_array_equal(device, host)


def test_copies_are_the_batches_of_the_host_in_order():
    batches, _ = some_batches(PadCropFlip(2))
    copies = list(PrefetchToDevice(batches).iterate(3, 9))
    assert len(copies) == 6
    for step, (images, labels) in enumerate(copies, start=3):
        expected, expected_labels = batches.batch(step)
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)
    assert list(PrefetchToDevice(batches).iterate(3, 3)) == []


@pytest.mark.parametrize(
    ("keep", "is_gpu", "steps_per_execution", "kind"),
    [
        ("auto", False, 1, TrainLoader),
        ("auto", True, 10, DeviceCachedLoader),
        ("always", False, 1, DeviceCachedLoader),
        ("never", True, 1, PrefetchToDevice),
        ("never", True, 10, TrainLoader),
    ],
)
def test_the_way_to_the_device(keep, is_gpu, steps_per_execution, kind):
    transform = PadCropFlip(2)
    source = ArraySource(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, np.int32))
    batches = TrainLoader(source, transform, batch_size=2, seed=0)
    assert (
        type(to_device(batches, source, transform, keep=keep, is_gpu=is_gpu, steps_per_execution=steps_per_execution))
        is kind
    )


def test_what_cannot_stay():
    source = ArraySource(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8, np.int32))
    batches = TrainLoader(source, NoTransform(), batch_size=2, seed=0)
    with pytest.raises(UserError, match="keep_on_device='always' is for CIFAR and shapes as they are"):
        to_device(batches, source, NoTransform(), keep="always", is_gpu=False, steps_per_execution=1)
    assert to_device(batches, source, NoTransform(), keep="auto", is_gpu=False, steps_per_execution=1) is batches
    with pytest.raises(UserError, match="keep_on_device='always' is for one device, here are 2 replicas"):
        to_device(batches, source, PadCropFlip(2), keep="always", is_gpu=True, steps_per_execution=1, replicas=2)
    assert (
        to_device(batches, source, PadCropFlip(2), keep="auto", is_gpu=True, steps_per_execution=1, replicas=2)
        is batches
    )


def test_a_run_with_its_images_on_the_device_ends_with_the_same_bits(tmp_path, train):
    flags = ("--iterations", "8", "--eval-every", "5", "--precision", "float32", "--checkpoint-every", "3")
    digests = []
    for way in ("never", "always"):
        train(tmp_path / way, *flags, "--keep-on-device", way, "--steps-per-call", "2")
        arrays = checkpoint.load_newest(tmp_path / way / "checkpoints")[0]
        digests.append({key: value.tobytes() for key, value in arrays.items()})
    assert digests[0] == digests[1]
