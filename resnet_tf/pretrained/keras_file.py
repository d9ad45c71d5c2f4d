"""What `weights=` may name: published weights, a PyTorch checkpoint, or a file of Keras."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Protocol

import h5py
import keras
import numpy as np

from resnet_tf.errors import UserError, some
from resnet_tf.pretrained.download import published_file
from resnet_tf.pretrained.torch_file import Tensors, prefix_errors, read_checkpoint
from resnet_tf.pretrained.torch_mapping import HEADS, CheckpointFormat, detect_format, fill_model, has_projections
from resnet_tf.process import recursion_limit

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
Channels = tuple[float, ...] | None


class Weights(Protocol):
    """Weights that were found, with what the network must be built like to take them.

    `mean` and `std` (0-255 units) normalize the pixels that the weights expect, `shortcut` is that of a CIFAR
    network; each is None where the file does not say.
    """

    mean: Channels
    std: Channels
    shortcut: str | None

    def fill(self, model: keras.Model, new_head: bool = False) -> None:
        """Give a model's variables their values, all of them or all but the head's.

        Raises:
            UserError: the file does not fit; nothing was changed.
        """


def open_weights(weights: str, network: str | None) -> Weights:
    """Find weights and tell what they expect, before a network is built for them.

    Args:
        weights: "imagenet" or the path of a .pth, .pt, .th, .safetensors, .keras or .weights.h5 file.
        network: torchvision's name of the network, for "imagenet"; None where torchvision has no such network.

    Raises:
        UserError: there is no such file, it cannot be read, or it is of an unknown kind.
    """
    if weights == "imagenet":
        return TorchWeights(published_file(network))
    path = Path(weights)
    if path.suffix in TORCH_SUFFIXES:
        return TorchWeights(path)
    if not path.is_file():
        raise UserError(f"weights={weights!r} does not exist; give 'imagenet' or the path of a file")
    if path.suffix == ".keras":
        return KerasModelWeights(path)
    if path.name.endswith(".weights.h5"):
        return KerasWeights(path)
    raise UserError(
        f"weights={weights!r} is of an unknown kind; "
        f"allowed: 'imagenet', {', '.join(TORCH_SUFFIXES)}, .keras, .weights.h5"
    )


class TorchWeights:
    """A PyTorch checkpoint of a known source."""

    tensors: Tensors
    source: CheckpointFormat

    def __init__(self, path: Path) -> None:
        """Read names and shapes; the values stay in the file."""
        self.path = path
        self.tensors = read_checkpoint(path)
        with prefix_errors(path):
            self.source = detect_format(self.tensors)
        self.mean: Channels = self.source.mean
        self.std: Channels = self.source.std
        self.shortcut: str | None = "projection" if has_projections(self.tensors, self.source) else "identity"

    def fill(self, model: keras.Model, new_head: bool = False) -> None:
        """Fill a model, all of it or all but its head."""
        with prefix_errors(self.path):
            fill_model(model, self.tensors, self.source, new_head=new_head)


class KerasModelWeights:
    """A saved Keras model with the layers of the one to fill."""

    shortcut: str | None = None

    def __init__(self, path: Path) -> None:
        """Load the model, and see what it subtracts and divides by."""
        self.path = path
        with prefix_errors(path), recursion_limit(1000):
            self.model = keras.models.load_model(path, compile=False)
        self.mean: Channels = None
        self.std: Channels = None
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Rescaling) and layer.name == "normalization":
                scale, offset = np.ravel(layer.scale), np.ravel(layer.offset)
                self.mean, self.std = tuple((-offset / scale).tolist()), tuple((1 / scale).tolist())

    def fill(self, model: keras.Model, new_head: bool = False) -> None:
        """Fill a model from the layers of the same names; a head that it does not have is left out."""
        theirs = {_path(variable): variable for variable in self.model.variables}
        ours = {_path(variable): variable for variable in model.variables}
        if new_head:
            ours = {path: variable for path, variable in ours.items() if path.partition("/")[0] not in HEADS}
        unlike = [path for path in ours if path not in theirs or theirs[path].shape != ours[path].shape]
        unlike += [path for path in theirs if path not in ours and not path.startswith("head_")]
        if unlike:
            raise UserError(
                f"{self.path} does not fit {model.name}: {len(unlike)} variables are missing or of other shapes "
                f"({some(unlike)}); build the network that it was made from"
            )
        for path, variable in ours.items():
            variable.assign(theirs[path])


def _path(variable: keras.Variable) -> str:
    """Where a variable belongs; the classifier is called alike whether it puts out logits or probabilities."""
    layer, slash, rest = variable.path.partition("/")
    return f"{HEADS[0] if layer in HEADS else layer}{slash}{rest}"


def _shapes(file: h5py.File) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    file.visititems(lambda _, item: shapes.append(item.shape) if isinstance(item, h5py.Dataset) else None)
    return shapes


def _differ_in_head(
    theirs: Counter[tuple[int, ...]], ours: Counter[tuple[int, ...]], heads: list[tuple[int, ...]]
) -> bool:
    """Whether two networks have the same variables but for the number of classes."""
    features = heads[0][0]
    extra = sorted((theirs - (ours - Counter(heads))).elements(), key=len)
    return (
        ours.total() == theirs.total()
        and len(extra) == 2
        and extra[1][:1] == (features,)
        and extra[0] == extra[1][1:]
        and len(extra[1]) == 2
    )


class KerasWeights:
    """A file of model.save_weights(), which says nothing but the values."""

    mean: Channels = None
    std: Channels = None
    shortcut: str | None = None

    def __init__(self, path: Path) -> None:
        """Remember the file."""
        self.path = path

    def fill(self, model: keras.Model, new_head: bool = False) -> None:
        """Fill a model of the same layers, where `new_head` says so with another number of classes."""
        # Keras passes over what it finds no use for, and only warns of what it does not find.
        with prefix_errors(self.path), h5py.File(self.path) as file:
            theirs = Counter(_shapes(file))
        ours = Counter(tuple(variable.shape) for variable in model.variables)
        heads = [variable for variable in model.variables if new_head and variable.path.partition("/")[0] in HEADS]
        if not (theirs == ours or (heads and _differ_in_head(theirs, ours, [tuple(v.shape) for v in heads]))):
            raise UserError(
                f"{self.path} does not fit {model.name}: it has {theirs.total()} variables, the model has "
                f"{len(model.variables)}, or their shapes differ; build the network that it was made from"
            )
        before = [variable.numpy() for variable in heads]
        try:
            with recursion_limit(len(model.layers)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the head that is passed over
                model.load_weights(self.path, skip_mismatch=bool(heads))
        except Exception as error:  # Keras raises whatever its readers raise on a damaged file
            reason = " ".join(str(error).split())
            raise UserError(f"{self.path} does not fit {model.name}: {reason[:300]}") from error
        for variable, value in zip(heads, before, strict=True):
            variable.assign(value)
