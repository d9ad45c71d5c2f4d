import numpy as np
import pytest

import resnet_tf
from resnet_tf.models.registry import build_model, list_models, model_options

DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202, 164, 1001)


def test_the_names():
    expected = {f"resnet{depth}_v{version}" for depth in DEPTHS for version in (1, 2)}
    expected |= {f"plain{depth}" for depth in (20, 32, 44, 56, 110)}
    expected |= {f"resnet{depth}{suffix}" for depth in (18, 34, 50, 101, 152) for suffix in ("", "_v2")}
    expected |= {"resnet200_v2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"}
    expected |= {"wide_resnet50_2", "wide_resnet101_2"}
    expected |= {f"resnet{depth}_cifar" for depth in (18, 34, 50, 101, 152)}
    assert expected <= set(list_models())
    assert len(set(list_models())) == len(list_models())


def test_names_stand_for_the_papers_networks():
    assert model_options("resnet110_v2") == {"depth": 110, "version": 2}
    assert model_options("resnet164_v1") == {"depth": 164, "version": 1, "block": "bottleneck"}
    assert model_options("resnext50_32x4d") == {"depth": 50, "version": 1, "groups": 32, "width_per_group": 4}
    assert model_options("plain56") == {"depth": 56, "version": 1, "shortcut": "none"}


def test_options_are_the_callers_own():
    model_options("resnet20_v1")["depth"] = 8
    assert model_options("resnet20_v1")["depth"] == 20


def test_building_by_name():
    model = build_model("resnet20_v1")
    assert model.name == "resnet20_v1"
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 269_722
    assert build_model("resnet8_v2", classes=3).output_shape == (None, 3)
    plain = build_model("plain20")
    assert plain.name == "plain20"
    assert not any("add" in layer.name for layer in plain.layers)


def test_options_replace_the_names_own():
    model = build_model("resnet8_v1", version=2, shortcut="projection")
    assert any(layer.name == "head_bn" for layer in model.layers)
    assert any(layer.name.endswith("shortcut_conv") for layer in model.layers)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet20", r"did you mean resnet20_v1 or resnet20_v2 or resnet200_v2\?$"),
        ("ResNet-50", r"did you mean resnet50 or "),
        ("wideresnet50_2", r"did you mean wide_resnet50_2"),
        ("vgg", r"allowed: .*resnet8_v1.*plain110"),
    ],
)
def test_an_unknown_name(name, hint):
    with pytest.raises(ValueError, match=f"model='{name}' is not known; {hint}"):
        build_model(name)


def test_listing_imports_no_framework(python):
    result = python(
        "import sys, resnet_tf; print('plain110' in resnet_tf.list_models());"
        "assert not {'keras', 'tensorflow', 'cv2'} & sys.modules.keys()"
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "True", "")


def test_public_names_resolve():
    assert resnet_tf.build_model is build_model
    for name in resnet_tf.__all__:
        assert getattr(resnet_tf, name) is not None
        assert name in dir(resnet_tf)
    with pytest.raises(AttributeError, match="no attribute 'resnet'"):
        _ = resnet_tf.resnet
