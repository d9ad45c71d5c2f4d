"""Which PyTorch tensor belongs to which variable of a network: by names that many repositories share, or by order."""

import functools
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from resnet_tf.errors import UserError, counted, some
from resnet_tf.pretrained.torch_file import LazyTensor, Tensors
from resnet_tf.pretrained.torch_format import CheckpointFormat, structure_of

HEADS = ("head_logits", "head_predictions")
# What PyTorch and the profiler thop count along, and no network computes with.
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")

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
_KINDS = {
    "convolution": keras.layers.Conv2D,
    "batch norm": keras.layers.BatchNormalization,
    "linear": keras.layers.Dense,
}


def rename(tensors: Tensors, renames: Sequence[tuple[str, str]]) -> Tensors:
    """Give tensors, or all whose names begin with a module's, other names; UserError where there are none."""
    for old, new in renames:
        found = [name for name in tensors if name == old or name.startswith(f"{old}.")]
        changed = {name: new + name.removeprefix(old) if name in found else name for name in tensors}
        if not found or len(set(changed.values())) < len(tensors):
            fault = "gives two tensors one name" if found else f"there is none; there are {some(list(tensors))}"
            raise UserError(f"tensor or module {old!r} cannot be renamed to {new!r}: {fault}")
        tensors = {changed[name]: tensor for name, tensor in tensors.items()}
    return tensors


def load_state_dict(model: keras.Model, tensors: Tensors, format: CheckpointFormat, *, new_head: bool = False) -> None:
    """Assign a checkpoint's tensors to a network, its head excepted with `new_head`, if all of them fit."""
    for variable, tensor in match(model, tensors, format, new_head=new_head):
        variable.assign(np.transpose(tensor.read(), _LAYOUTS[len(variable.shape)]))


def match(
    model: keras.Model, tensors: Tensors, format: CheckpointFormat, *, new_head: bool = False
) -> list[tuple[keras.Variable, LazyTensor]]:
    """The tensor of each variable; UserError unless all of both are used and fit."""
    present = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in _COUNTERS}
    modules = _modules(present)
    heads = modules["linear"][-1:]
    ours = [layer for layer in model.layers if layer.variables]
    if new_head or not any(layer.name in HEADS for layer in ours):
        ours = [layer for layer in ours if layer.name not in HEADS]
        present = {name: tensor for name, tensor in present.items() if name.rpartition(".")[0] not in heads}
        modules["linear"] = []
    if format.by_order:
        modules_of = _by_order(model, ours, modules, present)
    else:
        modules_of = _by_name(model, ours, present, format, (heads or ["fc"])[0])
    _fold_biases(model, modules_of, present)
    variables = {
        f"{modules_of[layer.name]}.{_SUFFIXES.get(variable.name, variable.name)}": variable
        for layer in ours
        for variable in layer.variables
    }
    _check_fit(model, variables, present, tensors, heads)
    return [(variable, present[name]) for name, variable in variables.items()]


def _modules(tensors: Tensors) -> dict[str, list[str]]:
    """The names of the modules of each kind, in the order of the file."""
    modules: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "running_mean":
            modules["batch norm"].append(module)
        elif part == "weight" and len(tensor.shape) in (2, 4):
            modules["convolution" if len(tensor.shape) == 4 else "linear"].append(module)
    return modules


def _by_name(
    model: keras.Model, ours: list[Any], present: Tensors, format: CheckpointFormat, head: str
) -> dict[str, str]:
    """The module of each of our layers, by the names that torchvision gave and everybody took over."""
    stages = sorted({int(found[1]) for layer in ours if (found := re.match(r"stage(\d+)_", layer.name))})
    theirs = {name.partition(".")[0] for name in present if name.startswith("layer")}
    if len(theirs) != len(stages):
        raise UserError(
            f"it holds {format.name}'s weights of a network of {len(theirs)} stages, and {model.name} has "
            f"{len(stages)}; name the network that it was made for"
        )
    shortcut = "shortcut" if any(".shortcut." in name for name in present) else "downsample"

    def module_of(name: str) -> str:
        if name in HEADS:
            return head
        if stem := re.fullmatch(r"stem_(conv|bn)", name):
            return f"{stem[1]}1"
        unit = re.fullmatch(r"stage(\d+)_block(\d+)_(?:(conv\d|bn\d)|shortcut_(conv|bn))", name)
        if unit is None:
            raise UserError(f"the layer {name} has no counterpart among {format.name}'s; build a network of version 1")
        block = f"layer{stages.index(int(unit[1])) + 1}.{int(unit[2]) - 1}"
        return f"{block}.{unit[3] or shortcut + ('.0' if unit[4] == 'conv' else '.1')}"

    return {layer.name: module_of(layer.name) for layer in ours}


