"""Build networks by name; listing them imports neither Keras nor TensorFlow."""

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from resnet_tf.errors import UserError
from resnet_tf.models.networks import CIFAR_NETWORKS, IMAGENET_NETWORKS, default_shortcut
from resnet_tf.pretrained.zoo import checked_options, find_entry, is_entry_name

if TYPE_CHECKING:
    import keras


def list_models() -> list[str]:
    """Names that `build_model` knows: CIFAR networks, then ImageNet networks."""
    return [*CIFAR_NETWORKS, *IMAGENET_NETWORKS]


def model_options(name: str) -> dict[str, Any]:
    """The builder's arguments that a name stands for; UserError that lists the known names for any other."""
    networks = CIFAR_NETWORKS | IMAGENET_NETWORKS
    if name not in networks:
        raise UserError(f"model={name!r} is not known; allowed: {', '.join(list_models())}", argument="model")
    return dict(networks[name])


def own_shortcut(name: str) -> str:
    """The shortcut that a network has where none is asked for."""
    options = model_options(name)
    if name in IMAGENET_NETWORKS:
        return "projection"
    return str(options.get("shortcut") or default_shortcut(options.get("block", "basic")))


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
        UserError: no network has this name, the builder refuses an option, or the weights asked for are not there,
            cannot be read, or are those of other options.
    """
    if is_entry_name(options.get("weights")):
        entry = find_entry(name, options["weights"])
        options = checked_options(entry, model_options(name), options)
    arguments = {"name": name, **model_options(name), **options}
    if name in CIFAR_NETWORKS:
        builder = importlib.import_module("resnet_tf.models.cifar").cifar_resnet
    else:
        builder = importlib.import_module("resnet_tf.models.imagenet").imagenet_resnet
    allowed = inspect.signature(builder).parameters
    unknown = [option for option in arguments if option not in allowed]
    if unknown:
        message = f"{name} has no option {', '.join(unknown)}; allowed: {', '.join(allowed)}"
        raise UserError(message, argument=unknown[0])
    model: keras.Model = builder(**arguments)
    return model
