import colorsys
import itertools
import time

import numpy as np
import pytest

from resnet_tf.data import transforms as color
from resnet_tf.data.image_folder import ImageFiles
from resnet_tf.data.image_io import cv2
from resnet_tf.data.loader import (
    ArraySource,
    FileSource,
    ResizedSource,
    TrainLoader,
    ordered_batches,
    source_statistics,
)
from resnet_tf.data.transforms import (
    AUGMENTATIONS,
    BOX_DRAWS,
    CustomTransform,
    NoTransform,
    PadCropFlip,
    RandomCropFlip,
    ResizeCenterCrop,
    StrongAugment,
    crop,
    custom_transforms,
    flip,
    make_transforms,
    random_box,
    resize,
    rotate,
)
from resnet_tf.errors import UserError


def random_image(height=40, width=30, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image.setflags(write=False)
    return image


def smooth_image(height=64, width=64):
    return cv2.normalize(cv2.GaussianBlur(random_image(height, width), (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)


SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def box_draws(area, shape, down, right):
    return [area, shape] * 10 + [down, right]


@pytest.mark.parametrize(
    ("size", "draws", "box"),
    [
        # √(0.08 · 100²) = 28.3 either way.
        ((100, 100), box_draws(0, 0.5, 0, 0), (0, 0, 28, 28)),
        ((100, 100), box_draws(0, 0.5, 0.9999, 0.9999), (72, 72, 28, 28)),
        # √(800 · ¾) = 24.5 and √(800 · 4/3) = 32.7.
        ((100, 100), box_draws(0, 0, 0, 0), (0, 0, 33, 24)),
        ((100, 100), box_draws(0, 0.99999, 0, 0), (0, 0, 24, 33)),
        ((100, 100), box_draws(0.99999, 0.5, 0.5, 0.5), (0, 0, 100, 100)),
        # No box of 8 % of it fits: the largest of 4:3, or of 3:4, in the middle.
        ((10, 1000), box_draws(0, 0.5, 0, 0), (0, 493, 10, 13)),
        ((1000, 10), box_draws(0, 0.5, 0, 0), (493, 0, 13, 10)),
        ((1, 1), box_draws(0, 0.5, 0, 0), (0, 0, 1, 1)),
    ],
)
def test_boxes_by_hand(size, draws, box):
    assert random_box(*size, draws, SCALE, RATIO) == box


def test_a_box_that_does_not_fit_is_tried_again():
    draws = [0.99, 0, *([0, 0.5] * 9), 0, 0]
    assert random_box(100, 100, draws, SCALE, RATIO) == (0, 0, 28, 28)


def test_boxes_have_the_areas_and_shapes_and_places_they_may_have():
    draws = np.random.default_rng(0).random((20_000, BOX_DRAWS))
    boxes = np.array([random_box(300, 400, row.tolist(), SCALE, RATIO) for row in draws])
    top, left, height, width = boxes.T
    assert np.all((top >= 0) & (left >= 0) & (top + height <= 300) & (left + width <= 400))
    area, shape = height * width / 120_000, width / height
    assert 0.079 < area.min() < 0.083
    assert area.max() > 0.98
    assert 0.74 < shape.min() < 0.76
    assert 1.32 < shape.max() < 1.35
    # Boxes of less than half the area always fit, so their areas are uniform and the mean of log ratios is 0; 0.42/√12
    # and 0.166 are the deviations of one.
    small = (area > 0.08) & (area < 0.5)
    assert abs(area[small].mean() - 0.29) < 5 * 0.121 / np.sqrt(small.sum())
    assert abs(np.log(shape[small]).mean()) < 5 * 0.167 / np.sqrt(small.sum())
    assert abs((top / np.maximum(300 - height, 1))[small].mean() - 0.5) < 0.02


def test_every_place_of_a_box_is_taken():
    rng = np.random.default_rng(1)
    places = {random_box(4, 4, rng.random(BOX_DRAWS).tolist(), (0.25, 0.25), (1, 1)) for _ in range(500)}
    assert places == {(y, x, 2, 2) for y in range(3) for x in range(3)}


def test_crop_and_flip_to_the_pixel():
    image = random_image()
    np.testing.assert_array_equal(crop(image, (3, 5, 20, 10)), image[3:23, 5:15])
    np.testing.assert_array_equal(flip(image, False, False), image)
    np.testing.assert_array_equal(flip(image, True, False), image[:, ::-1])
    np.testing.assert_array_equal(flip(image, False, True), image[::-1])
    np.testing.assert_array_equal(flip(image, True, True), image[::-1, ::-1])


@pytest.mark.parametrize("side", [40, 41])
def test_quarter_turns_to_the_pixel(side):
    image = random_image(side, side)
    for turns in range(-1, 3):
        np.testing.assert_array_equal(rotate(image, 90 * turns, side, side), np.rot90(image, turns))


def test_turning_by_nothing_cuts_out_the_center():
    image = random_image(30, 40)
    np.testing.assert_array_equal(rotate(image, 0, 20, 26), image[5:25, 7:33])


def rotated_reference(image, degrees, height, width):
    """Bilinear interpolation about the center, y down, black outside."""
    rows, columns = image.shape[:2]
    angle = np.radians(degrees)
    y, x = np.mgrid[:height, :width].astype(float)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    from_y = np.sin(angle) * x + np.cos(angle) * y + (rows - 1) / 2
    from_x = np.cos(angle) * x - np.sin(angle) * y + (columns - 1) / 2
    padded = np.pad(image.astype(float), ((1, 2), (1, 2), (0, 0)))
    y0, x0 = np.floor(from_y).clip(-1, rows).astype(int), np.floor(from_x).clip(-1, columns).astype(int)
    fy, fx = (from_y - y0).clip(0, 1)[..., None], (from_x - x0).clip(0, 1)[..., None]
    y0, x0 = y0 + 1, x0 + 1
    upper = padded[y0, x0] * (1 - fx) + padded[y0, x0 + 1] * fx
    lower = padded[y0 + 1, x0] * (1 - fx) + padded[y0 + 1, x0 + 1] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("degrees", [-45, -10.5, 3, 45])
def test_turning_interpolates_linearly(degrees):
    image = smooth_image()
    # Version 4 of OpenCV rounds places to 1/32 of a pixel, version 5 only the result to a level.
    exact = int(cv2.__version__.split(".")[0]) >= 5
    difference = np.abs(rotate(image, degrees, 60, 64) - rotated_reference(image, degrees, 60, 64))
    assert difference.max() <= (0.51 if exact else 5)
    assert difference.mean() < 0.25


def rounded(values):
    return np.rint(values).clip(0, 255)


def luma(image):
    return image @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("factor", [0.8, 0.9, 1, 1.1, 1.2])
def test_brightness_contrast_and_saturation_to_the_level(factor):
    image = random_image()
    values = image.astype(float)
    np.testing.assert_array_equal(color.adjust_brightness(image, factor), rounded(values * factor))
    mean = rounded(luma(image)).mean()
    # The gray of a pixel may fall on the other side of one half.
    assert np.abs(color.adjust_contrast(image, factor) - rounded(mean + factor * (values - mean))).max() <= 1
    greys = rounded(luma(image))[..., None]
    assert np.abs(color.adjust_saturation(image, factor) - rounded(greys + factor * (values - greys))).max() <= 1


def test_a_factor_of_one_and_a_turn_of_nothing_change_nothing():
    image = random_image()
    for varied in (
        *(color.adjust_brightness(image, 1.0), color.adjust_contrast(image, 1.0)),
        *(color.adjust_saturation(image, 1.0), color.adjust_hue(image, 0.0)),
    ):
        np.testing.assert_array_equal(varied, image)


def test_grey_is_luma_in_three_channels():
    image = random_image()
    gray = color.to_grayscale(image)
    assert np.abs(gray - luma(image)[..., None]).max() <= 0.51
    assert color.to_grayscale(np.full((1, 1, 3), 77, np.uint8)).tolist() == [[[77, 77, 77]]]


@pytest.mark.parametrize("turns", [-0.1, -0.03, 0.05, 0.1, 1 / 3])
def test_hue_turns_in_hsv(turns):
    image = random_image(12, 12)
    expected = np.empty(image.shape)
    for place in np.ndindex(12, 12):
        hue, saturation, value = colorsys.rgb_to_hsv(*(image[place] / 255))
        expected[place] = 255 * np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value))
    # float32, so a level may fall on the other side of one half.
    assert np.abs(color.adjust_hue(image, turns) - expected).max() <= 0.51


def test_a_third_of_a_turn_makes_red_green():
    red = np.array([[[200, 0, 0]]], np.uint8)
    assert color.adjust_hue(red, 1 / 3).tolist() == [[[0, 200, 0]]]
    assert color.adjust_hue(red, -1 / 3).tolist() == [[[0, 0, 200]]]


def test_random_crop_flip_cuts_resizes_and_mirrors():
    image, transform = random_image(100, 100), RandomCropFlip(14)
    draws = np.array([*box_draws(0, 0.5, 0.5, 0), 0.7], np.float32)
    # 28 × 28 at row ⌊0.5 · 73⌋ = 36, averaged two by two.
    means = image[36:64, :28].reshape(14, 2, 14, 2, 3).mean((1, 3))
    assert np.abs(transform.apply(image, draws) - means).max() <= 0.51
    draws[-1] = 0.4
    assert np.abs(transform.apply(image, draws) - means[:, ::-1]).max() <= 0.51


def test_the_smallest_box_of_the_least_picture_need_not_be_enlarged():
    transform = RandomCropFlip(224)
    # √(0.08 · ¾) = 0.245.
    assert transform.min_side == 915
    rows, columns = random_box(915, 915, box_draws(0, 0, 0, 0), SCALE, RATIO)[2:]
    assert min(rows, columns) == 224


NEUTRAL = {
    "angle": 0.5,
    "left_right": 0.9,
    "upside_down": 0.9,
    "b": 0.5,
    "c": 0.5,
    "s": 0.5,
    "h": 0.5,
    "order": 0,
    "gray": 0.9,
}


def strong_draw(**changed):
    return np.array(list({**NEUTRAL, **changed}.values()), np.float32)


def test_strong_by_its_parts():
    image, transform = random_image(300, 300), StrongAugment(256)
    center = image[22:278, 22:278]
    for draw, expected in [
        (strong_draw(), center),
        (strong_draw(left_right=0.4), center[:, ::-1]),
        (strong_draw(upside_down=0.4), center[::-1]),
        (strong_draw(gray=0.09), color.to_grayscale(center)),
        (strong_draw(b=0), color.adjust_brightness(center, 0.8)),
        (strong_draw(c=0), color.adjust_contrast(center, 0.9)),
        (strong_draw(s=0), color.adjust_saturation(center, 0.9)),
        (strong_draw(h=0), color.adjust_hue(center, -0.1)),
        (strong_draw(angle=0), rotate(image, -45, 256, 256)),
        (strong_draw(angle=0.75), rotate(image, 22.5, 256, 256)),
    ]:
        np.testing.assert_allclose(transform.apply(image, draw), expected, atol=1)
    assert np.mean(transform.apply(image, strong_draw(b=0)) == color.adjust_brightness(center, 0.8)) > 0.99


def test_strong_changes_colors_in_each_order():
    image = random_image(300, 300)
    results = {
        StrongAugment(256).apply(image, strong_draw(b=0, c=1, s=1, h=1, order=(i + 0.5) / 24)).tobytes()
        for i in range(24)
    }
    # Brightness scales what contrast and saturation move, so some orders agree; most do not.
    assert len(results) > 12


@pytest.mark.parametrize(("size", "squashed"), [(256, 300), (224, 262), (32, 38), (128, 150)])
def test_strong_scales_with_the_size(size, squashed):
    assert StrongAugment(size).squashed == squashed
    assert StrongAugment(size).apply(random_image(50, 70), strong_draw()).shape == (size, size, 3)


@pytest.mark.parametrize(
    "transform", [RandomCropFlip(8), StrongAugment(8), CustomTransform(lambda image, rng: image, 8)]
)
def test_an_images_draw_does_not_depend_on_how_many_follow(transform):
    few, many = (transform.sample(np.random.default_rng(3), count) for count in (10, 1000))
    np.testing.assert_array_equal(few, many[:10])
    assert len(np.unique(many, axis=0)) == 1000


def test_draws_fill_zero_to_one():
    for transform in (RandomCropFlip(8), StrongAugment(8)):
        draws = transform.sample(np.random.default_rng(0), 20_000)
        assert np.all((draws >= 0) & (draws < 1))
        # Five standard deviations of the mean of 20,000.
        assert np.abs(draws.mean(0) - 0.5).max() < 5 * 0.289 / np.sqrt(20_000)


@pytest.mark.parametrize(
    ("name", "size", "framing", "min_side"),
    [
        ("imagenet", 224, ResizeCenterCrop(256, 224, 224), 915),
        ("imagenet", 32, ResizeCenterCrop(37, 32, 32), 131),
        ("strong", 256, ResizeCenterCrop(None, 256, 256), 600),
        ("strong", 224, ResizeCenterCrop(None, 224, 224), 524),
        ("cifar", 32, ResizeCenterCrop(32, 32, 32), None),
        ("none", 64, ResizeCenterCrop(64, 64, 64), None),
    ],
)
def test_evaluation_matches_training(name, size, framing, min_side):
    chosen = make_transforms(name, size)
    assert (chosen.eval, chosen.min_side) == (framing, min_side)


def test_cifar_is_the_papers_on_images_of_its_size():
    image, draw = random_image(32, 32), np.array([1, 6, 1])
    np.testing.assert_array_equal(
        make_transforms("cifar", 32).train.apply(image, draw), PadCropFlip(4).apply(image, draw)
    )
    reflecting = PadCropFlip(3, "reflect")
    chosen = make_transforms("cifar", 32, reflecting).train
    np.testing.assert_array_equal(chosen.apply(image, draw), reflecting.apply(image, draw))
    np.testing.assert_array_equal(make_transforms("none", 32).train.apply(image, draw), image)


def test_unknown_names_and_sizes():
    with pytest.raises(
        UserError, match="unknown augmentation 'autoaugment'; choose one of cifar, imagenet, strong, none"
    ):
        make_transforms("autoaugment", 32)
    for make in (lambda: make_transforms("cifar", 0), lambda: custom_transforms(lambda image, rng: image, -1)):
        with pytest.raises(UserError, match="input size"):
            make()


@pytest.fixture
def files_of_many_sizes(tmp_path):
    paths = []
    for i, (height, width) in enumerate(
        [(20, 50), (50, 20), (33, 33), (200, 300), (1, 7), (32, 32), (31, 90), (64, 64)]
    ):
        paths.append(str(tmp_path / f"{i}.png"))
        cv2.imwrite(paths[-1], random_image(height, width, seed=i))
    return ImageFiles(tuple(paths), np.arange(8, dtype=np.int32) % 2, ("a", "b"))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_of_files_of_many_sizes_have_one_shape(files_of_many_sizes, name):
    chosen = make_transforms(name, 32)
    source = FileSource(files_of_many_sizes, chosen.min_side)
    one, several = (TrainLoader(source, chosen.train, batch_size=4, seed=5, workers=workers) for workers in (1, 3))
    for (images, labels), (again, _) in zip(one.iterate(0, 6), several.iterate(0, 6), strict=True):
        assert (images.shape, images.dtype, labels.dtype) == ((4, 32, 32, 3), np.uint8, np.int32)
        np.testing.assert_array_equal(images, again)
    framed = ResizedSource(FileSource(files_of_many_sizes), chosen.eval)
    assert [framed.image(i).shape for i in range(8)] == [(32, 32, 3)] * 8


def test_own_functions_get_a_generator_of_their_own_per_image_and_epoch():
    def own(image, rng):
        return np.full((2, 2, 3), rng.integers(0, 256), np.uint8)

    source = ArraySource(np.zeros((64, 5, 4, 3), np.uint8), np.zeros(64, np.int32))
    kinds = [(32, 1, 7), (16, 3, 7), (32, 1, 8)]
    values = []
    for batch_size, workers, seed in kinds:
        batches = TrainLoader(source, CustomTransform(own, 2), batch_size=batch_size, seed=seed, workers=workers)
        steps = range(0, 2 * 64, batch_size)
        images = [image for image, _ in batches.iterate(0, len(steps))]
        values.append(np.concatenate(images)[:, 0, 0, 0])
    np.testing.assert_array_equal(values[0], values[1])
    assert np.mean(values[0] == values[2]) < 0.1
    assert np.mean(np.sort(values[0][:64]) == np.sort(values[0][64:])) < 0.2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda image, rng: image, r"returned uint8 \(40, 30, 3\); it must return uint8 \(8, 8, 3\)"),
        (lambda image, rng: image[:8, :8] / 255, r"returned float64 \(8, 8, 3\)"),
        (lambda image, rng: None, "returned NoneType"),
    ],
)
def test_own_functions_that_return_something_else(function, message):
    transform = CustomTransform(function, 8)
    with pytest.raises(UserError, match=message):
        transform.apply(random_image(), transform.sample(np.random.default_rng(0), 1)[0])


