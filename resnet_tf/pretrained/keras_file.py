"""Open what `weights=` names: published weights, a PyTorch checkpoint, or a Keras file."""

import abc
import contextlib
import io
import json
import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from resnet_tf.errors import UserError, counted, short, some
from resnet_tf.models.layers import by_path, renumbered
from resnet_tf.pretrained.torch_file import prefix_errors, read_checkpoint
from resnet_tf.pretrained.torch_format import (
    constants_by_statistics,
    detect_format,
    shortcut_by_statistics,
    structure_of,
)
from resnet_tf.pretrained.torch_mapping import HEADS, load_state_dict, match, rename
from resnet_tf.pretrained.zoo import published_file
from resnet_tf.process import recursion_limit

Channels = tuple[float, ...] | None

# A file that takes more memory than so many times its size and this much was made to do so.
_GROWTH, _SLACK = 4, 64 * 2**20
# What decides how many numbers a layer holds, in its configuration.
_SIZES = ("units", "filters", "input_dim", "output_dim", "depth_multiplier", "num_heads", "key_dim", "value_dim")


def read_keras_file(path: Path) -> keras.Model:
    """Load a .keras or .h5 file, running no code in it and taking no memory that its size does not account for.

    Whatever its readers raise on a damaged file comes through; ValueError where it would take too much memory.
    """
    limit = _GROWTH * path.stat().st_size + _SLACK
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limit:
                raise ValueError("it inflates to many times its size")
            for name in archive.namelist():
                if name.endswith(".h5"):
                    with h5py.File(io.BytesIO(archive.read(name))) as file:
                        _check_datasets(file, limit)
            config = archive.read("config.json")
    else:
        with h5py.File(path) as file:
            _check_datasets(file, limit)
            config = file.attrs["model_config"]
    if 4 * _numbers(json.loads(config)) > limit:
        raise ValueError("its layers are larger than the file")
    with recursion_limit(1000):
        return keras.models.load_model(path, compile=False)


def _check_datasets(file: h5py.File, limit: int) -> int:
    """Refuse data that inflates or lies in other files; returns the number of datasets."""
    datasets: list[h5py.Dataset] = []
    file.visititems(lambda _, item: datasets.append(item) if isinstance(item, h5py.Dataset) else None)
    if any(dataset.external or dataset.is_virtual for dataset in datasets):
        raise ValueError("its data lies in other files")
    if sum(dataset.nbytes for dataset in datasets) > limit:
        raise ValueError("its data inflates to many times its size")
    return len(datasets)


def _numbers(config: Any) -> int:
    """How many numbers the layers of a model hold, from its configuration: the largest of their tensors each."""
    layers: list[tuple[dict[str, Any], Any]] = []
    level = [config]
    while level:
        parts = [part for part in level if isinstance(part, dict | list)]
        layers += [(p["config"], p) for p in parts if isinstance(p, dict) and isinstance(p.get("config"), dict)]
        level = [item for part in parts for item in (part.values() if isinstance(part, dict) else part)]
    widest = max((_whole(settings.get(key)) for settings, _ in layers for key in _SIZES), default=1)
    total = 0
    for settings, layer in layers:
        sizes = [_whole(settings.get(key)) for key in _SIZES]
        if max(sizes) > 1:
            kernel = settings.get("kernel_size")
            kernels = [_whole(side) for side in (kernel if isinstance(kernel, list) else [kernel])]
            shape = (layer.get("build_config") or {}).get("input_shape") or [widest]
            convolution, dense = kernel is not None, layer.get("class_name") == "Dense"
            inputs = _whole(shape[-1]) if convolution or dense else max(widest, _whole(shape[-1]))
            total += math.prod(sizes) * math.prod(kernels) * inputs // _whole(settings.get("groups"))
    return total


def _whole(value: Any) -> int:
    return value if type(value) is int and value > 1 else 1


