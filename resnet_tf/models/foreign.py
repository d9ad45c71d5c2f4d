"""Keras models that somebody else has built: what they take and return, and what must hold for a training of them."""

import hashlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
from keras import layers

from resnet_tf.errors import UserError, short

OutputType = Literal["logits", "softmax"]

_ARITHMETIC = ("Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract")


def plain_functional(model: keras.Model) -> keras.Model:
    """A sequential model, or one whose one input is in a list (as Keras 2 wrote them), as a functional one of a tensor.

    Any other functional model is returned as it is. Raises UserError for what is neither.
    """
    sequential = isinstance(model, keras.Sequential) and hasattr(model, "inputs")  # which an unbuilt one has not
    if not sequential and not (isinstance(model, keras.Model) and hasattr(model, "operations")):
        found = type(model).__name__
        raise UserError(f"expected a functional or built sequential keras.Model, not {found}", argument="model")
    listed = not sequential and isinstance(model.input, list | dict) and len(model.inputs) == len(model.outputs) == 1
    return keras.Model(model.inputs[0], model.outputs[0], name=model.name) if sequential or listed else model


def begins_normalized(model: keras.Model) -> bool:
    """Whether a model does arithmetic on the pixels before its first layer with trained weights."""
    for operation in getattr(model, "operations", model.layers):
        if isinstance(operation, keras.Model):
            return begins_normalized(operation)
        if type(operation).__name__ in _ARITHMETIC:
            return True
        if getattr(operation, "weights", None):
            return False
    return False


def scaled(model: keras.Model, mean: Any, std: Any, input_scale: float | None) -> keras.Model:
    """A model of raw pixels around one that takes (x - mean) / std, or (x - mean) * input_scale, over its variables.

    `mean` and `std` are a number, a number per channel or an image, in 0-255 units; None leaves a part out.
    """
    if std is not None and input_scale is not None:
        raise UserError("std and input_scale both scale the input; give one of them", argument="input_scale")
    if input_scale is not None and not 0 < input_scale < np.inf:
        raise UserError(f"input_scale={input_scale} is out of range; give a number above 0, such as 1/255")
    shape = model.input_shape[1:]
    offset, divisor = (np.asarray(default if v is None else v, float) for v, default in ((mean, 0.0), (std, 1.0)))
    for argument, value in (("mean", offset), ("std", divisor)):
        if value.shape not in ((), (1,), shape[-1:], shape) or not np.isfinite(value).all():
            raise UserError(
                f"{argument} has the shape {value.shape}, and {model.name} takes images {shape}; give a number, a "
                "number for each channel, or an image",
                argument=argument,
            )
        if 0 < value.max() < 1 or (argument == "std" and value.min() <= 0):
            raise UserError(f"{argument} is in units of pixels 0-255, and {value.max():.3g} is not", argument=argument)
    scale = (input_scale or 1.0) / divisor
    # Three axes: Keras turns a flat list into (channels, 1, 1) where keras.json says channels_first.
    factors = [np.broadcast_to(v, np.broadcast_shapes(v.shape, (1, 1, 1))).tolist() for v in (scale, -offset * scale)]
    inputs = keras.Input(shape, name="images")
    return keras.Model(inputs, model(layers.Rescaling(*factors, dtype="float32")(inputs)), name=model.name)


