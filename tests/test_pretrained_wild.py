"""Checkpoints as other people's scripts save them (tests/fixtures/wild.py), imported by command and by `weights=`."""

import json
import re

import keras
import numpy as np
import pytest

from resnet_tf.cli.main import main
from resnet_tf.config import make_config
from resnet_tf.models import resnet
from resnet_tf.models.registry import build_model
from resnet_tf.models.resnet import cifar_resnet
from resnet_tf.pretrained.importer import InitialWeights
from resnet_tf.pretrained.keras_file import TorchWeights, open_weights
from resnet_tf.pretrained.torch_file import read_checkpoint
from tests.fixtures import wild

pytestmark = pytest.mark.filterwarnings("ignore:.* are a guess by the first layer's statistics")
IMAGES = np.random.default_rng(5).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(resnet, "CIFAR_FILTERS", wild.WIDTHS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wild")
    return {name: wild.write(folder, name) for name in wild.FILES}


@pytest.fixture
def run(tmp_path, capsys):
    """Import a file by the command: the model, what was printed, and the sidecar; or the error."""

    def run(path, *flags):
        code = main(["import-weights", str(path), "--output", str(tmp_path / "r.keras"), *flags])
        said = capsys.readouterr()
        if code:
            return said.err
        return keras.models.load_model(tmp_path / "r.keras"), said.out, json.loads((tmp_path / "r.json").read_text())

    return run


def assert_same_logits(model, network):
    expected = network(np.moveaxis(IMAGES, -1, 1).astype(np.float64))
    assert np.ptp(expected) > 0.3
    np.testing.assert_allclose(model(IMAGES), expected, atol=2e-4)


@pytest.mark.parametrize("name", wild.FILES)
def test_networks_are_recognized_and_compute_the_same(files, run, name):
    network, path = files[name]
    model, text, sidecar = run(path)
    expected = "plain20" if network.wiring == "none" else "resnet20_v1"
    assert sidecar["model"] == expected
    assert f": {expected}, " in text
    assert_same_logits(model, network)
    assert f"mean {' '.join(f'{value:.1f}' for value in network.mean.ravel())}, std" in text
    assert "mean and std are a guess by the first layer's statistics, for images of cifar10: check them with" in text
    assert ("matched by order, kind and shape" in text) == (name in ("short.pth", "plain.pt", "end.pt"))


@pytest.mark.parametrize(
    ("flags", "mean", "std"),
    [
        (["--preprocessing", "imagenet"], 123.675, 57.375),
        (["--preprocessing", "cifar10"], 125.307, 66.708),
        (["--preprocessing", "half"], 127.5, 127.5),
        (["--preprocessing", "none"], 0, 255),
        (["--mean", "1,2,3", "--std", "4,5,6"], 1, 6),
    ],
)
def test_given_constants_are_no_guess(files, run, flags, mean, std):
    model, text, sidecar = run(files["distiller.pth.tar"][1], *flags)
    assert "guess" not in text
    assert sidecar["preprocessing"]["mean"][0] == pytest.approx(mean)
    assert sidecar["preprocessing"]["std"][2] == pytest.approx(std)
    np.testing.assert_allclose(1 / np.ravel(model.get_layer("normalization").scale)[2], std, rtol=1e-6)


def test_names_alone_are_a_guess(run):
    """Statistics of images unlike CIFAR's tell nothing of the normalization."""
    path = "tests/fixtures/akamaster_resnet20.th"
    text = run(path, "--model", "resnet20_v1")[1]
    assert "mean 123.7 116.3 103.5, std 58.4 57.1 57.4 inside" in text
    assert "a guess by its tensors' names, which are akamaster's, for images of cifar10: check them with" in text
    assert (
        "give --mean and --std (three numbers each, 0-255 units) or --preprocessing imagenet|cifar10|half|none" in text
    )
    with pytest.warns(UserWarning, match=r"are a guess by its tensors' names, .* give mean= and std="):
        cifar_resnet(20, version=1, weights=path)


def layers_of_kind(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("name", ["plain.pt", "akamaster.th"])
def test_a_plain_network_stays_plain(files, run, name):
    network, path = files[name]
    model, text, sidecar = run(path, "--model", "plain20")
    assert layers_of_kind(model, keras.layers.Add) == []
    assert sidecar["builder"].get("shortcut", "none") == "none"
    warned = (
        "warning: built with no shortcuts, and its batch norms are those of shortcuts with zero channels half" in text
    )
    assert warned == (network.wiring == "center")
    weights = InitialWeights(str(path), "plain20")  # train --weights
    options = weights.builder(make_config(model="plain20", dataset="shapes"))
    built = build_model("plain20", **{key: value for key, value in options.items() if value is not None})
    assert layers_of_kind(built, keras.layers.Add) == []
    if name == "plain.pt":
        assert_same_logits(model, network)
        assert_same_logits(cifar_resnet(20, version=1, weights=str(path)), network)


def test_zero_channels_at_the_end(files, run):
    network, path = files["end.pt"]
    assert_same_logits(cifar_resnet(20, version=1, weights=str(path)), network)
    _, text, sidecar = run(path, "--model", "resnet20_v1", "--identity-padding", "center")
    assert "warning: built with shortcuts with zero channels half before" in text
    assert sidecar["builder"]["identity_padding"] == "center"
    weights = InitialWeights(str(path), "resnet20_v1")
    assert weights.builder(make_config(model="resnet20_v1", dataset="shapes"))["identity_padding"] == "end"


def test_what_batch_norms_do_not_show_is_said(run):
    text = run("tests/fixtures/akamaster_resnet20.th")[1]
    assert "do not show how its units are connected: built with shortcuts with zero channels half before" in text
    assert "--identity-padding end" in text


def variant(tmp_path, network, change, name_of=wild.common_name, head="linear", **options):
    arrays = network.state_dict(name_of, head)
    return wild.save(tmp_path / "variant", change(arrays) or arrays, **options)


def test_biases_before_batch_norms_are_folded(files, run, tmp_path):
    network = files["distiller.pth.tar"][0]
    rng = np.random.default_rng(1)

    def add_biases(arrays):
        for name, norm in (
            ("conv1", "bn1"),
            ("layer2.0.downsample.0", "layer2.0.downsample.1"),
            ("layer3.2.conv2", "layer3.2.bn2"),
        ):
            bias = rng.normal(0, 1, arrays[f"{norm}.running_mean"].shape).astype(np.float32)
            arrays[f"{name}.bias"] = bias
            arrays[f"{norm}.running_mean"] = arrays[f"{norm}.running_mean"] + bias

    path = variant(tmp_path, network, add_biases)
    assert_same_logits(run(path)[0], network)
    unknown = variant(
        tmp_path, network, lambda a: add_biases(a) or {f"x{k}" if k == "conv1.weight" else k: v for k, v in a.items()}
    )
    assert "its tensors" not in run(unknown, "--rename", "xconv1=conv1")[1]


def test_renamed_modules(files, run, tmp_path):
    network, path = files["end.pt"]
    renames = {"convIn": "conv1", "bnIn": "bn1", "stack1": "layer1", "fcOut": "linear"}
    renames |= {f"stack{s}a": f"layer{s}.0" for s in (2, 3)}
    renames |= {f"stack{s}b.{i}": f"layer{s}.{i + 1}" for s in (2, 3) for i in (0, 1)}
    flags = [flag for old, new in renames.items() for flag in ("--rename", f"{old}={new}")]
    model, text, _ = run(path, *flags)
    assert "matched by order" not in text
    assert_same_logits(model, network)
    with pytest.raises(SystemExit):
        run(path, "--rename", "convIn")


def test_names_in_another_order(files, run, tmp_path):
    """Shortcuts may be registered before the convolutions, and the batch norms of a unit after all of them."""
    network = files["distiller.pth.tar"][0]
    names = [f"m{n:03d}" for n in range(60)]
    order = {}

    def scrambled(arrays):
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in arrays))
        units = dict.fromkeys(re.sub(r"\.(conv|bn|downsample).*", "", module) for module in modules)
        keys = [
            m
            for unit in units
            for m in sorted(
                (m for m in modules if m == unit or m.startswith(f"{unit}.")),
                key=lambda m: ("downsample" not in m, "bn" in m),
            )
        ]
        order.update(dict(zip(keys, names, strict=False)))
        return {
            f"{order[m]}.{part}": arrays[f"{m}.{part}"]
            for m in keys
            for part in ("weight", "bias", "running_mean", "running_var")
            if f"{m}.{part}" in arrays
        }

    assert_same_logits(run(variant(tmp_path, network, scrambled))[0], network)


