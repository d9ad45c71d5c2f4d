"""Which PyTorch tensor belongs to which variable of a network."""

import re
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from resnet_tf.errors import UserError, some
from resnet_tf.pretrained.torch_file import LazyTensor, Tensors

Rgb = tuple[float, float, float]


def _pixels(red: float, green: float, blue: float) -> Rgb:
    return (255 * red, 255 * green, 255 * blue)


IMAGENET_MEAN = _pixels(0.485, 0.456, 0.406)
IMAGENET_STD = _pixels(0.229, 0.224, 0.225)


@dataclass(frozen=True)
class CheckpointFormat:
    """A family of published checkpoints."""

    name: str
    dataset: str
    first_stage: int = 1  # our number of the stage that they call layer1
    shortcut: str = "downsample"  # their names of the projection and the classifier
    head: str = "fc"
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    resize: int = 32  # shorter side that images were resized to for testing, before they were cropped to a square
    crop: int = 32


# timm's resnet*.tv_in1k carry torchvision's weights under torchvision's names.
TORCHVISION = CheckpointFormat("torchvision", "imagenet", first_stage=2, resize=256, crop=224)
# akamaster/pytorch_resnet_cifar10 normalizes CIFAR-10 with ImageNet's constants (trainer.py).
AKAMASTER = CheckpointFormat("akamaster", "cifar10", shortcut="shortcut", head="linear")
# chenyaofo/pytorch-cifar-models; its standard deviations are means over single images, and its networks expect them.
CHENYAOFO_10 = CheckpointFormat(
    "chenyaofo", "cifar10", mean=_pixels(0.4914, 0.4822, 0.4465), std=_pixels(0.2023, 0.1994, 0.2010)
)
CHENYAOFO_100 = CheckpointFormat(
    "chenyaofo", "cifar100", mean=_pixels(0.5070, 0.4865, 0.4409), std=_pixels(0.2673, 0.2564, 0.2761)
)


def detect_format(tensors: Tensors) -> CheckpointFormat:
    """Tell from the tensors' names whose network it is; UserError for an unknown one."""
    if "conv1.weight" in tensors and "layer1.0.conv1.weight" in tensors:
        if any(name.startswith("layer4.") for name in tensors):
            return TORCHVISION
        if "linear.weight" in tensors:
            return AKAMASTER
        if "fc.weight" in tensors:
            return CHENYAOFO_100 if tensors["fc.weight"].shape[:1] == (100,) else CHENYAOFO_10
    found = ", ".join(list(tensors)[:3])
    raise UserError(f"its tensors ({found}, …) are not named as those of torchvision, timm, akamaster or chenyaofo")


def has_projections(tensors: Tensors, format: CheckpointFormat) -> bool:
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


def load_state_dict(model: keras.Model, tensors: Tensors, format: CheckpointFormat, *, new_head: bool = False) -> None:
    """Assign a checkpoint's tensors to a version 1 network, its head excepted with `new_head`, if all of them fit."""
    stages = {int(found[1]) for layer in model.layers if (found := re.match(r"stage(\d+)_", layer.name))}
    if min(stages, default=0) != format.first_stage:
        theirs, ours = ("CIFAR", "an ImageNet") if format.first_stage == 1 else ("ImageNet", "a CIFAR")
        raise UserError(
            f"it holds {format.name}'s weights of {theirs} networks, and {model.name} is {ours} network; "
            "name the network that it was made for"
        )
    variables = variables_by_torch_name(model, format)
    present = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    if new_head or not any(layer.name in HEADS for layer in model.layers):
        variables, present = _without_head(variables, format), _without_head(present, format)
    _check_fit(variables, present, format)
    for name, variable in variables.items():
        variable.assign(np.transpose(present[name].read(), _LAYOUTS[len(variable.shape)]))


def _without_head(items: dict[str, Any], format: CheckpointFormat) -> dict[str, Any]:
    return {name: item for name, item in items.items() if not name.startswith(f"{format.head}.")}


def variables_by_torch_name(model: keras.Model, format: CheckpointFormat) -> dict[str, keras.Variable]:
    return {
        f"{_torch_layer(layer.name, format)}.{_SUFFIXES.get(variable.name, variable.name)}": variable
        for layer in model.layers
        for variable in layer.variables
    }


def _torch_layer(name: str, format: CheckpointFormat) -> str:
    if name in HEADS:
        return format.head
    if stem := re.fullmatch(r"stem_(conv|bn)", name):
        return f"{stem[1]}1"
    unit = re.fullmatch(r"stage(\d+)_block(\d+)_(?:(conv\d|bn\d)|shortcut_(conv|bn))", name)
    if unit is None:
        raise UserError(f"the layer {name} has no counterpart among {format.name}'s; build a network of version 1")
    block = f"layer{int(unit[1]) - format.first_stage + 1}.{int(unit[2]) - 1}"
    return f"{block}.{unit[3] or format.shortcut + ('.0' if unit[4] == 'conv' else '.1')}"


def torch_shape(variable: keras.Variable) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    return tuple(shape[axis] for axis in np.argsort(_LAYOUTS[len(shape)]))


def _check_fit(variables: dict[str, keras.Variable], present: dict[str, LazyTensor], format: CheckpointFormat) -> None:
    missing = [name for name in variables if name not in present]
    left_over = [name for name in present if name not in variables]
    misshapen = {
        name: (present[name].shape, torch_shape(variable))
        for name, variable in variables.items()
        if name in present and present[name].shape != torch_shape(variable)
    }
    if not missing and not left_over and misshapen and not _without_head(misshapen, format):
        theirs, ours = misshapen.get(f"{format.head}.weight", ((0,), (0,)))
        raise UserError(
            f"its classifier has {theirs[0]} outputs, the model's has {ours[0]}; build the model with "
            f"{theirs[0]} classes, or with a new head (import-weights: --classes {theirs[0]} or --new-head {ours[0]})"
        )
    shapes = [f"{name} is {theirs}, the model needs {ours}" for name, (theirs, ours) in misshapen.items()]
    faults = [("missing", missing), ("left over", left_over), ("misshapen", shapes)]
    if any(names for _, names in faults):
        found = "; ".join(f"{len(names)} {what} ({some(names)})" for what, names in faults if names)
        raise UserError(f"it does not fit the model: {found}; give the model and the shortcut that it was made for")
