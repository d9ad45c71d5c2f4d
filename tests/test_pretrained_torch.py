"""Checkpoints made with PyTorch by tests/fixtures/make_fixtures.py, read without it."""

import argparse
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from resnet_tf.errors import UserError
from resnet_tf.models import resnet
from resnet_tf.models.registry import build_model
from resnet_tf.models.resnet import cifar_resnet, imagenet_resnet
from resnet_tf.pickles import load_pickle
from resnet_tf.pretrained.torch_file import LazyTensor, read_checkpoint, read_torch_file
from resnet_tf.pretrained.torch_format import detect_format
from resnet_tf.pretrained.torch_mapping import load_state_dict
from tests.fixtures.wild import FLOATS, Call, Name, Schedule, archive, pickled, stream, tensor

FIXTURES = Path(__file__).parent / "fixtures"
# Random weights have names alone to guess the normalization by, and every such guess is called one.
pytestmark = pytest.mark.filterwarnings("ignore:.* are a guess by its tensors' names")


@pytest.fixture
def narrow(monkeypatch):
    """The widths of the fixtures' networks."""
    monkeypatch.setattr(resnet, "IMAGENET_FILTERS", (4, 8, 12, 16))
    monkeypatch.setattr(resnet, "CIFAR_FILTERS", (4, 8, 16))


RAW = {"classes": 7, "input_shape": (75, 64, 3)}
TWINS = {
    "resnet18.pth": lambda path: imagenet_resnet(18, weights=path, **RAW),
    "resnet50.pth": lambda path: imagenet_resnet(50, weights=path, **RAW),
    "resnext50_32x4d.safetensors": lambda path: imagenet_resnet(50, weights=path, groups=4, width_per_group=16, **RAW),
    "resnet50_dilated.pth": lambda path: imagenet_resnet(
        50, weights=path, replace_stride_with_dilation=(False, True, True), **RAW
    ),
    "akamaster_resnet20.th": lambda path: cifar_resnet(20, version=1, weights=path),
    "akamaster_resnet56.th": lambda path: cifar_resnet(56, version=1, weights=path),
    "chenyaofo_resnet20.pt": lambda path: cifar_resnet(20, version=1, weights=path),
    "resnet18_cifar.pth": lambda path: build_model("resnet18_cifar", weights=path),
}


@pytest.mark.parametrize("name", TWINS)
def test_logits_are_pytorchs(narrow, name):
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    known = np.load(FIXTURES / Path(name).with_suffix(".npz"))
    logits = np.asarray(TWINS[name](str(FIXTURES / name))(known["images"]))
    assert np.ptp(known["logits"]) > 0.3
    np.testing.assert_allclose(logits, known["logits"], atol=1e-5)


@pytest.mark.parametrize("name", ["dtypes.pth", "dtypes_legacy.pth"])
def test_dtypes_and_views(name):
    known = np.load(FIXTURES / "dtypes.npz")
    tensors = read_checkpoint(FIXTURES / name)
    assert set(tensors) == set(known)
    for key, stored in tensors.items():
        values = stored.read()
        assert (values.dtype, stored.shape) == (np.float32, known[key].shape), key
        np.testing.assert_array_equal(values, known[key], err_msg=key)


