"""What a PyTorch checkpoint is of, as far as its tensors tell: source, depth, shortcuts, and how its images were made.

Batch normalization stores what it saw: its means fit one way of wiring the network and of normalizing the images.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_tf.pretrained.torch_file import Tensors
from resnet_tf.pretrained.zoo import PREPROCESSING, Constants, pixels

# The standard deviations are means over single images, and networks trained with them expect them.
_SINGLE_IMAGES = (PREPROCESSING["cifar10"][0], pixels(0.2023, 0.1994, 0.2010))
_CIFAR100 = (pixels(0.5070, 0.4865, 0.4409), pixels(0.2673, 0.2564, 0.2761))
# Means of the training images, 0-255 units, and the part of a picture that is black behind a random crop of 4 pixels.
_IMAGE_MEANS = {"cifar10": (125.307, 122.950, 113.865), "cifar100": (129.304, 124.070, 112.434)}
_BLACK = 1 - (1 - 20 / 9 / 32) ** 2
UNKNOWN = "an unknown source"


@dataclass(frozen=True)
class CheckpointFormat:
    """Whose names a checkpoint's tensors have, and how images are made for that source's networks."""

    name: str
    dataset: str
    constants: Constants
    resize: int = 32  # shorter side that images were resized to for testing, before they were cropped to a square
    crop: int = 32
    by_order: bool = False


def detect_format(tensors: Tensors) -> CheckpointFormat:
    """Tell the source from the names of the tensors, the size of the first kernel and the number of classes."""
    outputs = next((t.shape[0] for t in reversed(tensors.values()) if len(t.shape) == 2), 0)
    common = "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors
    if next((t.shape[-1] for t in tensors.values() if len(t.shape) == 4), 0) == 7:
        # timm's resnet*.tv_in1k carry torchvision's weights under torchvision's names.
        name = "torchvision" if common else UNKNOWN
        return CheckpointFormat(name, "imagenet", PREPROCESSING["imagenet"], 256, 224, by_order=not common)
    dataset, usual = ("cifar100", _CIFAR100) if outputs == 100 else ("cifar10", _SINGLE_IMAGES)
    if not common:
        constants = _CIFAR100 if outputs == 100 else PREPROCESSING["cifar10"]
        return CheckpointFormat(UNKNOWN, dataset, constants, by_order=True)
    if any(name.startswith("layer4.") for name in tensors):
        return CheckpointFormat("kuangliu", dataset, usual)
    if "linear.weight" in tensors:
        # akamaster/pytorch_resnet_cifar10 normalizes CIFAR-10 with ImageNet's constants (trainer.py).
        return CheckpointFormat("akamaster", dataset, PREPROCESSING["imagenet"])
    return CheckpointFormat("chenyaofo", dataset, usual)


@dataclass(frozen=True)
class Structure:
    """What a checkpoint's kernels tell of its network: the layers with weights on its main path, and its shortcuts."""

    depth: int
    bottleneck: bool
    shortcut: str


def structure_of(tensors: Tensors) -> Structure:
    """The structure of a residual network; plain ones and those of option A have the same kernels."""
    kernels = [tensor.shape for tensor in tensors.values() if len(tensor.shape) == 4]
    pointwise = sum(shape[2:] == (1, 1) for shape in kernels)
    spatial = len(kernels) - pointwise - 1  # but for the stem
    bottleneck = pointwise >= 2 * spatial > 0
    units = spatial if bottleneck else spatial // 2
    projections = pointwise - 2 * units if bottleneck else pointwise
    shortcut = "projection_all" if projections == units else "projection"
    return Structure(2 + units * (3 if bottleneck else 2), bottleneck, shortcut if projections else "identity")


