"""Which device and precision a run takes."""

import pytest
import tensorflow as tf

from resnet_tf import runtime
from resnet_tf.errors import UserError
from resnet_tf.runtime import Device, choose_device, choose_precision

CAPABILITIES = {"old": (6, 1), "turing": (7, 5), "ampere": (8, 0)}


@pytest.fixture
def gpus(monkeypatch):
    """Three GPUs of three generations."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(CAPABILITIES))
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda gpu, on: None)
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda gpu: {"compute_capability": CAPABILITIES[gpu], "device_name": gpu},
    )


@pytest.mark.parametrize(
    ("device", "about", "precision"),
    [
        ("auto", "old", "float32"),
        ("gpu", "old", "float32"),
        ("gpu:1", "turing", "mixed_float16"),
        ("gpu:2", "ampere", "mixed_bfloat16"),
    ],
)
def test_the_precision_is_that_of_the_chosen_gpu(gpus, device, about, precision):
    chosen = choose_device(device)
    assert chosen.about == about
    assert choose_precision("auto", chosen)[0] == precision


def test_a_gpu_that_is_not_there(gpus):
    with pytest.raises(UserError, match="device='gpu:3': TensorFlow sees 3 GPUs here"):
        choose_device("gpu:3")


def test_what_is_asked_for_is_taken():
    assert choose_precision("mixed_float16", Device("/CPU:0", "")) == ("mixed_float16", "as asked")


@pytest.fixture(autouse=True)
def unmeasured():
    """No test knows what another one measured."""
    runtime.bfloat16_speed.cache_clear()
    yield
    runtime.bfloat16_speed.cache_clear()


def take_seconds(monkeypatch, seconds):
    """Let what is timed take so many seconds, one after the other: float32 and bfloat16 in turn."""
    times = iter([time for taken in seconds for time in (0.0, taken)])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))


@pytest.mark.parametrize(
    ("flags", "speed", "precision", "why"),
    [
        ("fma avx512_bf16", 0.6, "float32", "the processor has avx512_bf16, in which convolutions run at 0.6 times"),
        ("fma avx512_bf16", 1.9, "mixed_bfloat16", "the processor has avx512_bf16, in which convolutions run at 1.9"),
        ("amx_tile amx_bf16 avx512_bf16", 5.0, "mixed_bfloat16", "the processor has amx_bf16"),
        ("fma avx2", 1.0, "float32", "the processor has no bfloat16"),
    ],
)
def test_a_processor_takes_bfloat16_where_that_is_faster(monkeypatch, flags, speed, precision, why):
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, **options: f"model name\t: one\nflags\t\t: {flags}\n")
    take_seconds(monkeypatch, [speed, 1.0] * 12)
    chosen, reason = choose_precision("auto", Device("/CPU:0", ""))
    assert chosen == precision
    assert reason.startswith(why)


def test_the_speed_of_bfloat16_is_that_of_its_steps(monkeypatch):
    """Steps that take 3 s in float32 and 2 s in bfloat16, but for some that something else holds up."""
    take_seconds(monkeypatch, [9.0, 9.0] * 2 + [3.0, 5.0, 4.0, 2.0] * 5)
    assert runtime.bfloat16_speed() == 1.5


@pytest.mark.parametrize(
    ("flags", "variable", "lacking"),
    [
        ("fma avx2", None, True),
        ("fma avx2", "0", False),
        ("fma avx2 avx_vnni", None, False),
        ("fma avx512_vnni", None, False),
        ("", None, False),
    ],
)
def test_a_processor_on_which_tensorflow_leaves_onednn_off(monkeypatch, flags, variable, lacking):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if variable is not None:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", variable)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, **options: f"flags\t\t: {flags}\n")
    assert runtime.lacks_onednn() == lacking
