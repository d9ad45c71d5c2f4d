"""Weights from elsewhere under a new head, frozen stages, and the switch to training everything."""

import collections
import json
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from resnet_tf.cli.main import main as resnet_tf
from resnet_tf.cli.train import main
from resnet_tf.errors import UserError
from resnet_tf.fused import fused_view
from resnet_tf.models.layers import as_trainable, describe_trainable, freeze, unfreeze
from resnet_tf.models.resnet import cifar_resnet, imagenet_resnet
from resnet_tf.recipes import get_recipe, override
from resnet_tf.reports.runs import shortcut_of
from resnet_tf.training.logs import read_iterations
from resnet_tf.training.step import make_optimizer, make_train_step
from tests.conftest import TINY, stopping_after

RECIPE = override(get_recipe("he2015"), weight_decay=0.01)


def some_network(version=1):
    keras.utils.set_random_seed(3)
    return cifar_resnet(8, version=version, input_shape=(8, 8, 3), mean=(125, 123, 114), std=(63, 62, 67))


def some_batch(seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8), rng.integers(0, 10, 6).astype(np.int32)


def values(model):
    return {v.path: v.numpy() for v in model.variables}


def changed(before, after):
    return {path.partition("/")[0] for path in before if not np.array_equal(before[path], after[path])}


def layers_with_variables(model):
    return {layer.name for layer in model.layers if layer.variables}


# Of a CIFAR network of 8 layers, written out by hand.
STEM = {"stem_conv", "stem_bn"}
STAGES = {k: {f"stage{k}_block1_{kind}{i}" for kind in ("conv", "bn") for i in (1, 2)} for k in (1, 2, 3)}


@pytest.mark.parametrize(
    ("last", "trained"),
    [
        ("none", STEM | STAGES[1] | STAGES[2] | STAGES[3] | {"head_logits"}),
        ("stage1", STAGES[2] | STAGES[3] | {"head_logits"}),
        ("stage2", STAGES[3] | {"head_logits"}),
        ("stage3", {"head_logits"}),
        ("all", {"head_logits"}),
    ],
)
def test_what_is_frozen_neither_trains_nor_counts_statistics(last, trained):
    model = some_network()
    assert layers_with_variables(model) == STEM | STAGES[1] | STAGES[2] | STAGES[3] | {"head_logits"}
    optimizer = make_optimizer(RECIPE, "float32")
    optimizer.build(model.trainable_variables)
    freeze(model, last)
    step = make_train_step(model, fused_view(model), optimizer, RECIPE, jit_compile=False)
    before = values(model)
    step(*some_batch(), np.float32(0.1))
    assert changed(before, values(model)) == trained
    # Nothing goes back through what is frozen: gradients only of the convolutions that train.
    operations = collections.Counter(
        op.type for op in step.get_concrete_function().graph.get_operations() if "Backprop" in op.type
    )
    convolutions = sum("conv" in name for name in trained)
    assert operations["Conv2DBackpropFilter"] == convolutions
    assert operations["Conv2DBackpropInput"] == convolutions


def test_the_last_normalization_of_version_2_belongs_to_the_features():
    model = some_network(version=2)
    frozen = freeze(model, "all")
    assert {v.path for v in model.trainable_variables} == {"head_logits/kernel", "head_logits/bias"}
    unfreeze(frozen, batch_norm=True)
    freeze(model, "stage3")
    assert {v.path.partition("/")[0] for v in model.trainable_variables} == {"head_bn", "head_logits"}
    model = imagenet_resnet(18, input_shape=(64, 64, 3), classes=4)
    freeze(model, "stage4")
    names = {v.path.partition("_")[0] for v in model.trainable_variables}
    assert names == {"stage5", "head"}


def test_a_stage_that_is_not_there():
    with pytest.raises(UserError, match=r"freeze='stage4' does not fit .*; allowed: none, stage1, stage2, stage3, all"):
        freeze(some_network(), "stage4")


def test_a_saved_file_knows_nothing_of_it():
    model = some_network()
    with as_trainable(freeze(model, "stage2")):
        assert len(model.trainable_variables) == len(some_network().trainable_variables)
    assert {v.path.partition("_")[0] for v in model.trainable_variables} == {"stage3", "head"}


