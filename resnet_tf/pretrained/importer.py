"""Keras models from PyTorch checkpoints, with what had to be assumed, and the weights that a run starts from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras

from resnet_tf.config import TrainConfig
from resnet_tf.data.dataset import KINDS
from resnet_tf.errors import UserError
from resnet_tf.files import sha256_of
from resnet_tf.models.registry import CIFAR_NETWORKS, build_model, list_models, model_options, own_shortcut
from resnet_tf.pretrained.keras_file import TorchWeights, open_weights
from resnet_tf.pretrained.zoo import PREPROCESSING, Constants, find_shipped, imagenet_classes, published_file
from resnet_tf.saving import model_path

_WIRINGS = {
    "none": "no shortcuts",
    "center": "shortcuts with zero channels half before and half after",
    "end": "shortcuts with all zero channels after",
}


class ImportedModel(NamedTuple):
    """A model with a checkpoint's weights, the network's name, the JSON to save beside it, and what was assumed."""

    model: keras.Model
    network: str
    sidecar: dict[str, Any]
    notes: tuple[str, ...]


def import_checkpoint(
    path: Path,
    network: str | None = None,
    *,
    constants: Constants | None = None,
    classes: int | None = None,
    new_head: int | None = None,
    shortcut: str | None = None,
    identity_padding: str | None = None,
    renames: Sequence[tuple[str, str]] = (),
) -> ImportedModel:
    """Build a network with the weights of a PyTorch checkpoint.

    Args:
        path: file of torch.save, whatever its name, or .safetensors.
        network: its name; None takes the first that every tensor fits.
        constants: mean and standard deviation of the images, 0-255 units; None guesses them.
        classes: outputs of the checkpoint's classifier, None the network's usual ones.
        new_head: leave the checkpoint's classifier out and start one of so many outputs.
        shortcut, identity_padding: of a CIFAR network; None takes what the tensors show.
        renames: names of tensors or modules, and what torchvision would call them.

    Raises:
        UserError: the file cannot be read, or its tensors do not fit.
    """
    weights = TorchWeights(path, renames)
    if constants is not None:
        (weights.mean, weights.std), weights.guess = constants, None
    options = {"classes": new_head or classes, "shortcut": shortcut, "identity_padding": identity_padding}
    if network is None:
        network = _recognize(weights)
        if network is None:
            raise UserError(
                f"{path} fits no network here; name that of its {weights.structure.depth} layers (import-weights: "
                "--model), and what torchvision would call its tensors (--rename)"
            )
        options["classes"] = options["classes"] or weights.classes
    model, builder = _build(network, weights, options)
    try:
        weights.load_into(model, new_head is not None)
    except UserError as error:
        fitting = _recognize(weights)
        raise UserError(f"{error}; it fits {fitting}" if fitting not in (None, network) else str(error)) from error
    sidecar = _sidecar(weights, network, model, builder, new_head is not None)
    return ImportedModel(model, network, sidecar, tuple(_notes(weights, network, builder)))


def _build(network: str, weights: TorchWeights, asked: dict[str, Any]) -> tuple[keras.Model, dict[str, Any]]:
    """A network with the shortcuts that the weights show, where neither a flag nor its name says which; its options."""
    shown = {"shortcut": weights.shortcut, "identity_padding": weights.identity_padding}
    options = {key: value for key, value in asked.items() if value is not None}
    if network in CIFAR_NETWORKS and "shortcut" not in model_options(network):
        options = {key: value for key, value in shown.items() if value is not None} | options
    try:
        return build_model(network, mean=weights.mean, std=weights.std, **options), options
    except ValueError as error:
        raise UserError(str(error)) from error


def _recognize(weights: TorchWeights) -> str | None:
    """The first network that every tensor of a checkpoint fits; plain ones only where its batch norms say so."""
    for network in list_models():
        known = model_options(network)
        expected = (weights.structure.depth, 1, weights.wiring == "none")
        if (known["depth"], known["version"], known.get("shortcut") == "none") == expected and weights.fits(
            _build(network, weights, {"classes": weights.classes})[0]
        ):
            return network
    return None


def _notes(weights: TorchWeights, network: str, builder: dict[str, Any]) -> Iterator[str]:
    """What the file does not say, and what is assumed instead."""
    if weights.format.by_order:
        yield "the names of its tensors are not known here: they were matched by order, kind and shape"
    if weights.structure.shortcut == "identity":
        built = builder.get("shortcut") or own_shortcut(network)
        built = builder.get("identity_padding", "center") if built == "identity" else built
        if weights.wiring is None:
            yield (
                f"its tensors do not show how its units are connected: built with {_WIRINGS[built]}; there are also "
                "plain networks (--model plain20) and --identity-padding end"
            )
        elif weights.wiring != built:
            yield f"warning: built with {_WIRINGS[built]}, and its batch norms are those of {_WIRINGS[weights.wiring]}"
        else:
            yield f"built with {_WIRINGS[built]}, which is what its batch norms fit"
    if weights.guess:
        yield (
            f"mean and std are {weights.guess}: check them with resnet-tf evaluate on that data set, and where the "
            "accuracy is not its author's, give --mean and --std (three numbers each, 0-255 units) or --preprocessing "
            f"{'|'.join(PREPROCESSING)}"
        )


def _sidecar(
    weights: TorchWeights, network: str, model: keras.Model, builder: dict[str, Any], new_head: bool
) -> dict[str, Any]:
    source = weights.format
    names = None if new_head else class_names(source.dataset, model.output_shape[-1])
    return {
        **({} if names is None else {"class_names": names, "dataset": source.dataset}),
        "preprocessing": {
            "input": "RGB pixels 0-255, uint8 or float",
            "shape": list(model.input_shape[1:]),
            "resize": source.resize,
            "crop": source.crop,
            "mean": list(weights.mean or ()),
            "std": list(weights.std or ()),
            "normalization": "first layer of the model",
            **({"assumed": weights.guess} if weights.guess else {}),
        },
        "model": network,
        "builder": builder,
        "weights": {"file": weights.path.name, "source": source.name},
    }


def class_names(dataset: str, outputs: int) -> list[str] | None:
    """The names of a data set's classes, or None where the outputs are not as many."""
    names = [known.name for known in imagenet_classes()] if dataset == "imagenet" else KINDS[dataset].class_names
    return list(names) if len(names) == outputs else None


class InitialWeights:
    """Weights that a run starts from: "imagenet", a file, or the folder of a run; `digest` is their file's SHA-256."""

    def __init__(self, weights: str, network: str) -> None:
        path = Path(weights)
        if weights == "imagenet":
            path = published_file(network)
        elif path.is_dir() or find_shipped(weights) is not None:
            path = model_path(path)
        self._weights = open_weights(weights if weights == "imagenet" else str(path), network)
        self.digest = sha256_of(path)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the pixels that the weights expect, None where the file does not say."""
        mean, std = self._weights.constants(None, None)
        return None if mean is None or std is None else (mean, std)

    def builder(self, config: TrainConfig) -> dict[str, Any]:
        """The builder's options, with the weights' shortcut and its padding where nobody asked for one."""
        builder, weights = config.builder, self._weights
        if config.model in CIFAR_NETWORKS and config.shortcut is None and "shortcut" not in model_options(config.model):
            builder["shortcut"] = weights.shortcut
        padding = config.identity_padding or weights.identity_padding
        return builder | ({"identity_padding": padding} if padding else {})

    def load_into(self, model: keras.Model) -> None:
        """Give all layers but the classifier their weights; UserError where they are another network's."""
        self._weights.load_into(model, new_head=True)