def test_own_functions_cannot_change_the_source():
    image = np.zeros((8, 8, 3), np.uint8)

    def paint(image, rng):
        image[:] = 1
        return image

    with pytest.raises(
        UserError, match=r"paint raised ValueError: .*read-only \(.*test_data_transforms.py, line \d+\)"
    ):
        CustomTransform(paint, 8).apply(image, np.array([1], np.uint64))
    assert image.flags.writeable


def test_own_augmentation_is_evaluated_on_the_center():
    assert custom_transforms(lambda image, rng: image, 64).eval == ResizeCenterCrop(64, 64, 64)
    assert custom_transforms(lambda image, rng: image, 224, "imagenet").eval == ResizeCenterCrop(256, 224, 224)


def test_upscaled_images_are_made_when_they_are_asked_for():
    small = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    framed = ResizedSource(ArraySource(small, np.arange(12)), ResizeCenterCrop(224, 224, 224))
    assert len(framed) == 12
    images, labels = TrainLoader(framed, NoTransform(), batch_size=3, seed=0).batch(0)
    assert images.shape == (3, 224, 224, 3)
    for image, label in zip(images, labels, strict=True):
        np.testing.assert_array_equal(image, resize(small[label], 224, 224))
    # The middle of each old pixel, which is 28 new ones wide, lies between two new ones.
    np.testing.assert_allclose(images[:, 13::28, 13::28], small[labels], atol=10)


