import numpy as np
import pytest

from resnet_tf.data.transforms import NoTransform, PadCropFlip, mean_fill


def random_image(channels=3, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def numpy_reference(image, draw, pad, mode, fill):
    margins = ((pad, pad), (pad, pad))
    planes = []
    for channel, value in enumerate(fill):
        plane = image[:, :, channel]
        options = {"constant_values": value} if mode == "constant" else {}
        planes.append(np.pad(plane, margins, mode=mode, **options))
    dy, dx, flip = draw
    crop = np.stack(planes, axis=-1)[dy : dy + image.shape[0], dx : dx + image.shape[1]]
    return crop[:, ::-1] if flip else crop


def test_ten_thousand_draws_see_each_of_the_81_offsets_and_no_other():
    draws = PadCropFlip(pad=4).sample(np.random.default_rng(0), 10_000)
    assert {(dy, dx) for dy, dx, _ in draws.tolist()} == {(dy, dx) for dy in range(9) for dx in range(9)}


def test_offsets_are_uniform_and_independent_of_the_flip():
    draws = PadCropFlip(pad=1).sample(np.random.default_rng(1), 18_000)
    counts = np.unique(draws, axis=0, return_counts=True)[1]
    # 18 equally likely outcomes, 1,000 expected of each, standard deviation 31: five of them either way.
    assert len(counts) == 18
    assert np.all(np.abs(counts - 1000) < 155)


def test_half_of_the_images_are_flipped():
    flips = PadCropFlip().sample(np.random.default_rng(2), 10_000)[:, 2]
    assert set(flips.tolist()) == {0, 1}
    # Binomial(10,000, ½) has a standard deviation of 50.
    assert abs(int(flips.sum()) - 5000) < 250


def test_an_images_draw_does_not_depend_on_how_many_follow():
    transform = PadCropFlip()
    few, many = (transform.sample(np.random.default_rng(3), count) for count in (100, 50_000))
    np.testing.assert_array_equal(few, many[:100])


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_apply_is_numpys_pad_crop_flip_to_the_pixel(mode, channels):
    image = random_image(channels, height=9, width=7)
    fill = tuple(range(40, 40 + channels))
    transform = PadCropFlip(pad=2, mode=mode, fill=fill)
    for draw in [(dy, dx, flip) for dy in (0, 1, 4) for dx in (0, 3, 4) for flip in (0, 1)]:
        varied = transform.apply(image, np.array(draw))
        assert varied.dtype == np.uint8
        np.testing.assert_array_equal(varied, numpy_reference(image, draw, 2, mode, fill))


def test_the_middle_offset_is_the_image_itself():
    image = random_image()
    np.testing.assert_array_equal(PadCropFlip().apply(image, np.array([4, 4, 0])), image)


def test_a_known_picture():
    image = np.array([[1, 2], [3, 4]], np.uint8)[:, :, None]
    # Offset (0, 1) of the image padded by 1: a row of padding above, then 1 2; mirrored 2 1.
    varied = PadCropFlip(pad=1, fill=(9,)).apply(image, np.array([0, 1, 1]))
    assert varied[:, :, 0].tolist() == [[9, 9], [2, 1]]


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_a_fill_of_equal_values_suits_any_number_of_channels(channels):
    corner = PadCropFlip(fill=(7,)).apply(random_image(channels), np.array([0, 0, 0]))[:4, :4]
    assert corner.shape == (4, 4, channels)
    assert np.all(corner == 7)


def test_apply_leaves_the_original_alone():
    image = random_image()
    image.setflags(write=False)
    before = image.copy()
    for mode in ("constant", "reflect"):
        PadCropFlip(mode=mode).apply(image, np.array([0, 8, 1]))
    np.testing.assert_array_equal(image, before)


def test_no_augmentation_returns_the_image():
    image, transform = random_image(), NoTransform()
    draws = transform.sample(np.random.default_rng(0), 5)
    assert draws.shape == (5, 0)
    assert transform.apply(image, draws[0]) is image


def test_mean_fill_rounds_the_mean_of_each_channel():
    # CIFAR-10's training mean, published as (0.4914, 0.4822, 0.4465) of 255.
    assert mean_fill(np.array([125.3, 122.95, 113.87], np.float32)) == (125, 123, 114)
    assert all(type(value) is int for value in mean_fill(np.array([125.3])))
