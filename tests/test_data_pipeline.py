import threading

import numpy as np
import pytest

from resnet_tf.data.loader import ArraySource, TrainLoader, epoch_order, epoch_params
from resnet_tf.data.transforms import NoTransform, PadCropFlip
from resnet_tf.errors import UserError

COUNT = 200


def numbered_source(count=COUNT):
    """Every pixel of image i is i (below 256), and so is its label."""
    numbers = np.arange(count)
    images = np.broadcast_to(numbers[:, None, None, None], (count, 4, 4, 3)).astype(np.uint8)
    return ArraySource(images, numbers)


def random_source(count=COUNT):
    """Random pixels; the label is the index, so that it tells which image is which."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(count))


def pixels_by_image(batches, epoch):
    """Map each image of an epoch to its augmented pixels."""
    seen = {}
    first = epoch * batches.steps_per_epoch
    for images, labels in batches.iterate(first, first + batches.steps_per_epoch):
        seen.update(zip(labels.tolist(), (image.tobytes() for image in images), strict=True))
    return seen


def assert_same_batches(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for (images, labels), (other_images, other_labels) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def batch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_shapes_and_dtypes():
    images, labels = TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=0).batch(0)
    assert (images.shape, images.dtype) == ((32, 8, 8, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((32,), np.int32)
    assert images.flags.c_contiguous


def test_order_is_a_permutation_that_changes_with_epoch_and_seed():
    orders = [epoch_order(seed, epoch, COUNT) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    assert all(order.dtype == np.int64 for order in orders)
    assert all(sorted(order.tolist()) == list(range(COUNT)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4


def test_draws_change_with_epoch_and_seed_and_repeat_for_the_same():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0)]
    draws = [epoch_params(PadCropFlip(), seed, epoch, COUNT).tobytes() for seed, epoch in keys]
    assert len(set(draws)) == 4
    assert draws[0] == draws[4]


def test_the_streams_are_not_those_of_the_bare_seed():
    orders = {epoch_order(5, 0, COUNT).tobytes(), np.random.default_rng(5).permutation(COUNT).tobytes()}
    draws = {epoch_params(PadCropFlip(), 5, 0, COUNT).tobytes()}
    draws.add(PadCropFlip().sample(np.random.default_rng(5), COUNT).tobytes())
    assert (len(orders), len(draws)) == (2, 2)


def test_an_image_keeps_its_label():
    batches = TrainLoader(numbered_source(), NoTransform(), batch_size=32, seed=0, workers=3)
    for images, labels in batches.iterate(0, 10):
        np.testing.assert_array_equal(images, np.broadcast_to(labels[:, None, None, None], images.shape))


def test_an_image_gets_the_draw_of_its_index():
    source, transform = random_source(), PadCropFlip()
    batches = TrainLoader(source, transform, batch_size=50, seed=3)
    draws = epoch_params(transform, 3, 1, COUNT)
    images, labels = batches.batch(batches.steps_per_epoch + 2)
    for image, index in zip(images, labels, strict=True):
        np.testing.assert_array_equal(image, transform.apply(source.images[index], draws[index]))


def test_batches_follow_the_order_of_the_epoch():
    batches = TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=7)
    for epoch in (0, 1):
        labels = [batches.batch(epoch * 6 + position)[1] for position in range(6)]
        np.testing.assert_array_equal(np.concatenate(labels), epoch_order(7, epoch, COUNT)[:192])


def test_the_last_partial_batch_is_dropped():
    batches = TrainLoader(random_source(), NoTransform(), batch_size=32, seed=0)
    assert batches.steps_per_epoch == 6
    assert TrainLoader(random_source(), NoTransform(), batch_size=COUNT, seed=0).steps_per_epoch == 1


def test_an_epoch_sees_no_image_twice_and_the_next_has_another_order():
    batches = TrainLoader(random_source(), NoTransform(), batch_size=32, seed=0)
    epochs = [[label for _, labels in batches.iterate(s, s + 6) for label in labels.tolist()] for s in (0, 6)]
    assert all(len(set(seen)) == 192 for seen in epochs)
    assert epochs[0] != epochs[1]


def test_pixels_do_not_depend_on_batch_size_workers_or_look_ahead():
    small = TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=1)
    large = TrainLoader(random_source(), PadCropFlip(), batch_size=50, seed=1, workers=3, ahead=2)
    few, many = pixels_by_image(small, 1), pixels_by_image(large, 1)
    assert (len(few), len(many)) == (192, 200)
    assert few == {index: many[index] for index in few}


def test_pixels_do_not_depend_on_the_other_training_images():
    source = random_source()
    whole = pixels_by_image(TrainLoader(source, PadCropFlip(), batch_size=50, seed=1), 0)
    kept = np.arange(10, 150, 2)
    part = pixels_by_image(TrainLoader(source, PadCropFlip(), batch_size=7, seed=1, indices=kept), 0)
    assert sorted(part) == kept.tolist()
    assert part == {index: whole[index] for index in part}


def test_one_and_three_workers_give_the_same_batches():
    one, three = (TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=2, workers=n) for n in (1, 3))
    assert_same_batches(one.iterate(0, 20), three.iterate(0, 20))


def test_starting_in_the_middle_gives_the_tail_of_the_whole():
    batches = TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=2)
    whole = list(batches.iterate(0, 20))
    again = TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=2, workers=2)
    assert_same_batches(again.iterate(9, 20), whole[9:])
    assert_same_batches([again.batch(step) for step in range(20)], whole)


@pytest.mark.parametrize(("start", "stop", "ahead"), [(0, 0, 4), (5, 5, 4), (0, 2, 4), (3, 20, 1)])
def test_iterate_yields_each_step_once(start, stop, ahead):
    batches = TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=2, ahead=ahead)
    assert_same_batches(batches.iterate(start, stop), [batches.batch(step) for step in range(start, stop)])


class CountingTransform(PadCropFlip):
    def sample(self, rng, count):
        drawn.append(count)
        return super().sample(rng, count)


drawn: list[int] = []


def test_draws_are_made_once_an_epoch():
    drawn.clear()
    batches = TrainLoader(random_source(), CountingTransform(), batch_size=20, seed=0)
    for step in [*range(20), 9, 10]:
        batches.batch(step)
    assert drawn == [COUNT, COUNT]


class BrokenSource(ArraySource):
    """Cannot read image 42."""

    def image(self, index):
        if index == 42:
            raise OSError("image 42 is damaged")
        return super().image(index)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_workers_exception_surfaces_at_its_step(workers):
    source = BrokenSource(random_source().images, np.arange(COUNT))
    batches = TrainLoader(source, NoTransform(), batch_size=10, seed=0, workers=workers, ahead=8)
    damaged = epoch_order(0, 0, COUNT).tolist().index(42) // 10
    assert damaged > 0
    steps = batches.iterate(0, 20)
    for _ in range(damaged):
        next(steps)
    with pytest.raises(OSError, match="image 42 is damaged"):
        next(steps)
    assert not batch_threads()


class RecordingSource(ArraySource):
    def __init__(self, count):
        super().__init__(np.zeros((count, 2, 2, 3), np.uint8), np.arange(count))
        self.read = set()

    def image(self, index):
        self.read.add(index)
        return super().image(index)


def test_closing_ends_the_threads_and_no_more_than_ahead_was_prepared():
    source = RecordingSource(COUNT)
    batches = TrainLoader(source, NoTransform(), batch_size=10, seed=0, workers=3, ahead=4)
    steps = batches.iterate(0, 1000)
    next(steps)
    assert batch_threads()
    steps.close()
    assert not batch_threads()
    assert source.read <= set(epoch_order(0, 0, COUNT)[:50].tolist())


def test_batches_are_prepared_while_the_consumer_works():
    source = RecordingSource(COUNT)
    reached = threading.Event()
    wanted = int(epoch_order(0, 0, COUNT)[45])

    class Announcing(NoTransform):
        def apply(self, image, params):
            if wanted in source.read:
                reached.set()
            return image

    steps = TrainLoader(source, Announcing(), batch_size=10, seed=0, ahead=4).iterate(0, 20)
    next(steps)
    # The consumer asks for nothing more; step 4 is prepared all the same.
    assert reached.wait(timeout=60)
    steps.close()


def test_a_batch_larger_than_the_data_names_both_numbers():
    with pytest.raises(UserError, match=r"128 is larger than the 100 training images"):
        TrainLoader(random_source(), NoTransform(), batch_size=128, seed=0, indices=np.arange(100))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1]),
        (np.zeros((2, 4, 4), np.uint8), [0, 1]),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1, 2]),
        (np.zeros((2, 4, 4, 3), np.uint8), [[0], [1]]),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.0, 1.0]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels):
    with pytest.raises(ValueError, match="must be"):
        ArraySource(images, labels)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_shares_of_all_processes_are_the_batch(count):
    whole = TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=3)
    shards = [
        TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=3, shard=(i, count)) for i in range(count)
    ]
    for step in (0, 5, 6, 11):  # the first and last of two epochs
        parts = [shard.batch(step) for shard in shards]
        assert {len(labels) for _, labels in parts} == {32 // count}
        assert_same_batches([tuple(map(np.concatenate, zip(*parts, strict=True)))], [whole.batch(step)])
    assert {shard.steps_per_epoch for shard in shards} == {whole.steps_per_epoch}


def test_a_share_is_read_and_augmented_alone():
    class Counting(ArraySource):
        def image(self, index):
            read.append(index)
            return super().image(index)

    read = []
    source = random_source()
    batches = TrainLoader(Counting(source.images, source.labels), PadCropFlip(), batch_size=32, seed=0, shard=(1, 4))
    _, labels = batches.batch(0)
    assert read == labels.tolist()
    assert len(read) == 8


def test_each_part_of_a_batch_is_shared():
    """Two parts of 6 for three processes: rows 0, 1 and 6, 7 are the first one's."""
    whole = TrainLoader(random_source(), PadCropFlip(), batch_size=12, seed=0).batch(0)
    for index in range(3):
        shared = TrainLoader(
            random_source(), PadCropFlip(), batch_size=12, seed=0, shard=(index, 3), microbatches=2
        ).batch(0)
        rows = [2 * index, 2 * index + 1, 6 + 2 * index, 7 + 2 * index]
        assert_same_batches([shared], [(whole[0][rows], whole[1][rows])])


def test_a_batch_that_cannot_be_shared_evenly():
    with pytest.raises(UserError, match="the batch size 32 cannot be shared evenly; give a multiple of 6"):
        TrainLoader(random_source(), PadCropFlip(), batch_size=32, seed=0, shard=(0, 3), microbatches=2)