class Weights(abc.ABC):
    """Weights, and what a network must be built like to take them; None where the file does not say."""

    mean: Channels = None
    std: Channels = None
    shortcut: str | None = None
    identity_padding: str | None = None
    classes: int | None = None

    def needs_new_head(self, model: keras.Model) -> bool:
        """Whether a model's classifier is for other classes than theirs, and so stays new; a warning says so once."""
        head = next((layer for layer in model.layers if layer.name in HEADS), None)
        if head is None or self.classes in (None, head.units):
            return False
        warnings.warn(
            f"the classifier of {model.name} is new: it has {head.units} classes, the weights have {self.classes}; "
            "all other layers have the weights",
            stacklevel=4,
        )
        return True

    def constants(self, mean: Any, std: Any) -> tuple[Any, Any]:
        """Mean and standard deviation to build a network with: those asked for, or those of the weights."""
        return (self.mean, self.std) if mean is None and std is None else (mean, std)

    @abc.abstractmethod
    def load_into(self, model: keras.Model, new_head: bool = False) -> None:
        """Assign all of a model's variables, or all but the head's; UserError, and no change, if they do not fit."""


def open_weights(weights: str, network: str | None) -> Weights:
    """Find "imagenet" (for torchvision's name of the network) or a file, and tell what such weights expect."""
    if weights == "imagenet":
        return TorchWeights(published_file(network), is_published=True)
    path = Path(weights)
    if not path.is_file():
        raise UserError(f"weights={weights!r} does not exist; give 'imagenet' or a file's path", argument="weights")
    if path.suffix == ".keras" or _holds_model(path):
        return KerasModelWeights(path)
    if path.name.endswith(".weights.h5"):
        return KerasWeights(path)
    return TorchWeights(path)


def _refuse_other_formats(path: Path) -> None:
    """Raise a UserError for a file that is another framework's, by its name or by what it begins with."""
    if path.suffix == ".onnx":
        raise UserError("it is an ONNX model; give the PyTorch checkpoint or the Keras model that it was made from")
    if path.suffix == ".keras" or _holds_model(path):
        raise UserError("it is a Keras model, which needs no import: evaluate, predict, export and train take it")
    if h5py.is_hdf5(path):
        raise UserError("it is a Keras file of weights alone; load it into the model that it was made from")


def _holds_model(path: Path) -> bool:
    """Whether a file is an HDF5 file of a whole Keras model."""
    if not h5py.is_hdf5(path):
        return False
    with prefix_errors(path), h5py.File(path) as file:
        return "model_config" in file.attrs


class TorchWeights(Weights):
    """A PyTorch checkpoint.

    Attributes:
        structure: what its kernels tell of the network.
        wiring: what its batch norms tell of the shortcuts ("none", "center", "end"); None where they do not.
        guess: what `mean` and `std` are assumed by, in words; None of published weights.
    """

    def __init__(self, path: Path, renames: Sequence[tuple[str, str]] = (), is_published: bool = False) -> None:
        self.path = path
        if path.is_file():
            with prefix_errors(path):
                _refuse_other_formats(path)
        tensors = read_checkpoint(path)
        with prefix_errors(path):
            self.tensors = rename(tensors, renames)
            self.format = detect_format(self.tensors)
            self.structure = structure_of(self.tensors)
            self.wiring = shortcut_by_statistics(self.tensors)
            constants = None if is_published else constants_by_statistics(self.tensors, self.format.dataset)
        self.mean, self.std = constants or self.format.constants
        by = f"its tensors' names, which are {self.format.name}'s"
        if constants or self.format.by_order:
            by = "the first layer's statistics" if constants else "nothing but the kind of network"
        self.guess = None if is_published else f"a guess by {by}, for images of {self.format.dataset}"
        self.shortcut = "none" if self.wiring == "none" else self.structure.shortcut
        self.identity_padding = None if self.wiring == "none" else self.wiring
        self.classes = next((t.shape[0] for t in reversed(self.tensors.values()) if len(t.shape) == 2), None)

    def constants(self, mean: Any, std: Any) -> tuple[Any, Any]:
        """As of any weights; warns where they are a guess."""
        if mean is None and std is None and self.guess:
            warnings.warn(
                f"{self.path}: mean {self.mean} and std {self.std} are {self.guess}; where evaluate() on its data set "
                "does not give its author's accuracy, give mean= and std= (0-255 units)",
                stacklevel=3,
            )
        return super().constants(mean, std)

    def fits(self, model: keras.Model) -> bool:
        """Whether every tensor has its variable in a model, and every variable its tensor."""
        with contextlib.suppress(UserError):
            match(model, self.tensors, self.format)
            return True
        return False

    def load_into(self, model: keras.Model, new_head: bool = False) -> None:
        with prefix_errors(self.path):
            load_state_dict(model, self.tensors, self.format, new_head=new_head)


