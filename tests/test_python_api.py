"""Training, evaluation and prediction from Python, on arrays, data sets, models and callbacks of one's own."""

import json
import signal
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import resnet_tf
from tests.conftest import stopping_after

OPTIONS = {"iterations": 6, "batch_size": 16, "evaluate_every": 3, "precision": "float32", "verbose": False}
ONCE = {**OPTIONS, "evaluate_every": 6}  # where no more than the last evaluation is looked at


@pytest.fixture(scope="module")
def arrays(shapes):
    return (shapes.train.images, shapes.train.labels), (shapes.test.images, shapes.test.labels)


def weights(result):
    return [variable.numpy() for variable in result.model.variables]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


@pytest.fixture(scope="module")
def trained(arrays, tmp_path_factory):
    train, test = arrays
    return resnet_tf.train("resnet8_v2", train, test=test, run_dir=tmp_path_factory.mktemp("run") / "run", **OPTIONS)


def test_arrays_train_as_the_data_set_of_the_same_images_does(arrays, shapes, trained):
    named = resnet_tf.train("resnet8_v2", shapes, **ONCE)
    assert same(trained, named)
    assert trained.test["top1"] == named.test["top1"]
    assert trained.run_dir is not None
    assert named.run_dir is None


@pytest.mark.pictures
def test_a_result(trained, arrays, capsys):
    _, (images, labels) = arrays
    assert [row["iteration"] for row in trained.history] == [3, 6]
    assert trained.best["validation_accuracy"] == max(row["validation_accuracy"] for row in trained.history)
    logits = np.asarray(trained.model(images))
    assert trained.test["top1"] == (logits.argmax(axis=1) == labels).mean()
    assert trained.test["images"] == 40
    assert trained.exact_resume
    assert f"test accuracy {100 * trained.test['top1']:.2f} %" in repr(trained)
    assert trained.class_names == tuple(f"class {index}" for index in range(10))
    assert (trained.run_dir / "command.txt").read_text().startswith("resnet_tf.train('resnet8_v2', <arrays>, run_dir=")
    assert trained.plot().axes
    assert capsys.readouterr().out == ""


def test_the_same_call_again_returns_the_result(trained, arrays):
    train, test = arrays
    again = resnet_tf.train("resnet8_v2", train, test=test, run_dir=trained.run_dir, **OPTIONS)
    assert same(again, trained)
    assert [row["iteration"] for row in again.history] == [3, 6]
    with pytest.raises(resnet_tf.UserError, match="started on other data"):
        resnet_tf.train("resnet8_v2", (train[0][::-1].copy(), train[1]), run_dir=trained.run_dir, **OPTIONS)
    with pytest.raises(resnet_tf.UserError, match="seed is 0 there, 1 here; give another run_dir=…, or overwrite=True"):
        resnet_tf.train("resnet8_v2", train, run_dir=trained.run_dir, seed=1, **OPTIONS)
    other = {**OPTIONS, "precision": "mixed_bfloat16"}
    with pytest.raises(resnet_tf.UserError, match='precision is "float32" there, "mixed_bfloat16" here'):
        resnet_tf.train("resnet8_v2", train, run_dir=trained.run_dir, **other)


