"""Which PyTorch tensor belongs to which variable of a network."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resnet_tf.errors import UserError, some
from resnet_tf.pretrained.torch_file import LazyTensor

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class CheckpointFormat:
    """A family of published checkpoints.

    `first_stage` is our number of the stage that they call layer1; `shortcut` and `head` are their names of the
    projection and the classifier; `mean` and `std` are in 0-255 units; `dataset` is what the usual classes belong to;
    `resize` is the shorter side, and `crop` the square cut out of it, that they were tested with.
    """

    name: str
    first_stage: int
    shortcut: str
    head: str
    dataset: str
    mean: Rgb
    std: Rgb
    resize: int
    crop: int


def _pixels(red: float, green: float, blue: float) -> Rgb:
    """0-255 units from the 0-1 units in which the sources state their constants."""
    return (255 * red, 255 * green, 255 * blue)


_IMAGENET_MEAN = _pixels(0.485, 0.456, 0.406)
_IMAGENET_STD = _pixels(0.229, 0.224, 0.225)

# timm's resnet*.tv_in1k carry torchvision's weights under torchvision's names.
TORCHVISION = CheckpointFormat(
    "torchvision", 2, "downsample", "fc", "imagenet", _IMAGENET_MEAN, _IMAGENET_STD, 256, 224
)
# akamaster/pytorch_resnet_cifar10 normalizes CIFAR-10 with ImageNet's constants (trainer.py).
AKAMASTER = CheckpointFormat("akamaster", 1, "shortcut", "linear", "cifar10", _IMAGENET_MEAN, _IMAGENET_STD, 32, 32)
# chenyaofo/pytorch-cifar-models; its standard deviations are means over single images, and its networks expect them.
CHENYAOFO_10 = CheckpointFormat(
    "chenyaofo",
    1,
    "downsample",
    "fc",
    "cifar10",
    _pixels(0.4914, 0.4822, 0.4465),
    _pixels(0.2023, 0.1994, 0.2010),
    32,
    32,
)
CHENYAOFO_100 = CheckpointFormat(
    "chenyaofo",
    1,
    "downsample",
    "fc",
    "cifar100",
    _pixels(0.5070, 0.4865, 0.4409),
    _pixels(0.2673, 0.2564, 0.2761),
    32,
    32,
)


def detect_format(tensors: Mapping[str, LazyTensor]) -> CheckpointFormat:
    """Tell from the tensors' names whose network it is.

    Raises:
        UserError: it is none that is known.
    """
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        if any(name.startswith("layer4.") for name in tensors):
            return TORCHVISION
        if "linear.weight" in tensors:
            return AKAMASTER
        if "fc.weight" in tensors:
            return CHENYAOFO_100 if tensors["fc.weight"].shape[:1] == (100,) else CHENYAOFO_10
    raise UserError(
        f"its tensors ({', '.join(list(tensors)[:3])}, …) are not named as in a network of torchvision, timm, "
        "akamaster or chenyaofo; those are what can be imported"
    )


def has_projections(tensors: Mapping[str, LazyTensor], format: CheckpointFormat) -> bool:
    """Whether the network's shortcuts have weights (option B)."""
    return any(f".{format.shortcut}." in name for name in tensors)


HEADS = ("head_logits", "head_predictions")

_SUFFIXES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Axes of PyTorch's tensor in our order: (out, in, height, width) to (height, width, in, out), (out, in) to (in, out).
_LAYOUTS = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


def fill_model(
    model: keras.Model, tensors: Mapping[str, LazyTensor], format: CheckpointFormat, *, new_head: bool = False
) -> None:
    """Give every variable of a model its value from a checkpoint; check everything before anything is changed.

    Args:
        model: a network of this package, version 1, with or without its head.
        tensors: the checkpoint's tensors by name.
        source: how they are named.
        new_head: leave the model's head as it is, and the checkpoint's unused.

    Raises:
        UserError: a tensor is missing, left over or of another shape. The message goes on from a file's name.
    """
    _check_family(model, format)
    head_stays = new_head or not any(layer.name in HEADS for layer in model.layers)
    variables = _variables_by_torch_name(model, format)
    wanted = {name: variable for name, variable in variables.items() if not (head_stays and _in_head(name, format))}
    present = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(".num_batches_tracked") and not (head_stays and _in_head(name, format))
    }
    _check_fit(wanted, present, format)
    for name, variable in wanted.items():
        variable.assign(np.transpose(present[name].read(), _LAYOUTS[len(variable.shape)]))


def _check_family(model: keras.Model, format: CheckpointFormat) -> None:
    stages = {int(found[1]) for layer in model.layers if (found := re.match(r"stage(\d+)_", layer.name))}
    if min(stages, default=0) != format.first_stage:
        theirs, ours = ("CIFAR", "an ImageNet") if format.first_stage == 1 else ("ImageNet", "a CIFAR")
        raise UserError(
            f"it holds {format.name}'s weights of {theirs} networks, and {model.name} is {ours} network; "
            f"name the network that it was made for"
        )


def _in_head(name: str, format: CheckpointFormat) -> bool:
    return name.startswith(f"{format.head}.")


def _variables_by_torch_name(model: keras.Model, format: CheckpointFormat) -> dict[str, Any]:
    return {
        f"{_torch_layer(layer.name, format)}.{_SUFFIXES.get(variable.name, variable.name)}": variable
        for layer in model.layers
        for variable in layer.variables
    }


def _torch_layer(name: str, format: CheckpointFormat) -> str:
    """The source's name of a layer of ours."""
    if name in HEADS:
        return format.head
    stem = re.fullmatch(r"stem_(conv|bn)", name)
    if stem:
        return f"{stem[1]}1"
    unit = re.fullmatch(r"stage(\d+)_block(\d+)_(?:(conv\d|bn\d)|shortcut_(conv|bn))", name)
    if unit is None:
        raise UserError(
            f"the layer {name} has no counterpart among {format.name}'s, whose networks are of version 1; build that"
        )
    place = f"layer{int(unit[1]) - format.first_stage + 1}.{int(unit[2]) - 1}"
    return f"{place}.{unit[3] or format.shortcut + ('.0' if unit[4] == 'conv' else '.1')}"


def _check_fit(wanted: Mapping[str, Any], present: Mapping[str, LazyTensor], format: CheckpointFormat) -> None:
    missing = [name for name in wanted if name not in present]
    left_over = [name for name in present if name not in wanted]
    misshapen = {
        name: (present[name].shape, _torch_shape(variable))
        for name, variable in wanted.items()
        if name in present and present[name].shape != _torch_shape(variable)
    }
    if not missing and not left_over and misshapen and all(_in_head(name, format) for name in misshapen):
        theirs, ours = misshapen.get(f"{format.head}.weight", ((0,), (0,)))
        raise UserError(
            f"its classifier has {theirs[0]} outputs, the model's has {ours[0]}; build the model with "
            f"{theirs[0]} classes, or with a new head (import-weights: --classes {theirs[0]} or --new-head {ours[0]})"
        )
    shapes = [f"{name} is {theirs}, the model needs {ours}" for name, (theirs, ours) in misshapen.items()]
    faults = [("missing", missing), ("left over", left_over), ("misshapen", shapes)]
    if any(names for _, names in faults):
        raise UserError(
            "it does not fit the model: "
            + "; ".join(f"{len(names)} {what} ({some(names)})" for what, names in faults if names)
            + "; name the model, and the shortcut, that it was made for"
        )


def _torch_shape(variable: Any) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    return tuple(shape[axis] for axis in np.argsort(_LAYOUTS[len(shape)]))
