"""Keras models of other people: files of every format, and inputs that are scaled outside the model."""

import json
import shutil
import warnings

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import resnet_tf
from resnet_tf.cli.main import main as command
from resnet_tf.data.dataset import Dataset, Split
from resnet_tf.errors import UserError
from resnet_tf.fused import fused_view
from resnet_tf.models.foreign import begins_normalized
from resnet_tf.saving import load_model

RNG = np.random.default_rng(0)
KERNEL, BIAS = RNG.normal(0, 0.3, (48, 3)), np.array([0.1, 0.0, -0.1])
IMAGES = RNG.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
LABELS = np.arange(60) % 3
DATA = Dataset("small", "random", ("a", "b", "c"), Split(IMAGES[::2], LABELS[::2]), Split(IMAGES, LABELS))


def linear(*first):
    """Softmax of a linear function of the pixels behind some layers."""
    x = inputs = keras.Input((4, 4, 3), name="input_1")
    for layer in first:
        x = layer(x)
    model = keras.Model(inputs, layers.Dense(3, "softmax")(layers.Flatten()(x)))
    model.layers[-1].set_weights([KERNEL, BIAS])
    return model


def loss_of(scaled):
    """The same in NumPy, on images that are scaled already: mean cross-entropy."""
    scores = scaled.reshape(len(scaled), -1) @ KERNEL + BIAS
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return -np.log((shares / shares.sum(1, keepdims=True))[np.arange(60), LABELS]).mean()


@pytest.fixture
def keras_2(tmp_path):
    """An .h5 file whose only input is in a list, as Keras 2 wrote them."""
    path = tmp_path / "theirs.h5"
    linear().save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for key in ("input_layers", "output_layers"):
            config["config"][key] = [config["config"][key]]
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.4.0"
    return path


MEAN_IMAGE = IMAGES[::2].mean(axis=0)


@pytest.mark.parametrize(
    ("options", "scaled"),
    [
        ({"input_scale": 1 / 255}, IMAGES / 255),
        ({"mean": 127.5, "input_scale": 1 / 127.5}, IMAGES / 127.5 - 1),
        ({"mean": (125, 123, 114), "std": (63, 62, 67)}, (IMAGES - np.array([125, 123, 114])) / [63, 62, 67]),
        ({"mean": "pixel-mean", "input_scale": 1 / 255}, IMAGES / 255 - MEAN_IMAGE / 255),
        ({"mean": MEAN_IMAGE, "std": 64}, (IMAGES - MEAN_IMAGE) / 64),
        ({"mean": "mean.npy", "input_scale": 1 / 255}, IMAGES / 255 - MEAN_IMAGE / 255),
    ],
)
def test_the_input_is_scaled_as_asked(tmp_path, monkeypatch, options, scaled):
    monkeypatch.chdir(tmp_path)
    np.save("mean.npy", MEAN_IMAGE)
    metrics = resnet_tf.evaluate(linear(), DATA, **options)
    assert metrics.loss == pytest.approx(loss_of(scaled), rel=1e-5)
    if str(options.get("mean")) != "pixel-mean":
        probabilities = resnet_tf.predict(linear(), IMAGES[:2], top=3, **options)[1]
        scores = scaled[1].reshape(-1) @ KERNEL + BIAS
        assert probabilities.indices == tuple(np.argsort(-scores))


@pytest.mark.parametrize("first", [(), (layers.RandomFlip(), layers.Conv2D(3, 1))])
def test_what_is_assumed_of_the_input_is_said(first):
    with pytest.warns(UserWarning, match="does not begin with a Rescaling or Normalization .* raw pixels 0-255"):
        resnet_tf.evaluate(linear(*first), DATA)
    with pytest.warns(UserWarning, match="is given raw pixels 0-255"):
        resnet_tf.predict(linear(*first), IMAGES[:1])


@pytest.mark.parametrize(
    "first",
    [
        (layers.Rescaling(1 / 255),),
        (layers.Normalization(mean=[125.0, 123.0, 114.0], variance=[4000.0] * 3),),
        (layers.RandomFlip(), lambda x: x / 255.0),
        (lambda x: keras.Sequential([keras.Input((4, 4, 3)), layers.Rescaling(1 / 255)])(x),),
    ],
)
def test_nothing_is_said_of_a_model_that_scales_its_input(first):
    model = linear(*first)
    assert begins_normalized(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*raw pixels")
        resnet_tf.evaluate(model, DATA)
        resnet_tf.evaluate(linear(), DATA, input_scale=1)
    with pytest.raises(UserError, match=r"scales its input itself.*leave mean=… out"):
        resnet_tf.evaluate(model, DATA, mean=125)


def test_a_score_near_chance_is_told():
    with pytest.warns(UserWarning, match=r"top-1 \d+\.\d\d % is near chance, which is 33\.33 %: check the scaling"):
        resnet_tf.evaluate(linear(), DATA, input_scale=1)
    model = linear(layers.Rescaling(1 / 255))
    likeliest = np.argmax(np.asarray(model(IMAGES / 1.0)), axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert resnet_tf.evaluate(model, (IMAGES, likeliest)).top1 == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.49, 0.48, 0.45)}, "mean is in units of pixels 0-255, and 0.49 is not"),
        ({"std": 0.25}, "std is in units of pixels 0-255"),
        ({"std": 0}, "std is in units of pixels 0-255"),
        ({"mean": (1, 2)}, r"mean has the shape \(2,\), and .* takes images \(4, 4, 3\)"),
        ({"std": 64, "input_scale": 1}, "std and input_scale both scale the input; give one of them"),
        ({"input_scale": float("nan")}, "input_scale=nan is out of range"),
        ({"mean": "none.npy"}, "mean='none.npy' cannot be read"),
    ],
)
def test_scalings_that_are_none(options, message):
    with pytest.raises(UserError, match=message):
        resnet_tf.evaluate(linear(), DATA, **options)
    with pytest.raises(UserError, match="needs training images in memory, and arrays has none"):
        resnet_tf.evaluate(linear(), (IMAGES, LABELS), mean="pixel-mean")