def constants_by_statistics(tensors: Tensors, dataset: str) -> Constants | None:
    """Mean and standard deviation of pixels that give the first layer's means on CIFAR; None where none clearly do."""
    kernels, norms = _kernels(tensors, 1), _norms(tensors, 1)
    if not kernels or not norms or dataset not in _IMAGE_MEANS or kernels[0][0].shape[1:] != (3, 3, 3):
        return None
    (kernel, bias), norm = kernels[0], norms[0]
    seen = np.array([31 / 32, 1, 31 / 32])  # how often a tap of the kernel lies inside the image
    response = (kernel * np.outer(seen, seen)).sum((2, 3))
    found: dict[Constants, float] = {}
    for constants in (*PREPROCESSING.values(), _SINGLE_IMAGES, _CIFAR100):
        mean, std = np.array(constants)
        inputs = [(part * np.array(_IMAGE_MEANS[dataset]) - mean) / std for part in (1, 1 - _BLACK)]
        found[constants] = min(_misfit(response @ image + bias, norm) for image in inputs)
    best, second = sorted(found, key=found.__getitem__)[:2]
    return best if found[best] < 0.002 and found[second] > 2.5 * found[best] else None


def shortcut_by_statistics(tensors: Tensors) -> str | None:
    """ "none", or where the zero channels of option A are: what fits the batch norms; None where nothing clearly does.

    Behind a batch norm, a channel has the mean beta and the standard deviation gamma. So the mean of each unit's output
    follows from the shortcut's, and from it the mean that the next unit's first batch norm must have stored.
    """
    structure = structure_of(tensors)
    if structure.bottleneck or structure.shortcut != "identity":
        return None
    kernels, norms = _kernels(tensors), _norms(tensors)
    if [len(kernel) for kernel, _ in kernels] != [len(norm["bias"]) for norm in norms]:
        return None
    misfits = {}
    for kind in ("none", "center", "end"):
        mean, variance = _relu(norms[0]["bias"], norms[0]["weight"] ** 2)
        sums = []
        for (kernel, bias), norm, last in zip(kernels[1::2], norms[1::2], norms[2::2], strict=False):
            missing = len(last["bias"]) - len(mean)
            if missing < 0 or kernel.shape[1] != len(mean):
                return None
            sums.append(_misfit(kernel.sum((2, 3)) @ mean + bias, norm))
            before = missing // 2 if kind == "center" else 0
            around = [(kind != "none") * np.pad(part, (before, missing - before)) for part in (mean, variance)]
            mean, variance = _relu(last["bias"] + around[0], last["weight"] ** 2 + around[1])
        misfits[kind] = float(np.mean(sums))
    if not all(map(math.isfinite, misfits.values())):
        return None
    best, second, _ = sorted(misfits, key=misfits.__getitem__)
    return best if misfits[best] < 0.1 and misfits[second] > 3 * misfits[best] else None


def _kernels(tensors: Tensors, count: int | None = None) -> list[tuple[np.ndarray, Any]]:
    """The kernels of the first convolutions, in the order of the file, with their biases or 0."""
    names = [name for name, tensor in tensors.items() if len(tensor.shape) == 4][:count]
    biases = [tensors.get(name.removesuffix("weight") + "bias") for name in names]
    return [(tensors[name].read(), bias.read() if bias else 0) for name, bias in zip(names, biases, strict=True)]


def _norms(tensors: Tensors, count: int | None = None) -> list[dict[str, np.ndarray]]:
    """The values of the first batch norms that have all four parts, in the order of the file."""
    parts = ("weight", "bias", "running_mean", "running_var")
    names = [name.removesuffix("running_mean") for name in tensors if name.endswith(".running_mean")]
    whole = [name for name in names if all(name + part in tensors for part in parts)]
    return [{part: tensors[name + part].read() for part in parts} for name in whole[:count]]


def _misfit(expected: np.ndarray, norm: dict[str, np.ndarray]) -> float:
    """Squared distance of expected means from the stored ones, in variances."""
    if expected.shape != norm["running_mean"].shape:
        return math.inf
    return float(np.mean((expected - norm["running_mean"]) ** 2 / (norm["running_var"] + 1e-5)))


def _relu(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance behind a ReLU of normally distributed numbers."""
    std = np.sqrt(variance) + 1e-9
    density = np.exp(-((mean / std) ** 2) / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-ratio / math.sqrt(2)) for ratio in mean / std])
    first = mean * below + std * density
    return first, np.maximum((mean**2 + variance) * below + mean * std * density - first**2, 0)
