"""Open what `weights=` names: published weights, a PyTorch checkpoint, or a Keras file."""

import warnings
from pathlib import Path

import h5py
import keras
import numpy as np

from resnet_tf.errors import UserError, some
from resnet_tf.pretrained.torch_file import prefix_errors, read_checkpoint
from resnet_tf.pretrained.torch_mapping import HEADS, detect_format, has_projections, load_state_dict
from resnet_tf.pretrained.zoo import published_file
from resnet_tf.process import recursion_limit

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".safetensors")
Channels = tuple[float, ...] | None


class Weights:
    """Weights, and what a network must be built like to take them; None where the file does not say."""

    mean: Channels = None
    std: Channels = None
    shortcut: str | None = None
    identity_padding: str | None = None

    def load_into(self, model: keras.Model, new_head: bool = False) -> None:
        """Assign all of a model's variables, or all but the head's; UserError, and no change, if they do not fit."""
        raise NotImplementedError


def open_weights(weights: str, network: str | None) -> Weights:
    """Find "imagenet" (for torchvision's name of the network) or a file, and tell what such weights expect."""
    if weights == "imagenet":
        return TorchWeights(published_file(network))
    path = Path(weights)
    if path.suffix in TORCH_SUFFIXES:
        return TorchWeights(path)
    if not path.is_file():
        raise UserError(f"weights={weights!r} does not exist; give 'imagenet' or a file's path", argument="weights")
    if path.suffix == ".keras":
        return KerasModelWeights(path)
    if path.name.endswith(".weights.h5"):
        return KerasWeights(path)
    raise UserError(
        f"weights={weights!r} is not known; allowed: 'imagenet', {', '.join(TORCH_SUFFIXES)}, .keras, .weights.h5",
        argument="weights",
    )


class TorchWeights(Weights):
    """A PyTorch checkpoint of a known format; its values stay in the file until they are loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_checkpoint(path)
        with prefix_errors(path):
            self.format = detect_format(self.tensors)
        self.mean, self.std = self.format.mean, self.format.std
        self.shortcut = "projection" if has_projections(self.tensors, self.format) else "identity"

    def load_into(self, model: keras.Model, new_head: bool = False) -> None:
        with prefix_errors(self.path):
            load_state_dict(model, self.tensors, self.format, new_head=new_head)


class KerasModelWeights(Weights):
    """A saved Keras model; variables are matched by path, and a head that a model does not have is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with prefix_errors(path), recursion_limit(1000):
            self.model = keras.models.load_model(path, compile=False)
        for layer in self.model.layers:
            if isinstance(layer, keras.layers.Rescaling) and layer.name == "normalization":
                scale, offset = np.ravel(layer.scale), np.ravel(layer.offset)
                self.mean, self.std = tuple((-offset / scale).tolist()), tuple((1 / scale).tolist())
        self.identity_padding = _identity_padding(self.model)

    def load_into(self, model: keras.Model, new_head: bool = False) -> None:
        theirs = {_path_of(variable): variable for variable in self.model.variables}
        ours = {_path_of(v): v for v in model.variables if not (new_head and _in_head(v))}
        unlike = [path for path in ours if path not in theirs or theirs[path].shape != ours[path].shape]
        unlike += [path for path in theirs if path not in ours and not path.startswith("head_")]
        if self.identity_padding and _identity_padding(model) not in (None, self.identity_padding):
            unlike.append(f"its identity_padding is {self.identity_padding!r}")
        if unlike:
            raise UserError(
                f"{self.path} does not fit {model.name}: {len(unlike)} variables differ ({some(unlike)}); "
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
        kinds: list[type] = []
        with prefix_errors(self.path), h5py.File(self.path) as file:
            file.visititems(lambda _, item: kinds.append(type(item)))
        stored = kinds.count(h5py.Dataset)
        before = model.get_weights()
        try:
            # Keras does not notice what the file has more than the model.
            if stored != len(model.variables):
                raise ValueError(f"it has {stored} variables, the model has {len(model.variables)}")
            with recursion_limit(len(model.layers)), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the head that is passed over
                model.load_weights(self.path, objects_to_skip=heads)
        except Exception as error:  # Keras raises whatever its readers raise on a damaged file
            model.set_weights(before)
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self.path} does not fit {model.name}: {reason}; build the network that it was made from"
            ) from error