def test_interrupted_by_ctrl_c_the_same_call_goes_on_to_the_same_bits(trained, arrays, tmp_path, monkeypatch):
    train, test = arrays
    with monkeypatch.context() as patch:
        stopping_after(patch, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            resnet_tf.train("resnet8_v2", train, test=test, run_dir=tmp_path / "run", **OPTIONS)
    with pytest.raises(resnet_tf.UserError, match=r"holds an unfinished run; the call or command in its command\.txt"):
        resnet_tf.TrainingResult.load(tmp_path / "run")
    resumed = resnet_tf.train("resnet8_v2", train, test=test, run_dir=tmp_path / "run", **OPTIONS)
    assert same(resumed, trained)
    assert [row["validation_loss"] for row in resumed.history] == [row["validation_loss"] for row in trained.history]


def test_a_result_of_a_run_that_finished_earlier(trained, tmp_path):
    loaded = resnet_tf.TrainingResult.load(str(trained.run_dir))
    assert same(loaded, trained)
    assert (loaded.history, loaded.test, loaded.class_names) == (trained.history, trained.test, trained.class_names)
    assert loaded.exact_resume
    with pytest.raises(resnet_tf.UserError, match="holds no run; name the folder that train wrote"):
        resnet_tf.TrainingResult.load(tmp_path)


def test_in_a_thread(trained, arrays):
    train, test = arrays
    results = []
    thread = threading.Thread(target=lambda: results.append(resnet_tf.train("resnet8_v2", train, test=test, **ONCE)))
    thread.start()
    thread.join()
    assert same(results[0], trained)


def test_the_global_random_generators_stay_as_they_were(arrays):
    np.random.seed(5)
    expected = np.random.default_rng(0).random(), np.random.RandomState(5).rand()
    resnet_tf.train("resnet8_v2", arrays[0], test=False, **ONCE)
    assert (np.random.default_rng(0).random(), np.random.rand()) == expected


def small_model(classes=10, **options):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    x = keras.layers.Conv2D(8, 3, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(classes, **options)(keras.layers.GlobalAveragePooling2D()(x)))


def test_a_keras_model_is_trained_as_it_is(arrays):
    model = small_model()
    before = [variable.numpy() for variable in model.variables]
    result = resnet_tf.train(model, arrays[0], test=arrays[1], **ONCE)
    assert result.model is model
    assert not all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.variables, strict=True))
    assert result.test["images"] == 40


def test_a_sequential_model_is_trained_through_its_layers(arrays, tmp_path):
    functional = small_model()
    model = keras.Sequential([keras.Input((16, 16, 3)), *keras.models.clone_model(functional).layers[1:]])
    model.set_weights(functional.get_weights())
    result = resnet_tf.train(model, arrays[0], test=arrays[1], **ONCE)
    assert same(result, resnet_tf.train(functional, arrays[0], test=False, **ONCE))
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), functional.get_weights(), strict=True))
    assert resnet_tf.evaluate(model, arrays[1]).top1 == result.test["top1"]
    resnet_tf.export_model(model, tmp_path / "model.keras", "keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(arrays[1][0]), model(arrays[1][0]))


def test_a_model_that_is_built_again_goes_on_with_its_run(arrays, tmp_path, monkeypatch):
    """As where a notebook's cell runs again: Keras has numbered its layers on."""

    def call(**where):
        keras.utils.set_random_seed(4)
        return resnet_tf.train(small_model(), arrays[0], test=False, **where, **OPTIONS)

    whole, stopped = call(), tmp_path / "run"
    with monkeypatch.context() as patch:
        stopping_after(patch, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            call(run_dir=stopped)
    resumed = call(run_dir=stopped)
    assert resumed.model.layers[-1].name != whole.model.layers[-1].name
    assert same(resumed, whole)
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in whole.history]
    assert same(call(run_dir=stopped), whole)
    with pytest.raises(resnet_tf.UserError, match="belongs to a run of other settings: model_sha256 is"):
        resnet_tf.train(small_model(use_bias=False), arrays[0], test=False, run_dir=stopped, **OPTIONS)


@pytest.mark.parametrize(
    "options", [{"shortcut": "projection"}, {"width": 2}, {"use_bias": True}, {"identity_padding": "end"}]
)
def test_options_of_a_builder_do_not_go_with_a_built_model(arrays, options):
    name, value = next(iter(options.items()))
    with pytest.raises(
        resnet_tf.UserError, match=rf"^{name}={value!r} is for a network by name, and model .* leave it"
    ):
        resnet_tf.train(small_model(), arrays[0], **options, **ONCE)


def test_a_file_in_place_of_a_model(arrays, tmp_path):
    path = str(tmp_path / "model.keras")
    small_model().save(path)
    with pytest.raises(
        resnet_tf.UserError, match=r"is a file; give the name of its network, and weights='.*model\.keras'"
    ):
        resnet_tf.train(path, arrays[0], **ONCE)


class Scale(keras.layers.Layer):
    """A layer as notebooks have them, of which Keras knows nothing."""

    def __init__(self, factor=2.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class WithoutConfig(keras.layers.Layer):
    def __init__(self, factor):
        super().__init__(name="mine")
        self.factor = factor

    def call(self, x):
        return x * self.factor


def model_around(layer):
    inputs = keras.Input((16, 16, 3))
    x = layer(keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs))
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x)))