def test_every_format_is_the_same_model(tmp_path, keras_2):
    model = linear()
    shutil.copy(keras_2, tmp_path / "theirs.hdf5")
    model.save(tmp_path / "theirs.keras")
    model.export(tmp_path / "folder", verbose=False)
    for name in ("theirs.h5", "theirs.hdf5", "theirs.keras", "folder"):
        found = resnet_tf.evaluate(tmp_path / name, DATA, input_scale=1 / 255)
        assert found.loss == pytest.approx(loss_of(IMAGES / 255), rel=1e-5), name
        assert resnet_tf.predict(tmp_path / name, IMAGES[0], input_scale=1 / 255)[0].probability > 1 / 3


def test_a_model_whose_input_is_a_list(tmp_path, keras_2):
    model = keras.models.load_model(keras_2, compile=False)
    assert isinstance(model.input, list)
    expected = linear()(IMAGES / 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Keras': the structure of the inputs does not match
        np.testing.assert_allclose(fused_view(model)(IMAGES), expected, atol=1e-5)
        np.testing.assert_allclose(load_model(keras_2)(IMAGES), expected, atol=1e-5)
    assert resnet_tf.export_model(model, tmp_path / "export", "saved_model").agreement == 1
    assert resnet_tf.export_model(keras_2, tmp_path / "export", "saved_model").agreement == 1


def test_the_commands_take_flags_and_warn_in_one_line(tmp_path, keras_2, monkeypatch, capsys):
    monkeypatch.setattr("resnet_tf.data.shapes.load_shapes", lambda: DATA)
    arguments = ["evaluate", str(keras_2), "--dataset", "shapes"]
    assert command([*arguments, "--mean", "pixel-mean", "--input-scale", "1/255"]) == 0
    assert f"loss {loss_of((IMAGES - MEAN_IMAGE) / 255):.4f}" in capsys.readouterr().out
    assert command(arguments) == 0
    warning, near_chance = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"resnet-tf: warning: {keras_2} does not begin with a Rescaling")
    assert "pass --input-scale (such as 1/255), --mean and --std (--input-scale 1 for raw ones)" in warning
    assert "is near chance" in near_chance
    assert command([*arguments, "--mean", "125,123,114", "--input-scale", "1/0"]) == 2
    assert "--input-scale nan is out of range" in capsys.readouterr().err
    assert command(["summary", str(keras_2)]) == 0
    assert "147" in capsys.readouterr().out  # 48 * 3 + 3 parameters


def test_files_that_are_no_models(tmp_path, keras_2):
    for name, message in (
        ("a.pth", "a.pth is no Keras model .* make one from PyTorch weights with resnet-tf import-weights"),
        ("a.onnx", "from the PyTorch weights that it was exported from with resnet-tf import-weights"),
        ("a.h5", "a.h5 cannot be loaded as a Keras model"),
    ):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(UserError, match=message):
            resnet_tf.evaluate(tmp_path / name, DATA)
    linear().save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(UserError, match="holds weights without their network; build that one with weights="):
        resnet_tf.evaluate(tmp_path / "a.weights.h5", DATA)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="folder cannot be loaded as a Keras model"):
        resnet_tf.evaluate(tmp_path / "folder", DATA)


def test_a_file_of_another_keras_says_so(keras_2):
    with h5py.File(keras_2, "r+") as file:
        file.attrs["model_config"] = file.attrs["model_config"].replace('"Flatten"', '"Gone"')
    with pytest.raises(UserError, match=rf"Keras 2\.4\.0 wrote it, this is Keras {keras.__version__}: load it there"):
        load_model(keras_2)


def test_nothing_in_an_h5_file_is_executed(tmp_path):
    linear(layers.Lambda(lambda x: x * 2)).save(tmp_path / "lambda.h5")
    with pytest.raises(UserError, match=r"lambda\.h5 cannot be loaded as a Keras model"):
        load_model(tmp_path / "lambda.h5")


def test_a_saved_model_has_no_layers(tmp_path):
    linear().export(tmp_path / "folder", verbose=False)
    with pytest.raises(UserError, match="a SavedModel has no layers to fold; leave fold_bn=True out"):
        resnet_tf.evaluate(tmp_path / "folder", DATA, input_scale=1, fold_bn=True)
    assert command(["summary", str(tmp_path / "folder")]) == 2
