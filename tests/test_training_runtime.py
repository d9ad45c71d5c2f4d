"""Which device and precision a run takes."""

import pytest
import tensorflow as tf

from resnet_tf.errors import UserError
from resnet_tf.training.runtime import Device, choose_device, choose_precision

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