@pytest.mark.parametrize("options", [{}, {"ema": 0.9}])
def test_a_layer_of_ones_own_is_trained_and_read_back(arrays, tmp_path, options):
    def call():
        return resnet_tf.train(
            model_around(Scale(3.0)), arrays[0], test=arrays[1], run_dir=tmp_path / "run", **options, **ONCE
        )

    result = call()
    assert call().test == result.test
    with pytest.raises(
        resnet_tf.UserError, match=r"final.keras holds Scale, which is not Keras' own; .*_scope\({'Scale': Scale}\)"
    ):
        resnet_tf.evaluate(tmp_path / "run", arrays[1])
    with keras.saving.custom_object_scope({"Scale": Scale}):
        np.testing.assert_array_equal(resnet_tf.evaluate(result.run_dir, arrays[1]).confusion, result.test["confusion"])


@pytest.mark.parametrize(
    ("layer", "name", "reason"),
    [
        (WithoutConfig(2.0), "mine", "unexpected keyword argument"),
        (keras.layers.Lambda(lambda x: x * 2, name="twice"), "twice", "`Lambda` layer"),
        (keras.Sequential([keras.layers.Lambda(lambda x: x * 2, name="within")]), "within", "`Lambda` layer"),
    ],
)
def test_a_layer_that_no_file_can_hold_is_refused_before_the_training(arrays, tmp_path, layer, name, reason):
    with pytest.raises(resnet_tf.UserError, match=rf"layer {name} \(\w+\) cannot be built again .*{reason}.*give its"):
        resnet_tf.train(model_around(layer), arrays[0], run_dir=tmp_path / "run", **ONCE)
    assert not (tmp_path / "run").exists()


def two_of_a_name():
    """A model of two models, whose layers and variables are called alike."""
    parts = []
    for name, channels in (("first", 3), ("second", 8)):
        inputs = keras.Input((16, 16, channels))
        x = keras.layers.Conv2D(8, 3, padding="same", name="conv")(inputs)
        parts.append(keras.Model(inputs, keras.layers.BatchNormalization(name="bn")(x), name=name))
    inputs = keras.Input((16, 16, 3))
    x = parts[1](parts[0](keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)))
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def test_models_in_a_model_whose_layers_are_called_alike(arrays, tmp_path, monkeypatch):
    assert len({v.path for v in two_of_a_name().variables}) < len(two_of_a_name().variables)

    def call(**where):
        keras.utils.set_random_seed(4)
        return resnet_tf.train(two_of_a_name(), arrays[0], test=False, ema=0.5, **where, **OPTIONS)

    whole, stopped = call(), tmp_path / "run"
    with monkeypatch.context() as patch:
        stopping_after(patch, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            call(run_dir=stopped)
    assert same(call(run_dir=stopped), whole)


def test_a_classifier_of_any_name_trains_alone(arrays):
    model = small_model()
    before = model.get_weights()
    resnet_tf.train(model, arrays[0], test=False, freeze="all", **ONCE)
    assert [np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)] == [
        True,
        True,
        False,
        False,
    ]


def test_models_that_are_no_classifiers_of_images(arrays, tmp_path):
    x, more = keras.Input((16, 16, 3)), keras.Input((4,))
    y = keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x))
    unbuilt = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
    several = [keras.Model([x], [y, y * 2]), keras.Model([x, more], y + keras.layers.Dense(10)(more))]
    images, labels = arrays[1]
    for call in (
        lambda model: resnet_tf.train(model, arrays[0], **ONCE),
        lambda model: resnet_tf.evaluate(model, (images, labels)),
        lambda model: resnet_tf.predict(model, images[:1]),
        lambda model: resnet_tf.export_model(model, tmp_path / "model", "saved_model"),
    ):
        with pytest.raises(resnet_tf.UserError, match=r"built sequential keras\.Model, not Sequential"):
            call(unbuilt)
        for model in several:
            with pytest.raises(resnet_tf.UserError, match=r"will do|inputs or outputs"):
                call(model)
    for call in (resnet_tf.evaluate, resnet_tf.predict):
        with pytest.raises(resnet_tf.UserError, match=r"model is NoneType; expected a keras\.Model, a result of train"):
            call(None, images)
    with pytest.raises(resnet_tf.UserError, match="model is function; expected a name of list_models"):
        resnet_tf.train(keras.applications.ResNet50, arrays[0])
    frozen = small_model()
    frozen.trainable = False
    with pytest.raises(resnet_tf.UserError, match=r"has no variables that train; set model\.trainable = True"):
        resnet_tf.train(frozen, arrays[0], **ONCE)