class KerasModelWeights(Weights):
    """A saved Keras model; variables are matched by path, and a head that a model does not have is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with prefix_errors(path):
            self.model = read_keras_file(path)
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Rescaling) and layer.name == "normalization":
                scale, offset = np.ravel(layer.scale), np.ravel(layer.offset)
                self.mean, self.std = tuple((-offset / scale).tolist()), tuple((1 / scale).tolist())
            if layer.name in HEADS:
                self.classes = layer.units
        self.identity_padding = _identity_padding(self.model)

    def load_into(self, model: keras.Model, new_head: bool = False) -> None:
        ours = by_path([v for v in model.variables if not (new_head and _in_head(v))], _path_of)
        theirs = renumbered(by_path(self.model.variables, _path_of), list(ours))
        unlike = [path for path in ours if path not in theirs or theirs[path].shape != ours[path].shape]
        unlike += [path for path in theirs if path not in ours and not path.startswith("head_")]
        if self.identity_padding and _identity_padding(model) not in (None, self.identity_padding):
            unlike.append(f"its identity_padding is {self.identity_padding!r}")
        if unlike:
            raise UserError(
                f"{self.path} does not fit {model.name} in {counted(len(unlike), 'variable')} ({some(unlike)}); "
                "build the network that it was made from"
            )
        for path, variable in ours.items():
            variable.assign(theirs[path])


def _identity_padding(model: keras.Model) -> str | None:
    """Where the shortcuts of option A have their zero channels; None where there is no such shortcut."""
    pads = [layer.padding[1][0] for layer in model.layers if layer.name.endswith("_shortcut_pad")]
    return None if not pads else "center" if any(pads) else "end"


def _path_of(variable: keras.Variable) -> str:
    """Where a variable belongs; the classifier is called alike whether it puts out logits or probabilities."""
    return f"{HEADS[0]}/{variable.path.partition('/')[2]}" if _in_head(variable) else variable.path


def _in_head(variable: keras.Variable) -> bool:
    return variable.path.partition("/")[0] in HEADS


class KerasWeights(Weights):
    """A file of model.save_weights(), which holds nothing but the values, in the order of the layers."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load_into(self, model: keras.Model, new_head: bool = False) -> None:
        heads = [layer for layer in model.layers if new_head and layer.name in HEADS]
        with prefix_errors(self.path), h5py.File(self.path) as file:
            stored = _check_datasets(file, _GROWTH * self.path.stat().st_size + _SLACK)
        before = model.get_weights()
        try:
            # Keras does not notice what the file has more than the model.
            if stored != len(model.variables):
                raise ValueError(f"it has {counted(stored, 'variable')}, the model has {len(model.variables)}")
            with recursion_limit(len(model.layers)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the head that is passed over
                model.load_weights(self.path, objects_to_skip=heads)
        except Exception as error:  # Keras raises whatever its readers raise on a damaged file
            model.set_weights(before)
            raise UserError(
                f"{self.path} does not fit {model.name}: {short(error, 300)}; build the network that it was made from"
            ) from error
