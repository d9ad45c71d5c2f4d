import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from resnet_tf import export
from resnet_tf.cli import export as command
from resnet_tf.errors import UserError
from resnet_tf.folding import fold_batch_norm
from resnet_tf.models.registry import build_model

try:
    from ai_edge_litert import interpreter as litert
except ImportError:
    litert = tf.lite


def stirred(model, seed=0):
    """Gives every weight and moving statistic a value that matters."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights(
                [rng.uniform(0.5, 1.5, w.shape) * rng.choice([-1, 1]) for w in layer.get_weights()[:2]]
                + [rng.normal(0, 0.3, layer.moving_mean.shape), rng.uniform(0.3, 3, layer.moving_mean.shape)]
            )
    return model


def pictures(*shape, count=4):
    return np.random.default_rng(1).normal(0, 1, (count, *shape)).astype(np.float32)


def norms(model):
    return [layer.name for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


@pytest.fixture
def small():
    return stirred(build_model("resnet8_v2", input_shape=(16, 16, 3), mean=(120, 125, 130), std=(60, 61, 62)))


def test_original_units_fold_altogether():
    model = stirred(build_model("resnet14_v1", shortcut="projection", input_shape=(16, 16, 3)))
    folded = fold_batch_norm(model)
    assert norms(folded) == []
    np.testing.assert_allclose(folded(pictures(16, 16, 3)), model(pictures(16, 16, 3)), atol=1e-4)


def test_preactivation_units_fold_what_follows_a_convolution():
    model = stirred(build_model("resnet14_v2", input_shape=(16, 16, 3)))
    folded = fold_batch_norm(model)
    # Left: what comes after an addition. The first unit's normalization follows the stem.
    after_addition = [f"stage{s}_block{b}_bn1" for s in (1, 2, 3) for b in (1, 2)][1:]
    assert norms(folded) == [*after_addition, "head_bn"]
    np.testing.assert_allclose(folded(pictures(16, 16, 3)), model(pictures(16, 16, 3)), atol=1e-4)


def test_folding_by_hand():
    inputs = keras.Input((1, 1, 1))
    model = keras.Model(inputs, layers.BatchNormalization(epsilon=0.75)(layers.Conv2D(1, 1)(inputs)))
    # 3x + 5, then (· − 1) / √(0.25 + 0.75) · 4 + 7 = 12x + 23.
    model.set_weights([np.full((1, 1, 1, 1), 3.0), *(np.array([value]) for value in (5.0, 4.0, 7.0, 1.0, 0.25))])
    folded = fold_batch_norm(model)
    assert [np.asarray(w).item() for w in folded.get_weights()] == [12.0, 23.0]


def test_what_must_not_fold():
    inputs = keras.Input((4, 4, 2))
    shared = layers.Conv2D(2, 1, name="read_twice")(inputs)
    x = layers.Add()([layers.BatchNormalization()(shared), shared])
    x = layers.BatchNormalization()(layers.Conv2D(2, 1, activation="relu", name="not_linear")(x))
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(2, 1, name="over_rows")(x))
    is_output = layers.Conv2D(2, 1, name="is_output")(x)
    model = stirred(keras.Model(inputs, [is_output, layers.BatchNormalization()(is_output)]))
    folded = fold_batch_norm(model)
    assert len(norms(folded)) == 4
    for ours, theirs in zip(folded(pictures(4, 4, 2)), model(pictures(4, 4, 2)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_folding_gives_a_plain_float32_model_of_its_own(small, tmp_path):
    before = small.get_weights()
    folded = fold_batch_norm(small)
    folded.save(tmp_path / "folded.keras")
    again = keras.models.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(again(pictures(16, 16, 3)), folded(pictures(16, 16, 3)))
    assert {variable.dtype for variable in folded.variables} == {"float32"}
    folded.set_weights([np.zeros_like(w) for w in folded.get_weights()])
    for old, new in zip(before, small.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_folding_within_a_model_within_a_model():
    inner = stirred(build_model("resnet8_v1", input_shape=(16, 16, 3), include_top=False))
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(inner(inputs)))
    folded = fold_batch_norm(model)
    assert norms(folded.layers[1]) == []
    np.testing.assert_allclose(folded(pictures(16, 16, 3)), model(pictures(16, 16, 3)), atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [("keras", "a.keras"), ("saved_model", "a"), ("tflite", "a.tflite")])
def test_formats_that_need_no_extra(small, tmp_path, kind, name):
    images = 60 + 40 * pictures(16, 16, 3)
    result = export.write_export(small, tmp_path / name, kind, images)
    assert result.difference <= 1e-4 * max(1, result.largest) == result.bound
    assert [path.name for path in tmp_path.iterdir()] == [name]
    found = export.load_export(tmp_path / name, kind)(images[:3])
    np.testing.assert_allclose(found, small(images[:3]), atol=result.bound)


def test_onnx(small, tmp_path):
    for module in ("tf2onnx", "onnxruntime"):
        pytest.importorskip(module, reason="needs the extra onnx")
    assert export.write_export(small, tmp_path / "a.onnx", "onnx", 60 + 40 * pictures(16, 16, 3)).passed


def served(kind, path):
    """What another runtime knows of an export: its input's name and type, its output's name, and how it runs."""
    if kind == "saved_model":
        run = tf.saved_model.load(str(path)).signatures["serving_default"]
        ((source, spec),) = run.structured_input_signature[1].items()
        (output,) = run.structured_outputs
        return source, spec.dtype.as_numpy_dtype, output, lambda images: run(images=tf.constant(images))[output].numpy()
    if kind == "tflite":
        interpreter = litert.Interpreter(str(path))
        runner, names = interpreter.get_signature_runner(), interpreter.get_signature_list()["serving_default"]
        (source,), (output,) = names["inputs"], names["outputs"]
        return source, interpreter.get_input_details()[0]["dtype"], output, lambda images: runner(images=images)[output]
    session = pytest.importorskip("onnxruntime", reason="needs the extra onnx").InferenceSession(str(path))
    (source,), (output,) = session.get_inputs(), session.get_outputs()
    dtype = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}[source.type]
    return source.name, dtype, output.name, lambda images: session.run(None, {"images": images})[0]


@pytest.mark.parametrize("kind", ["saved_model", "tflite", "onnx"])
def test_names_labels_and_bytes_for_a_server(kind, finished_run, shapes, tmp_path):
    if kind == "onnx":
        pytest.importorskip("tf2onnx", reason="needs the extra onnx")
    path = tmp_path / {"saved_model": "1", "tflite": "a.tflite", "onnx": "a.onnx"}[kind]
    export.export_model(finished_run[0], path, kind, softmax=True, uint8_input=True)
    source, dtype, output, run = served(kind, path)
    assert (source, dtype, output) == ("images", np.uint8, "probabilities")
    model, images = keras.models.load_model(finished_run[0] / "final.keras"), shapes.test.images[:3]
    np.testing.assert_allclose(run(images), tf.nn.softmax(model(images)), atol=1e-5)
    if kind == "onnx":
        properties = {entry.key: entry.value for entry in __import__("onnx").load(path).metadata_props}
        assert json.loads(properties["labels"]) == list(shapes.class_names)
    else:
        assert path.with_suffix(".labels.txt").read_text().split() == list(shapes.class_names)
    export.export_model(finished_run[0], path, kind)
    source, dtype, output, run = served(kind, path)
    assert (source, dtype, output) == ("images", np.float32, "logits")
    np.testing.assert_allclose(run(images.astype(np.float32)), model(images), atol=1e-4)


def test_a_keras_file_with_softmax(finished_run, shapes, tmp_path):
    export.export_model(finished_run[0], tmp_path / "a.keras", "keras", softmax=True)
    probabilities = keras.models.load_model(tmp_path / "a.keras")(shapes.test.images[:3])
    np.testing.assert_allclose(np.sum(probabilities, axis=1), 1, atol=1e-6)


def test_features_have_a_name_too(tmp_path):
    model = build_model("resnet8_v1", input_shape=(16, 16, 3), include_top=False)
    export.export_model(model, tmp_path / "a", "saved_model")
    assert served("saved_model", tmp_path / "a")[2] == "outputs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(UserError, match="only a linear or a softmax"):
        export.export_model(model, tmp_path / "b", "saved_model", softmax=True)


def test_float16_stays_within_its_bound_and_is_smaller(small, tmp_path):
    images = 60 + 40 * pictures(16, 16, 3)
    export.write_export(small, tmp_path / "full.tflite", "tflite", images)
    result = export.write_export(small, tmp_path / "half.tflite", "tflite", images, quantize="float16")
    assert 0 < result.difference <= 1e-2 * max(1, result.largest)
    assert (tmp_path / "half.tflite").stat().st_size < 0.7 * (tmp_path / "full.tflite").stat().st_size


def test_grouped_convolutions(tmp_path):
    inputs = keras.Input((8, 8, 8))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, groups=4, padding="same")(inputs)))
    model = stirred(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    assert export.write_export(model, tmp_path / "a.tflite", "tflite", pictures(8, 8, 8)).passed


def test_an_export_that_differs_is_not_kept(small, tmp_path):
    other = stirred(build_model("resnet8_v2", input_shape=(16, 16, 3), mean=(120, 125, 130), std=(60, 61, 62)), 5)
    (tmp_path / "a.keras").write_text("what was there")
    with pytest.raises(UserError, match="differs from the original"):
        export.write_export(small, tmp_path / "a.keras", "keras", pictures(16, 16, 3), reference=other)
    assert (tmp_path / "a.keras").read_text() == "what was there"
    assert len(list(tmp_path.iterdir())) == 1


def test_not_a_number_is_no_agreement():
    assert not export.compare(np.zeros((1, 2)), np.full((1, 2), np.nan), None).passed
    assert export.compare(np.zeros((1, 2)), np.ones((1, 2)), None).passed
    assert not export.compare(np.ones((1, 2)), np.ones((1, 2)) + 2e-4, 1e-4).passed
    assert export.compare(np.full((1, 2), 3.0), np.full((1, 2), 3.0002), 1e-4).passed


def test_the_command_with_8_bits(finished_run, small_data, tmp_path, capsys):
    output = tmp_path / "a.tflite"
    flags = ["--format", "tflite", "--quantize", "int8", "--dataset", "shapes", "--output", str(output)]
    result = command.main([str(finished_run[0]), *flags])
    assert result["bound"] is None
    assert abs(result["accuracy"] - result["original_accuracy"]) <= 0.1  # 4 of the 40 images
    assert "the original has" in capsys.readouterr().out
    assert (tmp_path / "a.json").exists()


def test_8_bits_by_arrays(finished_run, shapes, tmp_path):
    arrays = shapes.test.images, shapes.test.labels
    found = export.export_model(finished_run[0], tmp_path / "a.tflite", "tflite", quantize="int8", data=arrays)
    assert found.original_accuracy == finished_run[2]["test"]["top1"]
    assert abs(found.accuracy - found.original_accuracy) <= 0.1  # 4 of the 40 images


def test_the_command_folds(finished_run, tmp_path):
    result = command.main(
        [str(finished_run[0]), "--format", "keras", "--fold-bn", "--output", str(tmp_path / "a.keras")]
    )
    assert result["difference"] <= result["bound"]
    assert len(norms(keras.models.load_model(tmp_path / "a.keras"))) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format", "keras", "--quantize", "int8"], "format='tflite'"),
        (["--format", "tflite", "--quantize", "int8"], "give data="),
        (["--format", "keras", "--uint8-input"], "takes uint8 as it is"),
        (["--format", "onnx", "--output", "a.tflite"], "must end in .onnx"),
        (["--format", "keras", "--output", "{run}/final.keras"], "belongs to the run"),
        (["--format", "saved_model", "--output", "{run}"], "no export"),
        (["--format", "keras", "--output", "{run}/none/a.keras"], "does not exist"),
    ],
)
def test_what_is_refused(finished_run, flags, message):
    run = str(finished_run[0])
    with pytest.raises(UserError, match=message):
        command.main([run, *(flag.format(run=run) for flag in flags)])


def test_a_missing_package_names_its_extra(finished_run, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tf2onnx", None)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install 'resnet_tf\[onnx\]'"):
        command.main([str(finished_run[0]), "--format", "onnx", "--output", str(tmp_path / "a.onnx")])