def test_keras_models_that_cannot_be_trained_so(arrays, shapes):
    with pytest.raises(ValueError, match=r"ends in Dense '.*' with sigmoid; only a linear or a softmax output"):
        resnet_tf.train(small_model(activation="sigmoid"), arrays[0], **ONCE)
    with pytest.raises(ValueError, match="has 3 outputs, the data has 10 classes; give it as many"):
        resnet_tf.train(small_model(3), arrays[0], **ONCE)
    with pytest.raises(ValueError, match="has 12 outputs, the data has 10 classes; give it as many"):
        resnet_tf.train(small_model(12), shapes, **ONCE)
    inputs = keras.Input((16, 16, 3))
    raw = keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(inputs)))
    with pytest.warns(UserWarning, match=r"begin it with keras.layers.Rescaling"):
        resnet_tf.train(raw, arrays[0], **ONCE)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_tf_dataset_with_its_own_batches(arrays, dtype):
    (images, labels), test = arrays
    data = tf.data.Dataset.from_tensor_slices((images.astype(dtype), labels)).batch(16, drop_remainder=True)
    held_out = tf.data.Dataset.from_tensor_slices((test[0].astype(dtype), test[1])).batch(15)
    result = resnet_tf.train("resnet8_v2", data, validation=held_out, test=held_out, **ONCE)
    assert not result.exact_resume
    assert result.report["steps_per_epoch"] == 12
    assert result.report["validation_images"] == 40
    # Validated and tested on the same 40 images.
    assert result.test["top1"] == result.history[-1]["validation_accuracy"]


def test_a_tf_dataset_resumes_where_it_was(arrays, tmp_path, monkeypatch):
    images, labels = arrays[0]
    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16, drop_remainder=True)
    whole = resnet_tf.train("resnet8_v2", data, **ONCE)
    with monkeypatch.context() as patch:
        stopping_after(patch, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            resnet_tf.train("resnet8_v2", data, run_dir=tmp_path / "run", **ONCE)
    assert same(resnet_tf.train("resnet8_v2", data, run_dir=tmp_path / "run", **ONCE), whole)
    assert not resnet_tf.TrainingResult.load(tmp_path / "run").exact_resume


def test_tf_datasets_that_cannot_be_trained_on(arrays):
    images, labels = arrays[0]
    single = tf.data.Dataset.from_tensor_slices((images, labels))
    with pytest.raises(ValueError, match=r"expected batches \(B, H, W, C\): use dataset.batch\(128\)"):
        resnet_tf.train("resnet8_v2", single, **ONCE)
    with pytest.raises(ValueError, match=r"infinite tf\.data\.Dataset; pass steps_per_epoch=N"):
        resnet_tf.train("resnet8_v2", single.batch(16).repeat(), **ONCE)
    result = resnet_tf.train("resnet8_v2", single.batch(16).repeat(), steps_per_epoch=2, **ONCE)
    assert result.report["steps_per_epoch"] == 2


@pytest.mark.parametrize(
    ("change", "argument", "message"),
    [
        (lambda x, y: (x.astype(np.float32) / 255, y), "data", "expected raw pixels 0-255 in uint8"),
        (lambda x, y: (x[0], y), "data", r"images of shape \(16, 16, 3\); expected \(N, H, W, C\)"),
        (lambda x, y: (x, y[:-1]), "data", r"199 labels for 200 images; expected integers \(200,\) or one-hot"),
        (
            lambda x, y: (x, 0.9 * keras.utils.to_categorical(y)),
            "data",
            r"labels of shape \(200, 10\) that are not one-hot",
        ),
        (lambda x, y: (x, y + 0.5), "data", "labels that are not whole numbers"),
        (lambda x, y: (x, y.astype(str)), "data", r"labels of dtype <U11 and shape \(200,\)"),
        (lambda x, y: (x, y - 1), "data", "has the label -1; expected 0 to classes - 1"),
        (lambda x, y: x, "data", r"expected \(images, labels\), a resnet_tf.Dataset, a tf.data.Dataset"),
        (lambda x, y: "mnist", "data", "data='mnist' is not known; allowed: cifar10, cifar100, shapes"),
    ],
)
def test_data_that_cannot_be_trained_on(arrays, change, argument, message):
    with pytest.raises(resnet_tf.UserError, match=message) as refused:
        resnet_tf.train("resnet8_v2", change(*arrays[0]), **OPTIONS)
    assert refused.value.argument == argument


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": lambda x, y: (x, y[:-1])}, r"199 labels for 200 images; expected integers \(200,\) or one-hot"),
        ({"test": lambda x, y: (x / 255, y)}, "expected raw pixels 0-255 in uint8"),
        ({"class_names": ("a", "b")}, "class_names has 2 names; the labels go up to 9"),
        ({"validation": lambda x, y: (x, y + 1)}, "class_names has 10 names; the labels go up to 10"),
    ],
)
@pytest.mark.parametrize("use", ["train", "evaluate"])
def test_a_dataset_is_checked_as_arrays_are(shapes, change, message, use):
    def changed(part):
        if not callable(change.get(part)):
            return getattr(shapes, part)
        split = getattr(shapes, part) or shapes.test
        return resnet_tf.Split(*change[part](split.images, split.labels))

    parts = {part: changed(part) for part in ("train", "test", "validation")}
    data = resnet_tf.Dataset("mine", "mine", change.get("class_names", shapes.class_names), **parts)
    call = {"train": lambda: resnet_tf.train("resnet8_v2", data, **ONCE)}
    call["evaluate"] = lambda: resnet_tf.evaluate(small_model(), data)
    with pytest.raises(resnet_tf.UserError, match=message):
        call[use]()


