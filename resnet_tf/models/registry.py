"""The networks that have names; listing them imports neither Keras nor TensorFlow."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from resnet_tf.errors import UserError, did_you_mean
from resnet_tf.pretrained.zoo import (
    checked_options,
    find_entry,
    find_shipped,
    imagenet_classes,
    is_entry_name,
    run_entry,
)

if TYPE_CHECKING:
    import keras

Networks = dict[str, dict[str, Any]]


class ModelOptions(TypedDict, total=False):
    """The options of `build_model`, which are the arguments of `cifar_resnet` and `imagenet_resnet`."""

    depth: int
    version: Literal[1, 2]
    block: Literal["basic", "bottleneck"]
    stem: Literal["7x7", "3x3"]
    shortcut: Literal["identity", "projection", "projection_all", "none"] | None
    identity_padding: Literal["center", "end"] | None
    classes: int
    input_shape: Sequence[int | None]
    width: int
    use_bias: bool
    include_top: bool
    weights: str | None
    pooling: Literal["avg", "max"] | None
    classifier_activation: str | None
    groups: int
    width_per_group: int
    replace_stride_with_dilation: Sequence[bool]
    zero_init_residual: bool
    norm_layer: "Callable[[str, str], keras.layers.Layer] | None"
    stride_on: Literal["3x3", "1x1"]
    mean: Sequence[float] | None
    std: Sequence[float] | None


def _resnets(suffix: str, version: int, depths: Sequence[int], **options: Any) -> Networks:
    return {f"resnet{depth}{suffix}": {"depth": depth, "version": version, **options} for depth in depths}


_BASIC_DEPTHS = (8, 14, 20, 32, 44, 56, 110, 1202)
_BOTTLENECK_DEPTHS = (164, 1001)
_IMAGENET_DEPTHS = (18, 34, 50, 101, 152)
CIFAR_NETWORKS: Networks = {
    **_resnets("_v1", 1, _BASIC_DEPTHS),
    **_resnets("_v1", 1, _BOTTLENECK_DEPTHS, block="bottleneck"),
    **_resnets("_v2", 2, _BASIC_DEPTHS),
    **_resnets("_v2", 2, _BOTTLENECK_DEPTHS, block="bottleneck"),
    **{f"plain{depth}": {"depth": depth, "version": 1, "shortcut": "none"} for depth in (20, 32, 44, 56, 110)},
    # Those of ImageNet behind a 3x3 convolution: kuangliu/pytorch-cifar.
    **_resnets("_cifar", 1, _IMAGENET_DEPTHS, stem="3x3", classes=10, input_shape=(32, 32, 3)),
}
# ResNeXt: 1611.05431 table 3; wide ResNets: 1605.07146 section 3.4.
IMAGENET_NETWORKS: Networks = {
    **_resnets("", 1, _IMAGENET_DEPTHS),
    **_resnets("_v2", 2, (*_IMAGENET_DEPTHS, 200)),
    "resnext50_32x4d": {"depth": 50, "version": 1, "groups": 32, "width_per_group": 4},
    "resnext101_32x8d": {"depth": 101, "version": 1, "groups": 32, "width_per_group": 8},
    "resnext101_64x4d": {"depth": 101, "version": 1, "groups": 64, "width_per_group": 4},
    "wide_resnet50_2": {"depth": 50, "version": 1, "groups": 1, "width_per_group": 128},
    "wide_resnet101_2": {"depth": 101, "version": 1, "groups": 1, "width_per_group": 128},
}


def list_models() -> list[str]:
    """Names that `build_model` knows: CIFAR networks, then ImageNet networks."""
    return [*CIFAR_NETWORKS, *IMAGENET_NETWORKS]


def model_options(name: str) -> dict[str, Any]:
    """The builder's arguments that a name stands for; UserError that lists the known names for any other."""
    networks = CIFAR_NETWORKS | IMAGENET_NETWORKS
    if name not in networks:
        is_file = f"is a file; give the name of its network, and weights={name!r}"
        why = is_file if Path(name).exists() else f"is not known; {did_you_mean(name, networks)}"
        raise UserError(f"model={name!r} {why}", argument="model")
    return dict(networks[name])


def own_shortcut(name: str) -> str:
    """The shortcut that a network has where none is asked for."""
    options = model_options(name)
    if name in CIFAR_NETWORKS and not options.keys() & {"block", "stem"}:
        return str(options.get("shortcut", "identity"))
    return "projection"


def build_model(name: str, **options: Unpack[ModelOptions]) -> "keras.Model":
    """Build a network by its name.

    Args:
        name: one of `list_models()`, or one of `list_weights()`.
        **options: arguments of the builder (`cifar_resnet` or `imagenet_resnet`) that replace the name's own. Beside
            what the builder takes, `weights` may be the name of weights that come with the package (see
            `list_weights`) or the folder of a finished run; both bring the options that they were trained with. Where
            `classes` is another number than the weights have, the classifier is new, and a warning says so once.

    Returns:
        A plain functional `keras.Model`; `class_names` tells the classes of its outputs where the weights say them.

    Raises:
        UserError: no network has this name, the builder refuses an option, or the weights asked for are not there,
            cannot be read, or are those of other options.
    """
    given: dict[str, Any] = {**options}
    weights: Any = given.get("weights")
    entry = run_entry(weights)
    if entry is None and (shipped := find_shipped(name)) is not None:
        if weights is not None:
            raise UserError(f"{name} names its weights: leave weights={weights!r} out", argument="weights")
        name, entry = shipped.network, shipped
    elif entry is None and is_entry_name(weights):
        entry = find_entry(name, weights)
    if entry is not None:
        given = checked_options(entry, model_options(name), given)
    arguments = {"name": name, **model_options(name), **given}
    from resnet_tf.models.resnet import cifar_resnet, imagenet_resnet

    is_cifar = name in CIFAR_NETWORKS and "stem" not in arguments
    builder: Any = cifar_resnet if is_cifar else imagenet_resnet
    allowed = inspect.signature(builder).parameters
    unknown = [option for option in arguments if option not in allowed]
    if unknown:
        message = f"{name} has no option {', '.join(unknown)}; allowed: {', '.join(allowed)}"
        raise UserError(message, argument=unknown[0])
    model: keras.Model = builder(**arguments)
    if entry is not None or weights == "imagenet":
        known = entry.about["class_names"] if entry else [known.name for known in imagenet_classes()]
        if model.output_shape[-1] == len(known):
            set_class_names(model, known)
    return model


def set_class_names(model: "keras.Model", names: Sequence[str]) -> None:
    """Let a model know the names of its classes; they do not go into its file."""
    model.class_names = tuple(names)
