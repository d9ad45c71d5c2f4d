"""Networks and batches that the benchmarks share."""

import numpy as np

SIDES = {"resnet50": 224}
BATCHES = {"resnet50": 16}


def data(model: str, batch: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A constant batch: uint8 images (N, H, W, 3) and int32 labels (N,)."""
    batch, side = batch or BATCHES.get(model, 128), SIDES.get(model, 32)
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, side, side, 3), np.uint8), np.arange(batch, dtype=np.int32) % 10


def build(model: str):
    """Our network of this name, with ten classes; pre-activation networks with projections, as the tutorials' are."""
    from resnet_tf import build_model

    shortcut = {"shortcut": "projection"} if model.endswith("_v2") else {}
    return build_model(model, classes=10, mean=(125, 123, 114), std=(63, 62, 67), **shortcut)


def torch_inputs(model: str, how: str, batch: int | None = None):
    """The PyTorch twin and its float32 batch (N, 3, H, W), in the memory format that `how` names."""
    import torch

    from benchmarks.torch_twins import twin

    images, labels = data(model, batch)
    network = twin(model)
    x = torch.from_numpy((images.astype(np.float32) - 120) / 64).permute(0, 3, 1, 2).contiguous()
    if how != "float32":
        network, x = network.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    return network, x, torch.from_numpy(labels).long()
