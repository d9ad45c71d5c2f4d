import keras
import pytest
from keras import layers

from resnet_tf.cli import summary as command
from resnet_tf.errors import UserError
from resnet_tf.models.registry import build_model
from resnet_tf.summary import boxes_of, describe_summary, summarize

pytestmark = pytest.mark.pictures

# Parameters: arXiv:1512.03385 table 6 (0.27 M, 1.7 M) as counted by akamaster and torchvision; multiply-adds by hand
# for the CIFAR networks, 4.09 G and 3.86 G for ResNet-50 with the stride on the 3x3 and on the first 1x1.
TOTALS = {
    ("resnet20_v1", ()): (269_722, 40.55e6),
    ("resnet20_v1", ("--shortcut", "projection")): (272_474, 40.81e6),
    ("resnet110_v1", ()): (1_727_962, 252.89e6),
    ("resnet50", ()): (25_557_032, 4.089e9),
    ("resnet50", ("--stride-on", "1x1")): (25_557_032, 3.858e9),
    ("resnext50_32x4d", ()): (25_028_904, 4.230e9),
}


@pytest.mark.parametrize(("name", "flags"), TOTALS)
def test_totals_are_the_published_ones(name, flags, capsys):
    totals = command.main([name, *flags])
    parameters, adds = TOTALS[name, flags]
    assert totals["parameters"] == parameters
    assert totals["multiply_adds"] == pytest.approx(adds, rel=2e-4)
    assert f"{parameters:,}" in capsys.readouterr().out


def test_stages_of_resnet20():
    stages = summarize(build_model("resnet20_v1"))
    assert [stage.name for stage in stages] == ["input", "stem", "stage1", "stage2", "stage3", "head"]
    assert [stage.output_shape for stage in stages[1:5]] == [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert [stage.layers for stage in stages] == [0, 1, 6, 6, 6, 1]
    # 2304 weights a 3x3 convolution on 16 channels, 1024 places, 6 of them.
    assert stages[2].multiply_adds == 6 * 2304 * 1024
    assert sum(stage.statistics for stage in stages) == 1376


def test_every_kind_of_layer_by_hand():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, strides=2, padding="same", groups=2, name="stem_conv")(inputs)  # 16 * 9 * 2 * 6
    x = layers.DepthwiseConv2D(3, padding="same", name="stage1_depthwise")(x)  # 16 * 9 * 6
    x = layers.SeparableConv2D(5, 3, padding="same", name="stage1_separable")(x)  # 16 * (9 * 6 + 6 * 5)
    x = layers.Conv2DTranspose(2, 2, strides=2, name="stage2_up")(x)  # 16 * 4 * 5 * 2
    x = layers.Dense(3, name="stage3_each")(x)  # 64 * 2 * 3
    x = layers.Dense(7, name="head_logits")(layers.Flatten()(x))  # 192 * 7
    stages = {stage.name: stage.multiply_adds for stage in summarize(keras.Model(inputs, x))}
    assert stages == {"input": 0, "stem": 1728, "stage1": 864 + 1344, "stage2": 640, "stage3": 384, "head": 1344}


def test_models_within_models_and_names_that_say_nothing():
    inner = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(2, 1, use_bias=False)])
    inputs = keras.Input((4, 4, 1))
    (stage,) = summarize(keras.Model(inputs, layers.Flatten()(inner(inputs))))
    assert (stage.name, stage.parameters, stage.multiply_adds) == ("network", 2, 32)


def test_keras_own_resnet50():
    inputs = keras.applications.ResNet50(weights=None)
    stages = {stage.name: stage for stage in summarize(inputs)}
    assert list(stages) == ["input", "conv1", "conv2", "conv3", "conv4", "conv5", "head"]
    assert sum(stage.multiply_adds for stage in stages.values()) == pytest.approx(3.858e9, rel=2e-4)


def test_an_unknown_size_asks_for_one():
    with pytest.raises(UserError, match="give input_size="):
        summarize(build_model("resnet8_v2", input_shape=(None, None, 3)))
    assert command.main(["resnet8_v2", "--input-size", "64"])["parameters"] > 0


def test_the_table_lines_up():
    lines = describe_summary(summarize(build_model("resnet8_v2"))).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert "0.08 M trainable parameters" in lines[-1]


def test_a_run_folder(finished_run, capsys):
    assert command.main([str(finished_run[0])])["parameters"] == finished_run[2]["parameters"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "neither a file nor a network"),
        (["resnet20_v1", "--stride-on", "1x1"], "stride_on"),
        (["resnet20_v1", "--plot", "a.bmp"], r"\.png, \.pdf, \.svg"),
        (["resnet20_v1", "--input-size", "0"], "allowed: 1 to"),
    ],
)
def test_what_is_refused(argv, message):
    with pytest.raises(UserError, match=message):
        command.main(argv)


def test_boxes_of_resnet20():
    boxes = boxes_of(build_model("resnet20_v1", shortcut="projection"))
    assert [box.count for box in boxes] == [1, 1, 3, 1, 2, 1, 2, 1]
    assert boxes[2].title == "stage1_block1 … block3"
    assert (boxes[2].lines, boxes[2].shortcut) == (("3×3, 16", "3×3, 16"), "identity")
    assert (boxes[3].lines[0], boxes[3].shortcut) == ("3×3, 32, /2", "projection\n1×1, 32, /2")
    assert boxes[-1].lines == ("global average pool", "dense, 10")


def test_boxes_of_other_networks():
    assert [box.shortcut for box in boxes_of(build_model("plain20"))] == [None] * 8
    option_a = boxes_of(build_model("resnet20_v2"))
    assert option_a[3].shortcut == "identity\n(subsampled, padded)"
    foreign = boxes_of(keras.applications.ResNet50(weights=None))
    assert [box.count for box in foreign] == [1, 1, 1, 2, 1, 3, 1, 5, 1, 2, 1]
    assert foreign[1].lines == ("7×7, 64, /2", "max pool 3×3, /2")
    # Its pools around the last units of stages have no stage in their names.
    titles = [box.title for box in boxes_of(keras.applications.ResNet50V2(weights=None))]
    assert titles[-3:] == ["conv5_block1", "conv5_block2 … block3", "head"]
    nameless = boxes_of(keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Conv2D(5, 3)]))
    assert [box.lines for box in nameless if box.lines] == [("3×3, 4",), ("3×3, 5",)]


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_plot(tmp_path, ending, start):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    path = tmp_path / f"net.{ending}"
    command.main(["resnet8_v2", "--plot", str(path)])
    assert path.read_bytes().startswith(start)