def test_a_wrong_depth_is_told_with_the_network_that_fits(files, run, tmp_path):
    for name in ("akamaster.th", "end.pt"):
        error = run(files[name][1], "--model", "resnet32_v1")
        assert "of a network of 20 layers, not 32" in error
        assert error.endswith("; it fits resnet20_v1\n")
    assert "; it fits plain20" in run(files["plain.pt"][1], "--model", "resnet56_v1")
    missing = variant(tmp_path, files["end.pt"][0], lambda arrays: arrays.pop("bn1.bias") is None)
    assert "1 missing (bn1.bias)" in run(missing, "--model", "resnet20_v1")


def test_strict_on_shapes(files, run, tmp_path):
    def widen(arrays):
        arrays["stack2b.1.conv2.weight"] = np.zeros((9, 8, 3, 3), np.float32)

    path = variant(tmp_path, files["end.pt"][0], widen, wild.stack_name)
    assert "stack2b.1.conv2.weight is (9, 8, 3, 3), the model needs (8, 8, 3, 3)" in run(path, "--model", "resnet20_v1")
    assert "fits no network here; name that of its 20 layers (import-weights: --model)" in run(path)


def test_files_of_other_frameworks_are_told_as_such(run, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.save(tmp_path / "m.keras")
    model.save(tmp_path / "m.h5")
    model.save_weights(tmp_path / "m.weights.h5")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08")
    assert "it is a Keras model, which needs no import" in run(tmp_path / "m.keras")
    (tmp_path / "m.h5").rename(tmp_path / "m.pth")
    assert "it is a Keras model, which needs no import" in run(tmp_path / "m.pth")
    assert "it is a Keras file of weights alone" in run(tmp_path / "m.weights.h5")
    assert "it is an ONNX model; give the PyTorch checkpoint" in run(tmp_path / "m.onnx")


def test_weights_of_a_whole_h5_model(tmp_path):
    model = cifar_resnet(8, version=1, mean=(120, 110, 100), std=(60, 50, 40))
    model.save(tmp_path / "m.h5")
    np.testing.assert_allclose(
        cifar_resnet(8, version=1, weights=str(tmp_path / "m.h5"))(IMAGES), model(IMAGES), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["model.t7", "model.bin", "model.ckpt", "model"])
def test_names_of_files_do_not_matter(files, tmp_path, name):
    for source in ("akamaster.th", "best_checkpoint"):
        path = tmp_path / name
        path.write_bytes(files[source][1].read_bytes())
        assert isinstance(open_weights(str(path), None), TorchWeights)


def test_python_2_dictionaries(tmp_path):
    """Python 2 calls OrderedDict with all items, lists of two."""
    pairs = [["conv.weight", wild.tensor((2,), (1,), numel=2)]]
    call = wild.Call(wild.Name("collections", "OrderedDict"), pairs)
    path = wild.archive(tmp_path / "t.pth", call, {"0": np.arange(2, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(read_checkpoint(path)["conv.weight"].read(), [0, 1])
