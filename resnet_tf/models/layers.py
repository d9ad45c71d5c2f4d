"""Both ends of every network: the input with its normalization, and the classifier."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from resnet_tf.errors import UserError

POOLINGS = (None, "avg", "max")


def model_input(
    input_shape: Sequence[int | None], min_side: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Any, Any]:
    """The model's input (height, width, channels), sides at least `min_side` or None, and the tensor the stem takes."""
    shape = tuple(input_shape)
    sides_fit = len(shape) == 3 and all(side is None or side >= min_side for side in shape[:2])
    if not sides_fit or shape[2] is None or shape[2] < 1:
        raise UserError(
            f"input_shape={shape} does not fit; allowed: (height, width, channels) with sides of at least "
            f"{min_side} (or None) and 1 or more channels",
            argument="input_shape",
        )
    if (mean is None) != (std is None):
        raise UserError("mean and std go together: give both or neither", argument="mean" if std is None else "std")
    inputs = keras.Input(shape, name="images")
    return inputs, inputs if mean is None or std is None else normalization(inputs, mean, std)


def normalization(x: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """(x - mean) / std per channel (0-255 units), in float32, as the first layer of a model that takes raw pixels."""
    channels = x.shape[-1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        message = f"mean and std need {channels} values each, std above 0; got mean={mean!r}, std={std!r}"
        raise UserError(message, argument="mean" if len(mean) != channels else "std")
    # Shaped (1, 1, channels): Keras turns a flat list into (channels, 1, 1) where keras.json says channels_first.
    scale = [[[1.0 / float(s) for s in std]]]
    offset = [[[-float(m) / float(s) for m, s in zip(mean, std, strict=True)]]]
    return layers.Rescaling(scale, offset, dtype="float32", name="normalization")(x)


def head(x: Any, *, include_top: bool, pooling: str | None, classes: int, activation: str | None) -> Any:
    """Global pooling and the classifier, as far as they are asked for.

    Without top, `pooling` None leaves the feature map. The classifier stays in float32 under every dtype policy.
    """
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(data_format="channels_last", name="head_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(data_format="channels_last", name="head_pool")(x)
    if not include_top:
        return x
    # It starts like torch.nn.Linear in fb.resnet.torch.
    return layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        dtype="float32",
        name="head_logits" if activation is None else "head_predictions",
    )(x)
