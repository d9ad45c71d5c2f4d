"""Networks by name. The names are data, so that listing them imports neither Keras nor TensorFlow."""

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resnet_tf.pretrained.zoo import checked_options, find_entry, is_entry_name

if TYPE_CHECKING:
    import keras

    from resnet_tf.pretrained.keras_file import Weights

BASIC_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)
BOTTLENECK_DEPTHS = (164, 1001)
PLAIN_DEPTHS = (20, 32, 44, 56, 110)
IMAGENET_DEPTHS = {1: (18, 34, 50, 101, 152), 2: (18, 34, 50, 101, 152, 200)}

# Groups and width of a group, doubled from stage to stage: 1611.05431 table 3; 1605.07146 section 3.4.
_WIDENED: dict[str, tuple[int, int, int]] = {
    "resnext50_32x4d": (50, 32, 4),
    "resnext101_32x8d": (101, 32, 8),
    "resnext101_64x4d": (101, 64, 4),
    "wide_resnet50_2": (50, 1, 128),
    "wide_resnet101_2": (101, 1, 128),
}


def _cifar_networks() -> dict[str, dict[str, Any]]:
    networks: dict[str, dict[str, Any]] = {}
    for version in (1, 2):
        for depth in BASIC_DEPTHS:
            networks[f"resnet{depth}_v{version}"] = {"depth": depth, "version": version}
        for depth in BOTTLENECK_DEPTHS:
            networks[f"resnet{depth}_v{version}"] = {"depth": depth, "version": version, "block": "bottleneck"}
    for depth in PLAIN_DEPTHS:
        networks[f"plain{depth}"] = {"depth": depth, "version": 1, "shortcut": "none"}
    return networks


def _imagenet_networks() -> dict[str, dict[str, Any]]:
    networks: dict[str, dict[str, Any]] = {}
    for version, suffix in ((1, ""), (2, "_v2")):
        for depth in IMAGENET_DEPTHS[version]:
            networks[f"resnet{depth}{suffix}"] = {"depth": depth, "version": version}
    for name, (depth, groups, width) in _WIDENED.items():
        networks[name] = {"depth": depth, "version": 1, "groups": groups, "width_per_group": width}
    return networks


CIFAR_NETWORKS = _cifar_networks()
IMAGENET_NETWORKS = _imagenet_networks()


def list_models() -> list[str]:
    """Names that `build_model` knows: CIFAR networks, then ImageNet networks."""
    return [*CIFAR_NETWORKS, *IMAGENET_NETWORKS]


def model_options(name: str) -> dict[str, Any]:
    """The builder's arguments that a name stands for.

    Raises:
        ValueError: no network has this name; the message names those that do.
    """
    networks = CIFAR_NETWORKS | IMAGENET_NETWORKS
    if name not in networks:
        raise ValueError(f"model={name!r} is not known; allowed: {', '.join(list_models())}")
    return dict(networks[name])


def own_shortcut(name: str) -> str:
    """The shortcut that a network has where none is asked for.

    Raises:
        ValueError: no network has this name.
    """
    options = model_options(name)
    if name in IMAGENET_NETWORKS:
        return "projection"
    return str(options.get("shortcut") or default_shortcut(options.get("block", "basic")))


def default_shortcut(block: str) -> str:
    """The papers' choice for CIFAR networks of a kind of block."""
    return "identity" if block == "basic" else "projection"


def build_model(name: str, **options: Any) -> "keras.Model":
    """Build a network by its name.

    Args:
        name: one of `list_models()`.
        **options: arguments of the builder (`cifar_resnet` or `imagenet_resnet`) that replace the name's own. Beside
            what the builder takes, `weights` may be the name of weights that come with the package (see
            `list_weights`); they bring the options that they were trained with.

    Returns:
        A plain functional `keras.Model`.

    Raises:
        ValueError: no network has this name, or the builder refuses an option.
        UserError: the weights asked for are not there, cannot be read, or are those of other options.
    """
    if is_entry_name(options.get("weights")):
        entry = find_entry(name, options["weights"])
        options = checked_options(entry, model_options(name), options)
    arguments = {"name": name, **model_options(name), **options}
    builder = _builder(name)
    allowed = inspect.signature(builder).parameters
    unknown = [option for option in arguments if option not in allowed]
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    model: keras.Model = builder(**arguments)
    return model


def _builder(name: str) -> Callable[..., Any]:
    if name in CIFAR_NETWORKS:
        return importlib.import_module("resnet_tf.models.cifar").cifar_resnet
    return importlib.import_module("resnet_tf.models.imagenet").imagenet_resnet


def published_network(depth: int, version: int, groups: int, width_per_group: int, stride_on: str) -> str | None:
    """torchvision's name of an ImageNet network, or None where torchvision has none like it."""
    wanted = {"depth": depth, "version": version, "groups": groups, "width_per_group": width_per_group}
    for name, options in IMAGENET_NETWORKS.items():
        if version == 1 and stride_on == "3x3" and {"groups": 1, "width_per_group": 64, **options} == wanted:
            return name
    return None


def open_weights(weights: str, network: str | None) -> "Weights":
    """Find what a builder's `weights=` names: the one place where models reach for weights of elsewhere.

    Args:
        weights: "imagenet" or a file, see `imagenet_resnet`.
        network: the name under which torchvision publishes weights, or None.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    from resnet_tf.pretrained import keras_file as pretrained

    return pretrained.open_weights(weights, network)