def network_in_a_model():
    base = cifar_resnet(8, version=1, input_shape=(8, 8, 3), include_top=False, pooling="avg")
    return keras.Sequential([keras.Input((8, 8, 3)), base, keras.layers.Dense(4, name="top")])


def test_the_layers_of_a_model_in_the_model_are_frozen_one_by_one():
    """And those that their owner has frozen stay so."""
    model = network_in_a_model()
    base = model.layers[0]
    base.get_layer("stage3_block1_conv2").trainable = False
    parts = {"stem", "stage1", "stage2", "stage3", "top"}
    for last, trained in (("none", parts), ("stage2", {"stage3", "top"}), ("all", {"top"})):
        frozen = freeze(model, last)
        assert {v.path.split("/")[-2].partition("_")[0] for v in model.trainable_variables} == trained
        # 75,290 without the 64·10 + 10 of the CIFAR classifier and the 9·64² of the frozen convolution.
        assert f" of {75_290 - 650 - 36_864 + 64 * 4 + 4:,} parameters" in describe_trainable(model, frozen)
        with as_trainable(frozen):
            assert [x.name for x in base.layers if not x.trainable] == ["stage3_block1_conv2"]
        norms = {x.name for x in frozen if isinstance(x, keras.layers.BatchNormalization)}
        assert bool(norms) == (last != "none")
        unfreeze(frozen, batch_norm=False)
        assert {x.name for x in base.layers if not x.trainable} == {"stage3_block1_conv2"} | norms
        unfreeze(frozen, batch_norm=True)
        assert [x.name for x in base.layers if not x.trainable] == ["stage3_block1_conv2"]


def test_what_trains_in_words():
    model = some_network()
    frozen = freeze(model, "all")
    # 64 features times 10 classes and 10 biases; 75,290 as in the report of a run.
    assert describe_trainable(model, frozen) == "training 650 of 75,290 parameters in 1 layers: head_logits 650"
    unfreeze(frozen, batch_norm=True)
    frozen = freeze(model, "stage1")
    # Two convolutions and two normalizations a stage: 9·16·32 + 9·32² + 4·32, and 9·32·64 + 9·64² + 4·64.
    assert describe_trainable(model, frozen).endswith("in 9 layers: stage2 13,952, stage3 55,552, head 650")


@pytest.mark.parametrize("train_bn", [False, True])
def test_the_slots_of_what_trained_before_survive_the_switch(train_bn):
    """Two steps of the head and two of everything, against the same written out in NumPy on the stock layers."""
    recipe = override(get_recipe("he2015"), weight_decay=0)
    model, stock = some_network(), some_network()
    optimizer = make_optimizer(recipe, "float32")
    optimizer.build(model.trainable_variables)
    velocities = {v.path: np.zeros(v.shape, np.float32) for v in stock.trainable_variables}
    view = fused_view(model)
    frozen = [freeze(network, "all") for network in (model, stock)]
    step = make_train_step(model, view, optimizer, recipe, jit_compile=False)
    for index in range(4):
        if index == 2:
            for layers in frozen:
                unfreeze(layers, train_bn)
            step = make_train_step(model, view, optimizer, recipe, jit_compile=False)
        images, labels = some_batch(index)
        step(images, labels, np.float32(0.1))
        with tf.GradientTape() as tape:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, stock(images, training=True))
        trained = stock.trainable_variables
        for variable, gradient in zip(trained, tape.gradient(loss, [v.value for v in trained]), strict=True):
            velocities[variable.path] = 0.9 * velocities[variable.path] - 0.1 * gradient.numpy()
            variable.assign_add(velocities[variable.path])
    expected = values(stock)
    for path, value in values(model).items():
        np.testing.assert_allclose(value, expected[path], rtol=2e-3, atol=2e-4, err_msg=path)
    statistics = {path for path in expected if "moving" in path}
    untouched = {path for path in statistics if np.array_equal(expected[path], values(some_network())[path])}
    assert untouched == (set() if train_bn else statistics)


