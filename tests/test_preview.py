"""The pictures of `preview` are the images that a training and its evaluation take."""

import numpy as np
import pytest
import tensorflow as tf

import resnet_tf
from resnet_tf.data.image_io import cv2
from tests.conftest import exit_code

pytest.importorskip("matplotlib", reason="needs the extra plots")
pytestmark = pytest.mark.pictures


def grid_of(figure):
    """Pixels and titles of the pictures of a figure, from left to right and from top to bottom."""
    drawn = [axes for axes in figure.axes if axes.images]
    return [np.asarray(axes.images[0].get_array()) for axes in drawn], [axes.get_title() for axes in drawn]


def test_images_are_those_of_the_first_batch_in_their_classes(shapes):
    pictures, titles = grid_of(resnet_tf.preview(shapes, count=8, augment="none"))
    assert len(pictures) == 16
    for plain, varied, title in zip(pictures[:8], pictures[8:], titles[:8], strict=True):
        assert np.array_equal(plain, varied)
        (index,) = np.flatnonzero((shapes.train.images == plain).all(axis=(1, 2, 3)))
        assert title == shapes.class_names[shapes.train.labels[index]]


def test_below_is_what_training_makes_of_them(shapes):
    seen = []

    def watched(image, rng):
        seen.append(255 - image)
        return seen[-1]

    pictures, _ = grid_of(resnet_tf.preview(shapes, count=10, augment=watched, seed=3))
    plain, varied = [*pictures[:8], *pictures[16:18]], [*pictures[8:16], *pictures[18:]]  # eight in a row, then two
    assert all(np.array_equal(255 - a, b) for a, b in zip(plain, varied, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(varied, seen[-10:], strict=True))
    others, _ = grid_of(resnet_tf.preview(shapes, count=10, augment=watched, seed=4))
    assert not np.array_equal(others[0], plain[0])


def test_padding_with_the_mean_shows_it(shapes):
    white = resnet_tf.Dataset(
        "white",
        "made",
        ("a", "b"),
        resnet_tf.Split(np.full((20, 8, 8, 3), 200, np.uint8), np.arange(20, dtype=np.int32) % 2),
    )
    padded, _ = grid_of(resnet_tf.preview(white, count=8, pad=4, pad_mode="mean"))
    assert {picture.min() for picture in padded} == {200}
    padded, _ = grid_of(resnet_tf.preview(white, count=8, pad=4, pad_mode="black"))
    assert min(picture.min() for picture in padded[8:]) == 0


def test_the_command_draws_files_at_the_size_of_the_network(tmp_path, shapes):
    for index, name in enumerate(["cat"] * 5 + ["dog"] * 5):
        (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "pets" / name / f"{index}.png"), shapes.train.images[index])
    flags = ["preview", f"folder:{tmp_path / 'pets'}", "--input-size", "24", "--output", str(tmp_path / "grid.png")]
    assert exit_code([*flags, "--count", "3"]) == 0
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    pictures, titles = grid_of(resnet_tf.preview(flags[1], input_size=24, validation_size=0))
    assert {picture.shape for picture in pictures} == {(24, 24, 3)}
    assert sorted(title for title in titles if title) == ["cat"] * 5 + ["dog"] * 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["shapes", "--output", "grid.gif"], "has no known ending"),
        (["shapes", "--output", "none/grid.png"], "does not exist"),
        (["shapes", "--output", "grid.png", "--count", "0"], "--count 0 is out of range"),
        (["shapes", "--output", "grid.png", "--augment", "wild"], "--augment wild is not known"),
        (["shape", "--output", "grid.png"], "is not known"),
    ],
)
def test_what_is_refused(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(["preview", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_data_that_vary_themselves_are_refused():
    with pytest.raises(resnet_tf.UserError, match="as it is"):
        resnet_tf.preview(tf.data.Dataset.range(3))
