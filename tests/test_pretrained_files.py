import hashlib
import io
import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import keras
import numpy as np
import pytest

from resnet_tf.cli.main import main
from resnet_tf.errors import UserError
from resnet_tf.models import resnet
from resnet_tf.models.registry import build_model
from resnet_tf.models.resnet import cifar_resnet, imagenet_resnet
from resnet_tf.pretrained import zoo as published
from resnet_tf.pretrained.keras_file import open_weights
from resnet_tf.pretrained.zoo import imagenet_classes
from tests.fixtures.wild import archive
from tests.test_pretrained_torch import FIXTURES, Hostile

IMAGES = np.random.default_rng(3).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(resnet, "IMAGENET_FILTERS", (4, 8, 12, 16))
    monkeypatch.setattr(resnet, "CIFAR_FILTERS", (4, 8, 16))


@pytest.fixture
def net(monkeypatch, tmp_path):
    """A stand-in for the internet that has resnet18's fixture, and a list of what it was asked for."""
    data = (FIXTURES / "resnet18.pth").read_bytes()
    name = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setitem(published.FILES, "resnet18", name)
    asked = []

    class Net:
        served = data
        file = tmp_path / "keras" / "resnet_tf" / name

        def open(self, address, timeout):
            asked.append(address)
            if self.served is None:
                raise urllib.error.URLError("Name or service not known")
            answer = io.BytesIO(self.served)
            answer.headers = {"Content-Length": str(len(self.served))}
            return answer

    net = Net()
    net.asked = asked
    monkeypatch.setattr(urllib.request, "urlopen", net.open)
    return net


def test_published_weights_are_fetched_once(net):
    for _ in range(2):
        model = build_model("resnet18", weights="imagenet", classes=7, input_shape=(75, 64, 3))
    assert net.asked == [f"https://download.pytorch.org/models/{net.file.name}"]
    known = np.load(FIXTURES / "resnet18.npz")
    np.testing.assert_allclose(model(known["images"]), known["logits"], atol=1e-5)
    assert imagenet_resnet(18, weights="imagenet", include_top=False).output_shape == (None, 7, 7, 16)


def test_offline_one_line_says_which_file_to_put_where(net):
    net.served = None
    with pytest.raises(UserError) as error:
        build_model("resnet18", weights="imagenet")
    assert str(error.value) == (
        f"{net.file.name} could not be fetched (Name or service not known); "
        f"put https://download.pytorch.org/models/{net.file.name} at {net.file}"
    )
    shutil.copy(FIXTURES / "resnet18.pth", net.file)
    build_model("resnet18", weights="imagenet", classes=7)


def test_what_has_another_checksum_is_not_kept(net):
    net.served = b"another file"
    with pytest.raises(UserError, match="does not have the checksum in its name"):
        build_model("resnet18", weights="imagenet")
    assert list(net.file.parent.iterdir()) == []
    net.file.write_bytes(b"put there by hand")
    with pytest.raises(UserError, match=r"remove it, and fetch https://download\.pytorch\.org/models/resnet18"):
        build_model("resnet18", weights="imagenet")
    assert net.file.read_bytes() == b"put there by hand"


def test_names_of_the_published_files():
    # torchvision/models/resnet.py, the *_Weights.IMAGENET1K_V1 of each network.
    assert published.FILES["resnet50"] == "resnet50-0676ba61.pth"
    assert published.FILES["resnext101_64x4d"] == "resnext101_64x4d-173b62eb.pth"
    assert len(published.FILES) == 10
    for network, file in published.FILES.items():
        assert file.startswith(f"{network}-")
        int(file.removesuffix(".pth").rpartition("-")[2], 16)


@pytest.mark.parametrize(
    "build",
    [
        lambda: imagenet_resnet(50, version=2, weights="imagenet"),
        lambda: imagenet_resnet(50, stride_on="1x1", weights="imagenet"),
        lambda: imagenet_resnet(50, groups=2, weights="imagenet"),
        lambda: cifar_resnet(20, weights="imagenet"),
    ],
)
def test_networks_without_published_weights(net, build):
    with pytest.raises(UserError, match=r"weights='imagenet' exists for resnet18, .* only"):
        build()
    assert net.asked == []


def some_model(**options):
    model = cifar_resnet(8, classes=4, **options)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.uniform(0.2, 1, variable.shape))
    return model


def test_keras_files(tmp_path):
    model = some_model(mean=(120, 110, 100), std=(60, 50, 40))
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    whole = cifar_resnet(8, classes=4, weights=str(tmp_path / "m.keras"))
    np.testing.assert_allclose(whole(IMAGES), model(IMAGES), rtol=1e-5)
    weights = cifar_resnet(8, classes=4, mean=(120, 110, 100), std=(60, 50, 40), weights=str(tmp_path / "m.weights.h5"))
    np.testing.assert_array_equal(weights(IMAGES), model(IMAGES))
    bare = cifar_resnet(8, include_top=False, weights=str(tmp_path / "m.keras"))
    np.testing.assert_allclose(
        bare(IMAGES), keras.Model(model.input, model.get_layer("head_relu").output)(IMAGES), rtol=1e-5
    )