@pytest.fixture
def pretrained(tmp_path, finished_run):
    """A copy of a finished run's folder."""
    return shutil.copytree(finished_run[0], tmp_path / "pretrained")


FLAGS = ("--recipe", "he2016", "--iterations", "12", "--eval-every", "5", "--precision", "float32", "--warmup", "none")
TWO_PHASES = ("--freeze", "stage2", "--unfreeze-at", "6", "--unfreeze-learning-rate", "0.02")


def all_weights(folder, name="final.keras"):
    return {v.path: v.numpy() for v in keras.models.load_model(folder / name).variables}


def test_a_head_trains_on_features_that_stay_as_they_are(tmp_path, train, pretrained, shapes, capsys):
    folder = tmp_path / "run"
    report = train(folder, *FLAGS, "--eval-every", "12", "--weights", str(pretrained), "--freeze", "all")
    assert "training 650 of 75,290 parameters in 1 layers: head_logits 650" in capsys.readouterr().out
    assert report["parameters"] == 75_290
    before, after = all_weights(pretrained), all_weights(folder)
    assert changed(before, after) == {"head_logits"}
    models = [keras.models.load_model(path / "final.keras") for path in (pretrained, folder)]
    assert all(layer.trainable for layer in models[1].layers)
    features = [keras.Model(m.input, m.get_layer("head_pool").output)(shapes.test.images) for m in models]
    np.testing.assert_array_equal(*features)
    sidecars = [json.loads((path / "final.json").read_text()) for path in (pretrained, folder)]
    for name in ("mean", "std"):
        given, taken = (sidecar["preprocessing"][name] for sidecar in sidecars)
        assert taken == pytest.approx(given, rel=1e-5)
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["weights"], settings["freeze"]) == (str(pretrained), "all")


@pytest.mark.parametrize("kind", ["final.keras", "only.weights.h5"])
def test_weights_of_files(tmp_path, train, pretrained, kind):
    keras.models.load_model(pretrained / "final.keras").save_weights(pretrained / "only.weights.h5")
    folder = tmp_path / "run"
    train(folder, *FLAGS, "--iterations", "1", "--freeze", "all", "--weights", str(pretrained / kind))
    assert changed(all_weights(pretrained), all_weights(folder)) == {"head_logits"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, finished_run, shapes):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("resnet_tf.data.shapes.load_shapes", lambda: shapes)
        main([*TINY, "--run-dir", str(folder), *FLAGS, *TWO_PHASES, "--weights", str(finished_run[0])])
    return folder


@pytest.mark.parametrize("count", [3, 6, 8])
def test_stopped_before_at_and_after_the_switch_it_ends_bit_for_bit_alike(
    tmp_path, monkeypatch, train, pretrained, whole, count, capsys
):
    halves = tmp_path / "halves"
    argv = [halves, *FLAGS, *TWO_PHASES, "--weights", str(pretrained)]
    with monkeypatch.context() as patch:
        stopping_after(patch, count)
        assert train(*argv) == 128 + signal.SIGTERM
    capsys.readouterr()
    train(*argv)
    printed = capsys.readouterr().out
    assert f"resuming at iteration {count} of 12" in printed
    # All but the scales and offsets of what is normalized below stage 3: 16, 16, 16 and 32 channels.
    assert "training 75,130 of 75,290 parameters" in printed
    assert changed(all_weights(whole), all_weights(halves)) == set()
    logs = [read_iterations(folder / "iterations.bin") for folder in (whole, halves)]
    np.testing.assert_array_equal(*logs)


