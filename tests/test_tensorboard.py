import numpy as np
import pytest

from resnet_tf.errors import UserError
from resnet_tf.models.registry import build_model

pytestmark = pytest.mark.pictures


def test_off_it_writes_nothing(finished_run):
    assert not (finished_run[0] / "tensorboard").exists()


def test_missing_it_names_its_extra(train, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'resnet_tf\[tensorboard\]'"):
        train(tmp_path / "run", "--iterations", "1", "--tensorboard")
    assert not (tmp_path / "run").exists()


def test_an_event_file_is_read_back(train, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra tensorboard"
    )
    pytest.importorskip("matplotlib", reason="needs the extra tensorboard")
    import tensorflow as tf

    from resnet_tf.training.logs import read_metrics

    flags = ("--iterations", "3", "--eval-every", "1", "--tensorboard", "--tensorboard-every", "2")
    report = train(tmp_path / "run", *flags)
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"tensors": 0, "images": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    history = read_metrics(tmp_path / "run")
    for tag, key in (("loss/train", "train_loss"), ("accuracy/validation", "validation_accuracy")):
        points = [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        assert points == [(row["iteration"], pytest.approx(row[key])) for row in history]
    assert len(events.Tensors("learning_rate")) == 3
    for tag in ("confusion_matrix", "examples", "first_layer_filters"):
        pictures = events.Tensors(tag)
        assert [event.step for event in pictures] == [1, 3]
        width, height, png = tf.make_ndarray(pictures[0].tensor_proto)
        assert png.startswith(b"\x89PNG")
        assert int(width) * int(height) > 1000
    assert {"weights/head_logits/kernel", "gradients/head_logits/kernel", "gradients/stem_conv/kernel"} <= tags
    # 7 convolutions, gamma and beta of 7 normalizations, the classifier's kernel and bias.
    assert len([tag for tag in tags if tag.startswith("gradients/")]) == 7 + 14 + 2
    histogram = tf.make_ndarray(events.Tensors("gradients/stem_conv/kernel")[0].tensor_proto)
    assert histogram[:, 2].sum() == 432
    assert histogram[0, 0] < 0 < histogram[-1, 1]
    assert report["iterations"] == 3


def test_looking_changes_nothing(train, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    pytest.importorskip("matplotlib", reason="needs the extra tensorboard")
    flags = ("--iterations", "4", "--eval-every", "1", "--precision", "float32")
    watched = train(tmp_path / "a", *flags, "--tensorboard", "--tensorboard-every", "1")
    alone = train(tmp_path / "b", *flags)
    assert watched["test"]["loss"] == alone["test"]["loss"]


def test_the_picture_of_the_filters():
    from resnet_tf.training.callbacks import picture_of_filters

    model = build_model("resnet8_v2")
    kernel = np.zeros((3, 3, 3, 16), np.float32)
    kernel[0, 0, 0, 0], kernel[2, 2, :, 15] = 0.5, -0.5
    model.get_layer("stem_conv").set_weights([kernel])
    picture = picture_of_filters(model)
    # 4 x 4 tiles of 3 x 8 pixels and a frame of 2.
    assert picture.shape == (104, 104, 3)
    assert picture[1, 1].tolist() == [255, 128, 128]
    assert picture[102, 102].tolist() == [0, 0, 0]
    assert picture[50, 40].tolist() == [128, 128, 128]