def test_lists_in_a_dataset(shapes):
    train = resnet_tf.Split(list(shapes.train.images), shapes.train.labels.tolist())
    data = resnet_tf.Dataset(shapes.name, shapes.source, list(shapes.class_names), train, shapes.test)
    assert same(resnet_tf.train("resnet8_v2", data, **ONCE), resnet_tf.train("resnet8_v2", shapes, **ONCE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drops": 0.5}, "drops=0.5 must rise and lie between 0 and 1"),
        ({"drops": ("half",)}, r"drops=\('half',\) must rise"),
        ({"epoch": 3}, r"train\(\) has no option 'epoch'; did you mean epochs\?"),
        ({"lr": 0.1}, r"train\(\) has no option 'lr'; did you mean learning_rate\?"),
        (
            {"validation_data": ()},
            r"train\(\) has no option 'validation_data'; did you mean validation or validation_size\?",
        ),
        (
            {"callbacks": [keras.callbacks.EarlyStopping()]},
            "callbacks has EarlyStopping; expected functions of the history",
        ),
        ({"learning_rate": -1}, "learning_rate=-1 is out of range; allowed: 0 to 1e"),
        ({"schedule": "linear"}, "schedule='linear' is not known; allowed: piecewise, cosine"),
        ({"seed": 1.5}, "seed=1.5 is not a whole number; allowed: 0 to 4294967295"),
        ({"precision": "bf16"}, "precision='bf16' is not known; allowed: auto, float32, mixed_bfloat16"),
        ({"unfreeze_at": 3}, "unfreeze_at=3 has nothing to unfreeze; add freeze='stageK'"),
        ({"class_names": ["one"]}, "class_names has 1 names; the labels go up to 9"),
        ({"recipe": "he2017"}, "recipe 'he2017' is not known; allowed: he2015"),
    ],
)
def test_options_that_are_refused(arrays, options, message):
    with pytest.raises(resnet_tf.UserError, match=message):
        resnet_tf.train("resnet8_v2", arrays[0], **{**OPTIONS, **options})


@pytest.mark.parametrize("labels_of", [lambda y: y[:, None], keras.utils.to_categorical])
def test_keras_labels_and_integer_floats_are_taken(labels_of, arrays, trained):
    images, labels = arrays[0]
    result = resnet_tf.train("resnet8_v2", (images.astype(np.float64), labels_of(labels)), test=arrays[1], **ONCE)
    assert same(result, trained)