def test_a_keras_file_tells_where_its_zero_channels_are(tmp_path):
    path = str(tmp_path / "m.keras")
    model = some_model(version=1, identity_padding="end")
    model.save(path)
    np.testing.assert_array_equal(cifar_resnet(8, version=1, classes=4, weights=path)(IMAGES), model(IMAGES))
    with pytest.raises(UserError, match=r"in 1 variable \(its identity_padding is 'end'"):
        cifar_resnet(8, version=1, classes=4, identity_padding="center", weights=path)


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
@pytest.mark.parametrize("classes", [4, 7])
def test_keras_files_under_a_new_head(tmp_path, name, classes):
    model = some_model()
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    other = cifar_resnet(8, classes=classes)
    head = [value.numpy() for value in other.get_layer("head_logits").variables]
    open_weights(str(tmp_path / name), None).load_into(other, new_head=True)
    for value, before in zip(other.get_layer("head_logits").variables, head, strict=True):
        np.testing.assert_array_equal(value, before)
    features = [keras.Model(each.input, each.get_layer("head_pool").output)(IMAGES) for each in (model, other)]
    np.testing.assert_array_equal(*features)
    for unlike in (cifar_resnet(14, classes=classes), cifar_resnet(8, classes=classes, width=2)):
        before = unlike.get_weights()
        with pytest.raises(UserError, match=f"{name} does not fit"):
            open_weights(str(tmp_path / name), None).load_into(unlike, new_head=True)
        for value, expected in zip(unlike.get_weights(), before, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_keras_files_of_other_networks(tmp_path, name):
    model = some_model(use_bias=True)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    biased = {"depth": 8, "use_bias": True}
    for options in ({**biased, "depth": 14}, {**biased, "width": 2}, {"depth": 8}):
        with pytest.raises(UserError, match=rf"{name} does not fit") as error:
            cifar_resnet(**{"classes": 4, **options}, weights=str(tmp_path / name))
        assert "\n" not in str(error.value)
    (tmp_path / name).write_bytes(b"no such file")
    with pytest.raises(UserError, match=name):
        cifar_resnet(8, weights=str(tmp_path / name))


def model_of_unnamed_layers(first=4):
    """Of two models that hold a layer of one name, and layers that Keras numbers on in a process."""
    inputs = x = keras.Input((32, 32, 3))
    for filters in (first, 4):
        part = keras.Input((32, 32, x.shape[-1]))
        x = keras.Model(part, keras.layers.Conv2D(filters, 3, padding="same", name="conv")(part))(x)
    x = keras.layers.Conv2D(5, 3)(keras.layers.Conv2D(5, 3)(x))
    return keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


def test_a_keras_file_of_a_model_that_is_built_again(tmp_path):
    model, again = model_of_unnamed_layers(), model_of_unnamed_layers()
    model.save(tmp_path / "m.keras")
    assert {v.path for v in model.variables} != {v.path for v in again.variables}
    open_weights(str(tmp_path / "m.keras"), None).load_into(again)
    np.testing.assert_array_equal(again(IMAGES), model(IMAGES))
    with pytest.raises(
        UserError, match=r"m\.keras does not fit .* in 3 variables \(conv/kernel, conv/bias, conv/kernel#2\)"
    ):
        open_weights(str(tmp_path / "m.keras"), None).load_into(model_of_unnamed_layers(first=6))


def test_a_file_with_more_than_the_model_has(tmp_path):
    """Keras takes the layers that it finds a place for, and says nothing of the others."""
    some_model().save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(UserError, match=r"m\.weights\.h5 does not fit .* it has \d+ variables, the model has \d+;"):
        cifar_resnet(8, include_top=False, weights=str(tmp_path / "m.weights.h5"))


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(UserError, match="does not exist; give 'imagenet' or a file's path"):
        cifar_resnet(8, weights="imagnet")
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.h5 cannot be imported: it is neither a file of torch\.save nor"):
        cifar_resnet(8, weights=str(tmp_path / "m.h5"))


def test_the_classes_of_imagenet():
    classes = imagenet_classes()
    # As everybody's tables have them, for example Keras' imagenet_class_index.json.
    assert classes[0] == ("n01440764", "tench")
    assert classes[258] == ("n02111889", "Samoyed")
    assert classes[281].name == "tabby"
    assert classes[999] == ("n15075141", "toilet tissue")
    assert len(classes) == len({c.wnid for c in classes}) == len({c.name for c in classes}) == 1000


# The command.


def test_import_weights(tmp_path, capsys):
    output = tmp_path / "r.keras"
    checkpoint = str(FIXTURES / "chenyaofo_resnet20.pt")
    assert main(["import-weights", checkpoint, "--model", "resnet20_v1", "--output", str(output)]) == 0
    known = np.load(FIXTURES / "chenyaofo_resnet20.npz")
    model = keras.models.load_model(output)
    np.testing.assert_allclose(model(known["images"]), known["logits"], atol=1e-5)
    sidecar = json.loads((tmp_path / "r.json").read_text())
    assert sidecar["class_names"][3] == "cat"
    assert sidecar["dataset"] == "cifar10"
    assert sidecar["builder"] == {"shortcut": "projection"}
    np.testing.assert_allclose(sidecar["preprocessing"]["mean"], [125.307, 122.961, 113.8575])
    np.testing.assert_allclose(sidecar["preprocessing"]["std"], [51.5865, 50.847, 51.255])
    assert "takes raw RGB pixels, mean 125.3 123.0 113.9, std 51.6 50.8 51.3 inside" in capsys.readouterr().out


def test_import_with_flags(tmp_path):
    output = str(tmp_path / "r.keras")
    flags = ["--mean", "1,2,3", "--std", "40,50,60", "--new-head", "3"]
    argv = ["import-weights", str(FIXTURES / "resnet18.pth"), "--model", "resnet18", "--output", output]
    assert main([*argv, *flags]) == 0
    model = keras.models.load_model(output)
    assert model.output_shape == (None, 3)
    np.testing.assert_allclose(1 / np.ravel(model.get_layer("normalization").scale), [40, 50, 60], rtol=1e-6)
    assert "class_names" not in json.loads((tmp_path / "r.json").read_text())
    assert main([*argv, "--classes", "7"]) == 0
    assert keras.models.load_model(output).output_shape == (None, 7)


R20 = str(FIXTURES / "akamaster_resnet20.th")
REFUSED = [
    ([R20, "--model", "resnet20_v1", "--shortcut", "projection"], "10 missing"),
    ([R20, "--model", "resnet14_v1"], "of a network of 20 layers, not 14; 30 left over"),
    ([R20, "--model", "resnet32_v1"], "; it fits resnet20_v1"),
    ([R20, "--model", "resnet18"], "a network of 3 stages, and resnet18 has 4; name"),
    (
        [R20, "--model", "resnet20_v1", "--preprocessing", "half", "--mean", "1,2,3"],
        "--preprocessing stands for --mean",
    ),
    ([R20, "--model", "resnet20_v1", "--rename", "stem=conv1"], "'stem' cannot be renamed to 'conv1': there is none"),
    ([R20, "--model", "resnet20_v1", "--rename", "conv1=bn1"], "gives two tensors one name"),
    ([R20, "--model", "resnet21"], "--model resnet21 is not known"),
    ([R20, "--model", "resnet20_v1", "--classes", "11"], "--classes 10 or --new-head 11"),
    ([R20, "--model", "resnet20_v1", "--new-head", "0"], "--new-head 0 is out of range"),
    ([R20, "--model", "resnet20_v1", "--mean", "1,2,3"], "--mean and --std go together"),
    ([R20, "--model", "resnet20_v1", "--mean", "1,2", "--std", "3,4"], "mean and std need 3 values each"),
    ([R20, "--model", "resnet20_v1", "--mean", ".4,.4,.4", "--std", ".2,.2,.2"], "looks like 0-1 units"),
    ([str(FIXTURES / "resnet18.pth"), "--model", "resnet18", "--shortcut", "identity"], "left over"),
    ([str(FIXTURES / "resnet18.pth"), "--model", "resnet18"], "its classifier has 7 outputs, the model's has 1000"),
    (["none.pth", "--model", "resnet18"], "none.pth does not exist"),
]


@pytest.mark.parametrize(("argv", "message"), REFUSED)
def test_refusals_are_one_line_and_leave_nothing(tmp_path, capsys, argv, message):
    assert main(["import-weights", *argv, "--output", str(tmp_path / "r.keras")]) == 2
    written = capsys.readouterr().err
    assert message in written
    assert written.startswith("resnet-tf: error: ")
    assert written.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path, capfd):
    import os

    witness = tmp_path / "ran"
    evil = archive(tmp_path / "evil.pth", {"state_dict": Hostile(os.system, f"touch {witness}")})
    assert main(["import-weights", str(evil), "--model", "resnet18", "--output", str(tmp_path / "r.keras")]) == 2
    written = capfd.readouterr().err
    assert written.count("\n") == 1
    assert "evil.pth cannot be imported: it holds no state_dict" in written
    assert "posix.system, no tensor or container, of which nothing was run" in written
    assert not witness.exists()
    assert not (tmp_path / "r.keras").exists()


@pytest.mark.parametrize(
    ("output", "says"),
    [("r.h5", "give a name that ends in .keras"), ("no/such/folder/r.keras", "the folder does not exist")],
)
def test_outputs_that_cannot_be(tmp_path, capsys, output, says):
    assert main(["import-weights", R20, "--model", "resnet20_v1", "--output", str(tmp_path / output)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("name", ["predict", "import-weights"])
def test_help_imports_no_framework(python, name):
    result = python(
        "import sys\nfrom resnet_tf.cli.main import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'keras', 'tensorflow', 'cv2', 'safetensors'} & sys.modules.keys()",
        name,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: resnet-tf {name}")


def test_fixtures_are_small():
    assert sum(file.stat().st_size for file in Path(FIXTURES).iterdir()) < 2 * 2**20