def test_several_steps_in_a_call_stop_at_the_switch(tmp_path, train, pretrained, whole):
    folder = tmp_path / "run"
    train(folder, *FLAGS, *TWO_PHASES, "--weights", str(pretrained), "--steps-per-call", "4")
    expected = all_weights(whole)
    for path, value in all_weights(folder).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-3, atol=1e-5, err_msg=path)
    rates = [json.loads(line)["learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # he2016 drops at 6 and 9 of 12; the higher rate is another from 6 on.
    assert rates == [0.1, 0.0002, 0.0002]


def test_other_weights_under_the_same_name_are_refused(tmp_path, monkeypatch, train, pretrained):
    argv = [tmp_path / "run", *FLAGS, "--weights", str(pretrained / "final.keras")]
    with monkeypatch.context() as patch:
        stopping_after(patch, 2)
        train(*argv)
    shutil.copy(pretrained / "best.keras", pretrained / "final.keras")
    with pytest.raises(UserError, match="was started from other weights"):
        train(*argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze", "stem"], "--freeze stem is not understood; allowed: none, all, or stageK"),
        (["--freeze", "stage9"], "--freeze stage9 does not fit resnet8_v2; allowed: none, stage1, stage2, stage3, all"),
        (["--unfreeze-at", "5"], "--unfreeze-at 5 has nothing to unfreeze"),
        (["--freeze", "all", "--unfreeze-at", "0"], "--unfreeze-at 0 is out of range"),
        (["--freeze", "all", "--train-bn"], "--train-bn says what comes after the switch; add --unfreeze-at"),
        (["--freeze", "all", "--unfreeze-learning-rate", "1"], "add --unfreeze-at ITERATION"),
        (["--freeze", "all", "--unfreeze-at", "12"], "--unfreeze-at 12 is not before the end of the training, which"),
        (["--weights", "nowhere.keras"], "--weights nowhere.keras does not exist"),
        (["--weights", "."], "final.keras does not exist; finish the run first"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, monkeypatch, small_data, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert resnet_tf(["train", *TINY, *FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_network(tmp_path, train, pretrained):
    with pytest.raises(UserError, match="does not fit"):
        train(tmp_path / "run", *FLAGS, "--weights", str(pretrained), "--width", "2")
    assert not (tmp_path / "run").exists()


def test_the_weights_place_of_the_zero_channels_is_the_networks(tmp_path, train):
    """Both places take the same weights, so that nothing else would tell."""
    short = ("--model", "resnet8_v1", "--iterations", "1")
    for name, flags in (("first", ("--identity-padding", "end")), ("second", ("--weights", str(tmp_path / "first")))):
        train(tmp_path / name, *short, *flags)
        model = keras.models.load_model(tmp_path / name / "final.keras")
        assert model.get_layer("stage3_block1_shortcut_pad").padding == ((0, 0), (0, 32))
        assert json.loads((tmp_path / name / "final.json").read_text())["builder"]["identity_padding"] == "end"
    settings = [json.loads((tmp_path / name / "settings.json").read_text()) for name in ("first", "second")]
    assert [each.get("builder.identity_padding") for each in settings] == ["end", None]


def test_a_network_with_a_small_stem_trains_by_the_recipe_that_asks_for_projections(tmp_path, train, monkeypatch):
    monkeypatch.setattr("resnet_tf.models.resnet.IMAGENET_FILTERS", (4, 8, 12, 16))
    report = train(tmp_path / "run", "--model", "resnet18_cifar", "--recipe", "tutorial", "--iterations", "1")
    assert report["test"]["images"] == 40
    assert shortcut_of(report["settings"]) == "projection"


def test_the_weights_shortcut_is_the_networks(tmp_path, small_data, monkeypatch):
    from resnet_tf.models import resnet
    from tests.test_pretrained_torch import FIXTURES

    monkeypatch.setattr(resnet, "CIFAR_FILTERS", (4, 8, 16))
    folder = tmp_path / "run"
    argv = ["--model", "resnet20_v1", "--dataset", "shapes", "--batch-size", "16", "--device", "cpu"]
    main([*argv, "--run-dir", str(folder), *FLAGS, "--iterations", "1", "--freeze", "all", "--weights",
          str(FIXTURES / "chenyaofo_resnet20.pt")])  # fmt: skip
    sidecar = json.loads((folder / "final.json").read_text())
    assert sidecar["builder"]["shortcut"] == "projection"
    # chenyaofo's constants, 0.4914 and 0.2023 of 255.
    assert sidecar["preprocessing"]["mean"][0] == pytest.approx(125.307)
    assert sidecar["preprocessing"]["std"][0] == pytest.approx(51.5865)