@pytest.mark.parametrize("labels_of", [lambda y: y[:, None].astype(np.float32), keras.utils.to_categorical])
def test_labels_of_tf_datasets_as_keras_makes_them(labels_of, arrays):
    """`image_dataset_from_directory` has label_mode "binary" and "categorical"."""
    images, labels = arrays[0]
    integers = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    others = tf.data.Dataset.from_tensor_slices((images, labels_of(labels))).batch(16)
    result = resnet_tf.train("resnet8_v2", others, test=others, **ONCE)
    assert same(result, resnet_tf.train("resnet8_v2", integers, **ONCE))
    assert resnet_tf.evaluate(result, others).top1 == result.test["top1"] == resnet_tf.evaluate(result, integers).top1


@pytest.mark.parametrize("form", ["integers", "one-hot", "tf.data"])
def test_classes_without_an_image(form, arrays):
    """As many classes as the model has outputs, or the labels columns: the last ones need not occur."""
    images, labels = arrays[0][0], arrays[0][1] % 7
    one_hot = keras.utils.to_categorical(labels, 9)
    if form == "integers":
        result = resnet_tf.train(small_model(9), (images, labels), **ONCE)
    elif form == "one-hot":
        result = resnet_tf.train("resnet8_v2", (images, one_hot), **ONCE)
    else:
        batches = tf.data.Dataset.from_tensor_slices((images, one_hot)).batch(16)
        result = resnet_tf.train("resnet8_v2", batches, validation=batches, **ONCE)
    assert result.model.output_shape == (None, 9)
    assert result.class_names[-1] == "class 8"
    assert 0 <= result.history[-1]["validation_accuracy"] <= 1


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "ema": 0.9}])
def test_probabilities_train_as_the_logits_before_them(options, arrays, tmp_path):
    """To the bit, and where the softmax is all 0 and 1 too: such a network would not learn from probabilities."""
    logits, probabilities = small_model(), small_model(activation="softmax")
    logits.set_weights([300 * weight for weight in logits.get_weights()])
    assert np.mean(keras.ops.softmax(logits(arrays[0][0])).numpy() == 0) > 0.5
    probabilities.set_weights(logits.get_weights())
    first = resnet_tf.train(logits, arrays[0], test=arrays[1], **ONCE, **options)
    second = resnet_tf.train(probabilities, arrays[0], test=arrays[1], run_dir=tmp_path / "run", **ONCE, **options)
    assert same(first, second)
    assert all(a["validation_loss"] == b["validation_loss"] for a, b in zip(first.history, second.history, strict=True))
    np.testing.assert_allclose(second.model(arrays[1][0]).numpy().sum(axis=1), 1, rtol=1e-5)
    assert resnet_tf.evaluate(str(tmp_path / "run"), arrays[1]).top1 == first.test["top1"]


def test_validation_images_of_ones_own(arrays):
    result = resnet_tf.train("resnet8_v2", arrays[0], validation=arrays[1], test=False, **ONCE)
    assert (result.report["train_images"], result.report["validation_images"]) == (200, 40)
    assert result.test is None
    metrics = resnet_tf.evaluate(result.model, arrays[1])
    assert metrics.top1 == result.history[-1]["validation_accuracy"]


def test_callbacks_see_the_history_and_can_end_the_training(arrays):
    seen = []

    class Stop(resnet_tf.Callback):
        def on_evaluation(self, history):
            seen.append(len(history))
            raise resnet_tf.StopTraining

    for callbacks in [Stop()], Stop():
        result = resnet_tf.train("resnet8_v2", arrays[0], test=False, callbacks=callbacks, **OPTIONS)
        assert result.report["iterations"] == 3
    assert seen == [1, 1]


def test_a_failing_callback_ends_nothing(arrays, capsys):
    def fail(history):
        raise RuntimeError("no more paper")

    options = {**OPTIONS, "verbose": True}
    result = resnet_tf.train("resnet8_v2", arrays[0], test=False, callbacks=[fail], **options)
    assert result.report["iterations"] == 6
    assert capsys.readouterr().out.count("no more paper") == 1


