"""Both ends of every network: the input with its normalization, and the classifier."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

POOLINGS = (None, "avg", "max")


def normalization(x: Any, mean: Sequence[float], std: Sequence[float]) -> Any:
    """(x - mean) / std per channel, in float32, as the first layer of a model that takes raw pixels.

    Args:
        x: tensor (batch, height, width, channels) in 0-255 units.
        mean: per-channel mean in 0-255 units.
        std: per-channel standard deviation in 0-255 units, all above 0.

    Raises:
        ValueError: the lengths differ from the channels, or a standard deviation is not positive.
    """
    channels = x.shape[-1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"mean and std need {channels} values each, std above 0; got mean={mean!r}, std={std!r}")
    # Shaped (1, 1, channels): Keras turns a flat list into (channels, 1, 1) where keras.json says channels_first.
    scale = [[[1.0 / float(s) for s in std]]]
    offset = [[[-float(m) / float(s) for m, s in zip(mean, std, strict=True)]]]
    return layers.Rescaling(scale, offset, dtype="float32", name="normalization")(x)


def head(x: Any, *, include_top: bool, pooling: str | None, classes: int, classifier_activation: str | None) -> Any:
    """Global pooling and the classifier, as far as they are asked for.

    The classifier stays in float32 under every dtype policy and starts like torch.nn.Linear in fb.resnet.torch.

    Args:
        x: feature map (batch, height, width, channels).
        include_top: end with global average pooling and the classifier.
        pooling: without top: None (feature map), "avg" or "max" (features).
        classes: outputs of the classifier.
        classifier_activation: activation of the classifier; None gives logits.
    """
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(data_format="channels_last", name="head_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(data_format="channels_last", name="head_pool")(x)
    if not include_top:
        return x
    return layers.Dense(
        classes,
        activation=classifier_activation,
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        dtype="float32",
        name="head_logits" if classifier_activation is None else "head_predictions",
    )(x)


def model_input(
    input_shape: Sequence[int | None], smallest: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Any, Any]:
    """Checked input of a model, and the tensor that the stem takes.

    Raises:
        ValueError: the shape is not (height, width, channels) with sides of at least `smallest`
            (or None) and 1 or more channels, or only one of mean and std is given.
    """
    shape = tuple(input_shape)
    sides_fit = len(shape) == 3 and all(side is None or side >= smallest for side in shape[:2])
    if not sides_fit or shape[2] is None or shape[2] < 1:
        raise ValueError(
            f"input_shape={shape} does not fit; allowed: (height, width, channels) with sides of at least "
            f"{smallest} (or None) and 1 or more channels"
        )
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: give both or neither")
    inputs = keras.Input(shape, name="images")
    return inputs, inputs if mean is None or std is None else normalization(inputs, mean, std)