def _by_order(model: keras.Model, ours: list[Any], modules: dict[str, list[str]], present: Tensors) -> dict[str, str]:
    """The module of each of our layers: the n-th convolution is the n-th, and so the batch norms."""
    for shortcut_last in (True, False):  # where it stands in the file's units
        order = sorted((layer.name for layer in ours), key=functools.partial(_position, shortcut_last=shortcut_last))
        layers = {kind: [n for n in order if isinstance(model.get_layer(n), _KINDS[kind])] for kind in _KINDS}
        counts = [
            f"{counted(len(modules[kind]), f'{kind} layer')}, not {len(names)}"
            for kind, names in layers.items()
            if len(names) != len(modules[kind])
        ]
        if counts or sum(map(len, layers.values())) != len(ours):
            raise UserError(
                f"it does not fit {model.name}: {_depths(model, present)}its names are unknown and there are "
                f"{', '.join(counts) or 'layers of other kinds'}; give the model and the shortcut that it was made for"
            )
        pairs = {kind: dict(zip(names, modules[kind], strict=True)) for kind, names in layers.items()}
        if all(
            present[f"{module}.weight"].shape == torch_shape(model.get_layer(name).kernel)
            for name, module in pairs["convolution"].items()
        ):
            break
    return pairs["convolution"] | pairs["batch norm"] | pairs["linear"]


def _position(name: str, shortcut_last: bool) -> tuple[int, ...]:
    """Where a layer stands in a network whose units put their shortcut last or first."""
    unit = re.fullmatch(r"stage(\d+)_block(\d+)_(?:(shortcut)_)?(?:conv|bn)(\d*)", name)
    if unit is None:
        return (0 if name.startswith("stem") else 10**6,)
    return int(unit[1]), int(unit[2]), (10 if shortcut_last else -1) if unit[3] else int(unit[4])


def _fold_biases(model: keras.Model, modules_of: dict[str, str], present: Tensors) -> None:
    """A convolution's bias before a batch normalization is the same as a mean that is lower by it."""
    if "stem_bn" not in modules_of:  # version 2 adds the shortcut in between
        return
    for name, module in modules_of.items():
        bias, mean = f"{module}.bias", f"{modules_of.get(name.replace('conv', 'bn'))}.running_mean"
        if "conv" not in name or model.get_layer(name).use_bias or not {bias, mean} <= present.keys():
            continue
        if present[bias].shape == present[mean].shape:
            present[mean] = _difference(present[mean], present.pop(bias))


def _difference(first: LazyTensor, second: LazyTensor) -> LazyTensor:
    return LazyTensor(first.shape, lambda: first.read() - second.read())


def torch_shape(variable: keras.Variable) -> tuple[int, ...]:
    shape = tuple(variable.shape)
    return tuple(shape[axis] for axis in np.argsort(_LAYOUTS[len(shape)]))


def _depths(model: keras.Model, tensors: Tensors) -> str:
    """Where a checkpoint is of another depth than a model: how deep they are."""
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    ours = 1 + sum("shortcut" not in layer.name for layer in convolutions)
    theirs = structure_of(tensors).depth
    return "" if ours == theirs else f"it is of a network of {theirs} layers, not {ours}; "


def _check_fit(
    model: keras.Model, variables: dict[str, keras.Variable], present: Tensors, tensors: Tensors, heads: list[str]
) -> None:
    missing = [name for name in variables if name not in present]
    left_over = [name for name in present if name not in variables]
    misshapen = {
        name: (present[name].shape, torch_shape(variable))
        for name, variable in variables.items()
        if name in present and present[name].shape != torch_shape(variable)
    }
    if not missing and not left_over and misshapen and {name.rpartition(".")[0] for name in misshapen} == set(heads):
        theirs, ours = misshapen.get(f"{heads[0]}.weight", ((0,), (0,)))
        raise UserError(
            f"its classifier has {theirs[0]} outputs, the model's has {ours[0]}; build the model with "
            f"{theirs[0]} classes, or with a new head (import-weights: --classes {theirs[0]} or --new-head {ours[0]})"
        )
    shapes = [f"{name} is {theirs}, the model needs {ours}" for name, (theirs, ours) in misshapen.items()]
    faults = [("missing", missing), ("left over", left_over), ("misshapen", shapes)]
    if any(names for _, names in faults):
        found = "; ".join(f"{len(names)} {what} ({some(names)})" for what, names in faults if names)
        raise UserError(
            f"it does not fit {model.name}: {_depths(model, tensors)}{found}; give the model and the shortcut that it "
            "was made for"
        )