@pytest.mark.parametrize("lacking", [True, False])
def test_a_training_that_onednn_would_make_faster_says_so(arrays, monkeypatch, capsys, lacking):
    monkeypatch.setattr("resnet_tf.fitting.lacks_onednn", lambda: lacking)
    resnet_tf.train("resnet8_v2", arrays[0], test=False, **{**ONCE, "verbose": True})
    assert capsys.readouterr().out.count("TF_ENABLE_ONEDNN_OPTS=1, set before TensorFlow is imported") == lacking


def test_an_augmentation_of_ones_own(arrays):
    def upside_down(image, rng):
        return np.ascontiguousarray(image[::-1])

    result = resnet_tf.train("resnet8_v2", arrays[0], test=False, augment=upside_down, **ONCE)
    assert result.report["settings"]["augment"].endswith("upside_down")


@pytest.mark.pictures
def test_evaluate_and_report(trained, arrays, tmp_path):
    images, labels = arrays[1]
    metrics = resnet_tf.evaluate(trained.model, arrays[1])
    logits = np.asarray(trained.model(images), np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert metrics.loss == pytest.approx(-np.log(shares[np.arange(40), labels]).mean(), rel=1e-4)
    assert metrics.top1 == trained.test["top1"]
    assert np.sum(metrics.confusion) == 40
    page = metrics.report(tmp_path / "report")
    assert "top-1 accuracy" in page.read_text()
    assert json.loads((tmp_path / "report" / "report.json").read_text())["images"] == 40
    for model in (trained, str(trained.run_dir)):
        assert resnet_tf.evaluate(model, arrays[1]).confusion == metrics.confusion
    assert "top1" in repr(metrics)
    with pytest.raises(resnet_tf.UserError, match="does not say what it was trained on; give data=…"):
        resnet_tf.evaluate(trained)  # arrays are of the process that has them


def test_arrays_that_are_no_images_of_the_model(trained, arrays):
    gray = arrays[1][0][..., 0]
    for images, shape in ((gray[:2], r"\(2, 16, 16\)"), (gray[:2, ..., None], r"\(16, 16, 1\)")):
        with pytest.raises(resnet_tf.UserError, match=rf"{shape}.*takes \(height, width, 3\)") as refused:
            resnet_tf.predict(trained, images)
        assert refused.value.argument == "images"


def test_predict_on_files_and_arrays(trained, arrays, tmp_path):
    import cv2

    images = arrays[1][0]
    cv2.imwrite(str(tmp_path / "photo.png"), images[0][..., ::-1])
    found = resnet_tf.predict(trained, [tmp_path / "photo.png", images[1], tmp_path / "missing.png"], top=3)
    assert [prediction.unreadable is None for prediction in found] == [True, True, False]
    logits = np.asarray(trained.model(images[:2]))
    assert [prediction.indices[0] for prediction in found[:2]] == logits.argmax(axis=1).tolist()
    assert [len(prediction.probabilities) for prediction in found[:2]] == [3, 3]
    (from_array,) = resnet_tf.predict(trained.model, images[0])
    assert from_array.probability == pytest.approx(found[0].probability, abs=1e-6)
    assert from_array.label == f"class {from_array.indices[0]}"
    for function, data in ((resnet_tf.predict, images[0]), (resnet_tf.evaluate, arrays[1])):
        with pytest.raises(resnet_tf.UserError, match="precision='half' is not known; allowed: auto, float32"):
            function(trained.model, data, precision="half")


def test_a_step_of_ones_own(arrays):
    images, labels = arrays[0]
    model = resnet_tf.build_model("resnet8_v1", input_shape=(16, 16, 3))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    step = resnet_tf.make_train_step(model, resnet_tf.fused_view(model), optimizer, "he2015")
    first = step(tf.constant(images[:32]), tf.constant(labels[:32]), tf.constant(0.1))
    for _ in range(5):
        last = step(tf.constant(images[:32]), tf.constant(labels[:32]), tf.constant(0.1))
    assert float(last[0]) < float(first[0])
    # Half the decay times the squared kernels: the papers' 1e-4.
    kernels = [v.numpy() for v in model.trainable_variables if len(v.shape) > 1]
    again = step(tf.constant(images[:32]), tf.constant(labels[:32]), tf.constant(0.0))
    assert float(again[1]) == pytest.approx(0.5e-4 * sum(np.square(kernel).sum() for kernel in kernels), rel=1e-5)
