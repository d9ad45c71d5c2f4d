"""Networks by name. The names are data, so that listing them imports neither Keras nor TensorFlow."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

BASIC_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)
BOTTLENECK_DEPTHS = (164, 1001)
PLAIN_DEPTHS = (20, 32, 44, 56, 110)


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


CIFAR_NETWORKS = _cifar_networks()


def list_models() -> list[str]:
    """Names that `build_model` knows."""
    return list(CIFAR_NETWORKS)


def model_options(name: str) -> dict[str, Any]:
    """The builder's arguments that a name stands for.

    Raises:
        ValueError: no network has this name; the message names those that do.
    """
    if name not in CIFAR_NETWORKS:
        raise ValueError(f"model={name!r} is not known; allowed: {', '.join(list_models())}")
    return dict(CIFAR_NETWORKS[name])


def build_model(name: str, **options: Any) -> "keras.Model":
    """Build a network by its name.

    Args:
        name: one of `list_models()`.
        **options: arguments of the builder (`cifar_resnet`) that replace the name's own.

    Returns:
        A plain functional `keras.Model`.

    Raises:
        ValueError: no network has this name, or the builder refuses an option.
    """
    from resnet_tf.models.cifar import cifar_resnet

    return cifar_resnet(**{"name": name, **model_options(name), **options})