def test_ordered_batches_hold_every_image_once_in_order():
    small = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    source, indices = ArraySource(small, np.arange(10)), np.array([9, 3, 4, 0, 7, 1, 2])
    for workers, ahead in itertools.product((1, 3), (1, 4)):
        batches = list(ordered_batches(source, indices, batch_size=3, workers=workers, ahead=ahead))
        assert [len(images) for images, _ in batches] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), small[indices])
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), indices)


def test_no_more_batches_are_prepared_than_asked_for():
    source, asked = ArraySource(np.zeros((100, 1, 1, 3), np.uint8), np.zeros(100, np.int32)), []
    source.image = lambda index: asked.append(index) or source.images[index]
    batches = ordered_batches(source, np.arange(100), batch_size=2, ahead=3)
    next(batches)
    time.sleep(0.1)  # in which a hundred would be asked for
    assert len(asked) <= 2 * (1 + 3)
    batches.close()


def test_files_are_decoded_in_the_size_that_training_needs(tmp_path):
    cv2.imwrite(str(tmp_path / "x.jpg"), random_image(400, 800))
    files = ImageFiles((str(tmp_path / "x.jpg"),), np.zeros(1, np.int32), ("a",))
    assert FileSource(files).image(0).shape == (400, 800, 3)
    assert FileSource(files, min_side=100).image(0).shape == (100, 200, 3)


def test_errors_in_the_background_are_raised(tmp_path):
    source = FileSource(ImageFiles((str(tmp_path / "gone.jpg"),), np.zeros(1, np.int32), ("a",)))
    with pytest.raises(UserError, match=r"gone.jpg cannot be decoded"):
        list(ordered_batches(source, np.array([0]), batch_size=1))


def test_statistics_are_those_of_images_in_memory():
    small = np.random.default_rng(0).integers(0, 200, (150, 4, 4, 3), dtype=np.uint8)
    chosen = np.arange(0, 150, 2)
    source = ArraySource(small, np.zeros(150, np.int32))
    chosen_alone = ArraySource(small[chosen], np.zeros(75, np.int32))
    assert source_statistics(source, chosen) == source_statistics(chosen_alone, np.arange(75), workers=3)
    with pytest.raises(UserError, match="no images"):
        source_statistics(source, chosen[:0])