def test_safetensors_of_every_width(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    values = np.array([[1.5, -2.0]])
    safetensors.save_file({str(d): values.astype(d) for d in ("f2", "f4", "f8", "i8")}, tmp_path / "t.safetensors")
    for stored in read_checkpoint(tmp_path / "t.safetensors").values():
        assert stored.shape == (1, 2)
        np.testing.assert_array_equal(stored.read(), np.trunc(values) if stored.read()[0, 0] == 1 else values)


def test_damaged_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "t.safetensors").write_bytes((FIXTURES / "resnext50_32x4d.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"t\.safetensors cannot be imported: it is cut short or damaged"):
        read_checkpoint(tmp_path / "t.safetensors")


def test_without_safetensors_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(UserError, match=r"pip install 'resnet_tf\[weights\]'"):
        read_checkpoint(FIXTURES / "resnext50_32x4d.safetensors")


# Files like those of torch.save, made by hand.


class Hostile:
    """Something that pickles as a call of a real function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


REBUILD = Name("torch._utils", "_rebuild_tensor_v2")


def test_files_made_by_hand_are_read(tmp_path):
    numbers = np.arange(6, dtype="<f4")
    path = archive(tmp_path / "t.pth", {"a": tensor((2, 3), (3, 1), numel=6)}, {"0": numbers.tobytes()})
    np.testing.assert_array_equal(read_checkpoint(path)["a"].read(), numbers.reshape(2, 3))
    storages = {"0": numbers.astype(">f4").tobytes()}
    big = archive(tmp_path / "big.pth", {"a": tensor((6,), (1,), numel=6)}, storages, byteorder="big")
    np.testing.assert_array_equal(read_checkpoint(big)["a"].read(), numbers)


@pytest.mark.parametrize("container", [archive, stream])
def test_nothing_in_a_checkpoint_runs(tmp_path, container):
    witness = tmp_path / "ran"
    for function, name in (
        (os.system, f"{os.name}.system"),
        (eval, "__builtin__.eval"),
        (getattr, "__builtin__.getattr"),
    ):
        value = {"state_dict": {}, "hook": Hostile(function, f"touch {witness}")}
        with pytest.raises(UserError) as error:
            read_checkpoint(container(tmp_path / "evil.pth", value))
        assert f"{name}, no tensor or container, of which nothing was run" in str(error.value)
        assert "\n" not in str(error.value)
    assert not witness.exists()


@pytest.mark.parametrize("container", [archive, stream])
def test_objects_beside_the_weights_are_names_alone(tmp_path, container):
    witness = tmp_path / "ran"
    evil = Hostile(os.system, f"touch {witness}")
    one = tensor((1,), (1,), numel=1)
    beside = {"a": evil, "b": [evil, (evil,)], "c": {"d": argparse.Namespace(e=evil), 3: Schedule()}, "s": {1, 2}}
    value = {"state_dict": {"a.weight": one}, "call": Call(evil, 1), **beside}
    assert list(read_checkpoint(container(tmp_path / "t.pth", value))) == ["a.weight"]
    for inside in ({"a.weight": one, "b.weight": evil}, {"a.weight": one, "b.weight": [one]}):
        with pytest.raises(UserError, match=r"its state_dict holds (posix.system, no tensor|a list) .*as b\.weight"):
            read_checkpoint(container(tmp_path / "t.pth", {"state_dict": inside}))
    with pytest.raises(UserError, match=r"wild\.Schedule, no tensor or container"):  # a whole model
        read_checkpoint(container(tmp_path / "t.pth", Schedule()))
    assert not witness.exists()


def module(**parts):
    """A pickled torch.nn.Module with parameters, buffers and modules."""
    made = Schedule()
    made.__dict__ = {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}, **parts}
    return made


@pytest.mark.parametrize("container", [archive, stream])
def test_whole_models_are_their_tensors(tmp_path, container):
    one = tensor((1,), (1,), numel=1)
    inner = module(_parameters={"weight": one, "bias": None}, _buffers={"running_mean": one}, _hook=Hostile(eval, "1"))
    model = module(_modules={"b": inner, "a": module(_modules={"c": inner})})
    names = [f"{place}.{part}" for place in ("b", "a.c") for part in ("weight", "running_mean")]
    for value in (model, {"net": model, "acc": 1.0}, {"net": module(_modules={"module": model})}):
        assert list(read_checkpoint(container(tmp_path / "t.pth", value))) == names
    for _ in range(30):  # a billion modules, of few that are shared
        model = module(_modules={"a": model, "b": model})
    with pytest.raises(UserError, match="its model has more parts than any network"):
        read_checkpoint(container(tmp_path / "t.pth", model))


def test_state_dicts_that_cannot_be_chosen_or_named(tmp_path):
    one = tensor((1,), (1,), numel=1)
    with pytest.raises(UserError, match=r"holds several state_dicts \(student, teacher\); save one alone"):
        read_checkpoint(archive(tmp_path / "t.pth", {"student": {"a": one}, "teacher": {"a": one}}))
    for key in (3, None, (1, "a"), b"a", "a\nb", "a" * 300):
        with pytest.raises(UserError, match="its state_dict has a key that is no name of a tensor") as error:
            read_checkpoint(archive(tmp_path / "t.pth", {"state_dict": {"a": one, key: one}}))
        assert "\n" not in str(error.value)


def nested(levels, join=b"\x86"):
    """A pickle of tuples that hold the one before twice, each stored once."""
    return b"\x80\x02)" + b"".join(b"r" + n.to_bytes(4, "little") + b"2" + join for n in range(levels))


# Bytes that ask for more time or memory than they have a right to; none may take long.
GREEDY = {
    "shared tuples as a key": b"\x80\x02}" + nested(10**4)[2:] + b"Ns.",
    "shared tuples": nested(10**4) + b".",
    "shared tuples as a shape": b"\x80\x02ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\nFloatStorage\n"
    b"U\x010U\x03cpuK\x01tQK\x00" + nested(500)[2:] + b")tR.",
    "shared dictionaries": b"\x80\x02}"
    + b"".join(b"r" + n.to_bytes(4, "little") + b"}U\x01ah\x00sU\x01bh\x00s" for n in range(3))
    + b".",
    "a tuple in a tuple": b"\x80\x02})" + b"\x85" * 2 * 10**4 + b"Ns.",
    "a list in a list": b"\x80\x02" + b"]" * 2 * 10**4 + b"a" * (2 * 10**4 - 1) + b".",
    "a far place in the memo": b"\x80\x02}r\x00\x00\x00\x10.",
    "a number of many digits as many keys": b"\x80\x02}\x8b"
    + (10**6).to_bytes(4, "little")
    + b"\x7f" * 10**6
    + b"q\x00Ns"
    + b"h\x00Ns" * 10**4
    + b".",
    "one list for many dictionaries": b"\x80\x02]("
    + b"".join(b"M" + n.to_bytes(2, "little") + b"N\x86" for n in range(10**4))
    + b"eq\x000ccollections\nOrderedDict\nq\x010"
    + b"h\x01h\x00\x85R" * 2000
    + b".",
    "many names of one dictionary": b"\x80\x02}" + b"}" + b"".join(b"K%cNs" % n for n in range(200)) + b".",
}


@pytest.mark.parametrize("trick", GREEDY)
@pytest.mark.parametrize("container", [archive, stream])
def test_small_files_take_little(tmp_path, container, trick):
    path = container(tmp_path / "greedy.pth", GREEDY[trick])
    tracemalloc.start()
    with pytest.raises(UserError, match=r"greedy\.pth cannot be imported: ") as error:
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_keys_that_take_long_to_hash_are_replaced():
    for key in (nested(2), b"\x80\x02\x8a\x09" + bytes(8) + b"\x01"):  # 2**64
        (found,) = load_pickle(b"\x80\x02}" + key[2:] + b"Ns.", {}).value
        assert not isinstance(found, int | tuple)


def test_a_million_instructions_are_enough(tmp_path):
    with pytest.raises(UserError, match="its pickle has more than 1,000,000 instructions"):
        read_checkpoint(archive(tmp_path / "t.pth", b"\x80\x02" + b"]" * (10**6 + 1) + b"."))


# Each pickle tries to change what the allowed names stand for, or to make something of their parts.
TRICKS = {
    "calls a storage": {"a": Call(FLOATS, 3)},
    "rebuilds from nothing": {"a": Call(REBUILD, 1, 0, (1,), (1,))},
    "nested name": pickled({"a": 1})[:-1].replace(b"}", b"ccollections\nOrderedDict.fromkeys\n0}", 1) + b".",
    "sets a name's attribute": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x04callNs\x86b.",
    "sets a storage's attribute": b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQ"
    b"N}U\x05numelK\x63s\x86b.",
    "remembers far ahead": b"\x80\x02}r\xff\xff\xff\x7f.",
    "no end": b"\x80\x02}",
    "a long string that is not there": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x0fx.",
    "itself": b"\x80\x02}q\x00U\x01ah\x00s.",
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("container", [archive, stream])
def test_tricks_end_in_one_line(tmp_path, container, trick):
    with pytest.raises(UserError, match=r"evil\.pth (cannot be imported|holds no state_dict): ") as error:
        read_checkpoint(container(tmp_path / "evil.pth", TRICKS[trick]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "window",
    [
        {"shape": (10**6, 10**6), "strides": (0, 0), "numel": 1},
        {"shape": (3,), "strides": (1,), "numel": 2},
        {"shape": (2,), "strides": (1,), "numel": 2, "offset": 1},
        {"shape": (2,), "strides": (-1,), "numel": 2, "offset": 1},
        {"shape": (2,), "strides": (1,), "numel": 2, "offset": -1},
        {"shape": (2, 2), "strides": (1,), "numel": 4},
        {"shape": (True,), "strides": (1,), "numel": 4},
        {"shape": (1,) * 9, "strides": (1,) * 9, "numel": 4},
        {"shape": (2,), "strides": (1,), "numel": -2},
    ],
)
def test_tensors_stay_within_their_storages(tmp_path, window):
    with pytest.raises(UserError, match=r"it has a (tensor|storage) "):
        read_checkpoint(archive(tmp_path / "t.pth", {"a": tensor(**window)}, {"0": bytes(8)}))


def test_storages_hold_what_they_promise(tmp_path):
    value = {"a": tensor((4,), (1,), numel=4)}
    path = tmp_path / "t.pth"
    with pytest.raises(UserError, match="data/0 has 8 bytes for 4"):
        read_checkpoint(archive(path, value, {"0": bytes(8)}))["a"].read()
    with pytest.raises(UserError, match="data/0 is missing"):
        read_checkpoint(archive(path, value))["a"].read()
    with pytest.raises(UserError, match="data/0 is compressed"):
        read_checkpoint(_with_compressed_storage(path, value))["a"].read()
    count = (4).to_bytes(8, "little")
    for tail in (b"", count, count + bytes(15), (5).to_bytes(8, "little") + bytes(99), count[:3]):
        with pytest.raises(UserError, match="storage 0 is cut short"):
            read_checkpoint(stream(path, value, pickled(["0"]) + tail))
    with pytest.raises(UserError, match="storage '1' belongs to no tensor"):
        read_checkpoint(stream(path, value, pickled(["1"]) + count + bytes(16)))
    two = {"a": tensor((4,), (1,), numel=4), "b": tensor((9,), (1,), numel=9)}
    with pytest.raises(UserError, match="describes the storage 0 in two ways"):
        read_checkpoint(stream(path, two, pickled(["0"]) + count + bytes(16)))


def _with_compressed_storage(path, value):
    archive(path, value)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(16))
    return path


def test_a_flipped_bit_is_noticed(tmp_path):
    data = bytearray((FIXTURES / "resnet18.pth").read_bytes())
    place = data.index(b"data/5") + 400
    data[place] ^= 1
    (tmp_path / "t.pth").write_bytes(data)
    tensors = read_checkpoint(tmp_path / "t.pth")
    with pytest.raises(UserError, match="cut short or damaged"):
        [stored.read() for stored in tensors.values()]


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet50.pth"])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.05, 0.5, 0.99])
def test_truncated_files(tmp_path, name, fraction):
    data = (FIXTURES / name).read_bytes()
    (tmp_path / "t.pth").write_bytes(data[: int(fraction * len(data))])
    with pytest.raises(UserError, match=r"t\.pth cannot be imported: ") as error:
        read_checkpoint(tmp_path / "t.pth")
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="does not exist or is not a file"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(UserError, match=r"neither a file of torch\.save nor a \.safetensors file"):
        read_checkpoint(tmp_path / "text.pth")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as file:
        file.writestr("hello", "world")
    with pytest.raises(UserError, match=r"a zip archive, but not one of torch\.save"):
        read_checkpoint(tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds no state_dict: a dictionary with 'epoch', 'lr'"):
        read_checkpoint(archive(tmp_path / "t.pth", {"epoch": 3, "lr": 0.1}))
    with pytest.raises(UserError, match="holds no state_dict: a list"):
        read_checkpoint(archive(tmp_path / "t.pth", [1]))


def test_wrappers_and_prefixes(tmp_path):
    one = tensor((1,), (1,), numel=1)
    for value in (
        {"state_dict": {"module.a.weight": one}, "epoch": 1},
        {"model": {"a.weight": one}},
        {"module.model.a.weight": one},
        {"state_dict": {"model.a.weight": one}},
        {"net": {"module.a.weight": one}, "acc": one, "epoch": 3},
        {"model_state_dict": {"a.weight": one}, "optimizer_state_dict": {"state": {0: {"exp_avg": one}}}},
        {"model_state": {"a.weight": one}},
        {"state_dict_ema": {"a.weight": one}},
        {"resnet_20": {"a.weight": one}, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.9)},
        {"epoch": 3, "model": {"state_dict": {"a.weight": one}}},
    ):
        assert list(read_checkpoint(archive(tmp_path / "t.pth", value, {"0": bytes(4)}))) == ["a.weight"]
    mixed = {"module.a": one, "b": one}
    assert set(read_checkpoint(archive(tmp_path / "t.pth", mixed, {"0": bytes(4)}))) == {"module.a", "b"}


def test_one_storage_for_many_tensors_is_read_once(tmp_path, monkeypatch):
    numbers = np.arange(100, dtype="<f4")
    value = {str(i): tensor((10,), (1,), numel=100, offset=10 * i) for i in range(10)}
    tensors = read_torch_file(archive(tmp_path / "t.pth", value, {"0": numbers.tobytes()}))
    reads = []
    read = zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *a: reads.append(a) or read(*a))
    np.testing.assert_array_equal(np.concatenate([t.read() for t in tensors.values()]), numbers)
    assert len(reads) == 1


# What fits and what does not.


def changed(tmp_path, **changes):
    """The fixture of resnet20 (option A) with tensors removed (None) or put in."""
    from resnet_tf.pretrained.keras_file import TorchWeights

    weights = TorchWeights(FIXTURES / "akamaster_resnet20.th")
    for name, stored in changes.items():
        name = name.replace("__", ".")
        if stored is None:
            del weights.tensors[name]
        else:
            weights.tensors[name] = stored
    return weights


def ones(*shape):
    return LazyTensor(shape, lambda: np.ones(shape, np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer2__1__bn1__running_var": None}, r"1 missing \(layer2\.1\.bn1\.running_var\)"),
        ({"extra__weight": ones(1)}, r"1 left over \(extra\.weight\)"),
        (
            {"conv1__weight": ones(4, 3, 5, 5)},
            r"1 misshapen \(conv1\.weight is \(4, 3, 5, 5\), the model needs \(4, 3, 3, 3\)\)",
        ),
        ({"linear__weight": ones(9, 16), "linear__bias": ones(9)}, "its classifier has 9 outputs, the model's has 10"),
    ],
)
def test_every_tensor_is_used_and_every_variable_filled(narrow, tmp_path, changes, message):
    model = cifar_resnet(20, version=1)
    before = model.get_weights()
    with pytest.raises(UserError, match=message):
        changed(tmp_path, **changes).load_into(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_new_head_keeps_its_own_values(narrow, tmp_path):
    model = cifar_resnet(20, version=1, classes=3)
    head = [np.array(v) for v in model.get_layer("head_logits").variables]
    changed(tmp_path).load_into(model, new_head=True)
    for old, new in zip(head, model.get_layer("head_logits").variables, strict=True):
        np.testing.assert_array_equal(old, new)
    whole = cifar_resnet(20, version=1, weights=str(FIXTURES / "akamaster_resnet20.th"))
    np.testing.assert_array_equal(model.get_layer("stem_conv").kernel, whole.get_layer("stem_conv").kernel)


def test_without_top_the_classifier_is_left_out(narrow):
    whole = imagenet_resnet(18, weights=str(FIXTURES / "resnet18.pth"), **RAW)
    bare = imagenet_resnet(
        18, weights=str(FIXTURES / "resnet18.pth"), include_top=False, pooling="avg", input_shape=(75, 64, 3)
    )
    kernel, bias = (np.array(v) for v in whole.get_layer("head_logits").variables)
    images = np.load(FIXTURES / "resnet18.npz")["images"]
    np.testing.assert_allclose(np.asarray(bare(images)) @ kernel + bias, whole(images), atol=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: imagenet_resnet(18, weights=path), "weights of a network of 3 stages, and .* has 4"),
        (lambda path: cifar_resnet(20, version=2, weights=path), "head_bn has no counterpart .* version 1"),
        (lambda path: cifar_resnet(32, version=1, weights=path), r"60 missing \(layer1\.3\.conv1\.weight"),
        (lambda path: cifar_resnet(14, version=1, weights=path), r"30 left over \(layer1\.2"),
        (lambda path: cifar_resnet(20, version=1, shortcut="projection", weights=path), "10 missing .*the shortcut"),
        (
            lambda path: cifar_resnet(20, version=1, input_shape=(32, 32, 1), mean=[1], std=[1], weights=path),
            "1 misshapen",
        ),
    ],
)
def test_other_networks_are_refused(narrow, build, message):
    with pytest.raises(UserError, match=message):
        build(str(FIXTURES / "akamaster_resnet20.th"))


def test_an_imagenet_checkpoint_for_a_cifar_network(narrow):
    with pytest.raises(UserError, match=r"torchvision's weights of a network of 4 stages, and .* has 3; name"):
        cifar_resnet(20, version=1, weights=str(FIXTURES / "resnet18.pth"))


def test_filling_takes_any_model_layout(narrow):
    """Convolution kernels (O, I, H, W) become (H, W, I, O), dense ones (O, I) become (I, O)."""
    tensors = read_checkpoint(FIXTURES / "akamaster_resnet20.th")
    model = cifar_resnet(20, version=1)
    load_state_dict(model, tensors, detect_format(tensors))
    kernel = tensors["layer3.0.conv1.weight"].read()
    assert np.asarray(model.get_layer("stage3_block1_conv1").kernel)[0, 2, 5, 7] == kernel[7, 5, 0, 2]
    assert np.asarray(model.get_layer("head_logits").kernel)[5, 7] == tensors["linear.weight"].read()[7, 5]