def output_type(model: keras.Model) -> OutputType:
    """Tell from the last layer whether `model` returns logits or softmax probabilities.

    Raises UserError for a model that ends in anything else.
    """
    members = list(model.layers)
    # What counts stands before what flattens the output of a convolution, or casts it to float32: a linear Activation.
    while len(members) > 1 and _passes_through(members[-1]):
        members.pop()
    last = members[-1]
    if isinstance(last, keras.Model):
        return output_type(last)
    if isinstance(last, layers.TFSMLayer):  # which only its outputs tell
        images = np.random.default_rng(0).uniform(0, 255, (4, *(side or 64 for side in model.input_shape[1:])))
        outputs = np.asarray(model(images))
        return "softmax" if outputs.min() >= 0 and np.allclose(outputs.sum(-1), 1, atol=1e-3) else "logits"
    if isinstance(last, layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        return "softmax"
    if _is_linear(last):
        return "logits"
    activation = getattr(getattr(last, "activation", None), "__name__", "no activation")
    raise UserError(
        f"the network ends in {type(last).__name__} {last.name!r} with {activation}; only a linear or a softmax "
        "output can be scored: rebuild it to return logits"
    )


def _passes_through(layer: keras.Layer) -> bool:
    if isinstance(layer, layers.Activation):
        return _is_linear(layer)
    return isinstance(layer, layers.Flatten | layers.Reshape)


def _is_linear(layer: keras.Layer) -> bool:
    return getattr(layer, "activation", None) is keras.activations.linear


def check_classifier(model: keras.Model, name: str) -> None:
    """Refuse a functional model that does not take images or does not return one value for each class."""
    shape, outputs = model.input_shape, model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise UserError(f"{name} takes {shape}; only images (height, width, channels) will do")
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        raise UserError(f"{name} puts out {outputs}; only the (batch, classes) of a classifier will do")


def check_trainable(model: keras.Model, options: Mapping[str, Any]) -> str:
    """Refuse a Keras model that cannot be trained as it is and so; returns a digest of its architecture."""
    for name in ("shortcut", "identity_padding", "width", "use_bias"):
        if (value := options.get(name)) and (name, value) != ("width", 1):
            what = f"{name}={value!r} is for a network by name"
            raise UserError(f"{what}, and model {model.name} is built already; leave it out", argument=name)
    check_classifier(model, f"model {model.name}")
    output_type(model)
    if not model.trainable_variables:
        raise UserError(
            f"model {model.name} has no variables that train; set model.trainable = True, or that of some layers",
            argument="model",
        )
    if not begins_normalized(model):
        warnings.warn(
            f"model {model.name} does not begin with a Rescaling or Normalization layer: it is trained on raw pixels "
            "0-255; begin it with keras.layers.Rescaling(1 / 127.5, offset=-1)",
            stacklevel=3,
        )
    return _digest(model)


def _digest(model: keras.Model) -> str:
    """A digest of the architecture that does not see how far Keras has counted unnamed layers in this process."""
    config, names, count = json.loads(model.to_json())["config"], dict[str, str](), Counter[str]()

    def renumbered(value: Any, is_name: bool = False) -> Any:
        if isinstance(value, dict):
            return {key: renumbered(item, key == "name") for key, item in value.items()}
        if isinstance(value, list):
            return [renumbered(item) for item in value]
        if is_name and isinstance(value, str) and value not in names:
            stem = re.sub(r"_\d+$", "", value)
            names[value], count[stem] = f"{stem}_{count[stem]}", count[stem] + 1
        return names.get(value, value) if isinstance(value, str) else value

    renumbered(config)  # a layer that is called twice may read one that comes after it
    return hashlib.sha256(json.dumps(renumbered(config)).encode()).hexdigest()


def custom_classes(model: keras.Model) -> dict[str, type]:
    """The classes of a functional model's layers that are not Keras' own, by the names that its files have for them.

    Raises UserError for a layer that could not be built again from a file.
    """
    found: dict[str, type] = {}
    members = list(model.layers)
    for layer in members:
        if isinstance(layer, keras.Model):
            members += layer.layers
        if isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
            continue
        kind = type(layer)
        if kind.__module__.partition(".")[0] != "keras":
            found[keras.saving.get_registered_name(kind)] = kind
        try:
            with keras.saving.custom_object_scope(found):
                kind.from_config(layer.get_config())
        except Exception as error:  # whatever the layer's own code raises
            raise UserError(
                f"layer {layer.name} ({kind.__name__}) cannot be built again from its configuration, as a saved model "
                f"asks ({short(error, 100)}); give its class a get_config that returns what __init__ takes, "
                "decorate own functions with @keras.saving.register_keras_serializable(), and use keras.ops or a layer "
                "in place of a lambda",
                argument="model",
            ) from error
    return found


def check_classes(model: keras.Model, shape: tuple[int, ...], classes: int) -> None:
    """Refuse a Keras model whose input or output does not fit the data."""
    sides = model.input_shape[1:]
    if any(side not in (None, given) for side, given in zip(sides, shape, strict=True)):
        raise UserError(f"model {model.name} takes images {sides}, the data has {tuple(shape)}", argument="model")
    if (outputs := model.output_shape[-1]) != classes:
        raise UserError(
            f"model {model.name} has {outputs} outputs, the data has {classes} classes; give it as many",
            argument="model",
        )
