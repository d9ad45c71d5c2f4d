"""Both ends of every network, the outputs of its stages, and its layers and variables: which train, by which paths."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import keras
from keras import layers

from resnet_tf.errors import UserError
from resnet_tf.process import recursion_limit

T = TypeVar("T")

POOLINGS = (None, "avg", "max")
_NO_STAGE = -1
_MAX_NAMED_LAYERS = 8  # above, `describe_trainable` names stages


def model_input(
    input_shape: Sequence[int | None], min_side: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Any, Any]:
    """The model's input (height, width, channels), sides at least `min_side` or None, and the tensor the stem takes."""
    shape = tuple(input_shape)
    sides_fit = len(shape) == 3 and all(side is None or side >= min_side for side in shape[:2])
    if not sides_fit or shape[2] is None or shape[2] < 1:
        raise UserError(
            f"input_shape={shape} does not fit; allowed: (height, width, channels), sides at least {min_side} or None",
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
        raise UserError(
            f"mean and std need {channels} values each, std above 0; got mean={mean!r}, std={std!r}",
            argument="mean" if len(mean) != channels else "std",
        )
    # Shaped (1, 1, channels): Keras turns a flat list into (channels, 1, 1) where keras.json says channels_first.
    scale = [[[1.0 / float(s) for s in std]]]
    offset = [[[-float(m) / float(s) for m, s in zip(mean, std, strict=True)]]]
    return layers.Rescaling(scale, offset, dtype="float32", name="normalization")(x)


def head(x: Any, *, include_top: bool, pooling: str | None, classes: int, activation: str | None) -> Any:
    """Global pooling and the classifier, in float32 under every policy; neither leaves the feature map."""
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(data_format="channels_last", name="head_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(data_format="channels_last", name="head_pool")(x)
    if not include_top:
        return x
    try:
        keras.activations.get(activation)
    except ValueError as error:
        known = "None (logits), 'softmax', or another of Keras' activations"
        raise UserError(
            f"classifier_activation={activation!r} is not known; allowed: {known}", argument="classifier_activation"
        ) from error
    # It starts like torch.nn.Linear in fb.resnet.torch.
    return layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
        dtype="float32",
        name="head_logits" if activation is None else "head_predictions",
    )(x)


def feature_extractor(model: keras.Model, stages: Sequence[int] = (2, 3, 4, 5)) -> keras.Model:
    """A model with the inputs and variables of `model` that returns the feature maps of some stages.

    Args:
        model: a network of this package. Stages are counted as in the papers: 1 to 3 in CIFAR networks,
            2 to 5 (conv2_x to conv5_x) in ImageNet networks.
        stages: stages wanted, in the order of the outputs.

    Returns:
        A `keras.Model` with a list of outputs (batch, height, width, channels), one per stage. Those of
        version 1 come after a ReLU; those of version 2 are sums before the next normalization, and
        `model.get_layer("head_relu").output` is the normalized form of the last one.

    Raises:
        UserError: the network does not have one of the stages, or none were asked for.
    """
    outputs = stage_outputs(model)
    unknown = [stage for stage in stages if stage not in outputs]
    if unknown or not stages:
        some = f"allowed: one or more of {', '.join(map(str, sorted(outputs)))}"
        allowed = some if outputs else "it has no layers named stage…; take keras.Model(model.input, [layer.output, …])"
        raise UserError(f"stages={tuple(stages)} does not fit {model.name}; {allowed}", argument="stages")
    with recursion_limit(len(model.layers)):
        maps = [model.get_layer(outputs[stage]).output for stage in stages]
        return keras.Model(model.input, maps, name=f"{model.name}_features")


def stage_outputs(model: keras.Model) -> dict[int, str]:
    """The name of the layer that each stage ends in, such as {2: "stage2_block3_relu3", …}."""
    outputs: dict[int, str] = {}
    for layer in model.layers:
        # Layers come in topological order, so the last of a stage's is its output: _relu{k} in version 1, _add in
        # version 2, _conv{k} in a plain network of version 2. A shortcut's may come late too, and are no output.
        match = re.fullmatch(r"stage(\d+)_block\d+_(?:add|relu\d+|conv\d+)", layer.name)
        if match:
            outputs[int(match[1])] = layer.name
    return outputs


def flat_layers(model: keras.Model) -> list[layers.Layer]:
    """The layers of a model and of the models in it, in the order in which they run."""
    flat: list[layers.Layer] = []
    for layer in model.layers:
        flat += flat_layers(layer) if isinstance(layer, keras.Model) else [layer]
    return flat


def by_path(
    variables: Sequence[keras.Variable], path_of: Callable[[keras.Variable], str] = lambda variable: variable.path
) -> dict[str, keras.Variable]:
    """Variables by their paths, "PATH#2", … where models in the model hold layers of one name."""
    found: dict[str, keras.Variable] = {}
    seen: Counter[str] = Counter()
    for variable in variables:
        path = path_of(variable)
        seen[path] += 1
        found[path if seen[path] == 1 else f"{path}#{seen[path]}"] = variable
    return found


def renumbered(found: dict[str, T], paths: Sequence[str]) -> dict[str, T]:
    """What was found by path under the `paths` of a model, by order where only Keras' numbering of layers differs."""
    theirs, ours = ([re.sub(r"_\d+", "", path) for path in each] for each in (found, paths))
    return dict(zip(paths, found.values(), strict=True)) if theirs == ours and found.keys() != set(paths) else found


def freeze(model: keras.Model, last: str) -> list[layers.Layer]:
    """Stop the training of the layers up to `last`: no gradient, and batch normalization as in inference.

    `last` is "none" (nothing is frozen), "stageK" (the stem up to and including stage K) or "all" (everything but the
    classifier). Layers of models in the model are frozen one by one. Compile the training step afterwards.

    Returns:
        The layers that trained before and do not now, for `unfreeze` and `as_trainable`.

    Raises:
        UserError: the network does not have the stage.
    """
    members = flat_layers(model)
    stages = sorted({_stage(layer.name) for layer in members} - {_NO_STAGE})
    allowed = ["none", *(f"stage{stage}" for stage in stages), "all"]
    if last not in allowed:
        raise UserError(f"freeze={last!r} does not fit {model.name}; allowed: {', '.join(allowed)}")
    *_, classifier = (layer for layer in members if layer.weights)
    frozen = [x for x in members if x.trainable and x is not classifier and _is_frozen(x.name, last)]
    _set_trainable(frozen, False)
    return frozen


def unfreeze(frozen: Sequence[layers.Layer], batch_norm: bool) -> None:
    """Let frozen layers train again, batch normalization only where `batch_norm` says so."""
    _set_trainable([x for x in frozen if batch_norm or not isinstance(x, layers.BatchNormalization)], True)


@contextlib.contextmanager
def as_trainable(frozen: Sequence[layers.Layer]) -> Iterator[None]:
    """Let frozen layers train for the time of the block, so that a saved file does not say what a run has frozen."""
    before = [layer.trainable for layer in frozen]
    try:
        _set_trainable(frozen, True)
        yield
    finally:
        for layer, trainable in zip(frozen, before, strict=True):
            layer.trainable = trainable


def _set_trainable(members: Sequence[layers.Layer], trainable: bool) -> None:
    for layer in members:
        layer.trainable = trainable


def describe_trainable(model: keras.Model, frozen: Sequence[layers.Layer]) -> str:
    """What trains, in one line: layers, or stages where those are many, with the numbers of their parameters."""
    training = [(x.name, count) for x in flat_layers(model) if (count := _parameters(x.trainable_variables))]
    with as_trainable(frozen):
        total = _parameters(model.trainable_variables)
    groups: Counter[str] = Counter()
    for name, count in training:
        groups[name if len(training) <= _MAX_NAMED_LAYERS else name.partition("_")[0]] += count
    named = ", ".join(f"{name} {count:,}" for name, count in groups.items())
    return f"training {sum(groups.values()):,} of {total:,} parameters in {len(training)} layers: {named}"


def _parameters(variables: list[keras.Variable]) -> int:
    return sum(variable.value.shape.num_elements() for variable in variables)


def _stage(name: str) -> int:
    found = re.match(r"stage(\d+)_", name)
    return int(found[1]) if found else _NO_STAGE


def _is_frozen(name: str, last: str) -> bool:
    if last == "none":
        return False
    if last == "all" or name.startswith("stem_"):
        return True
    return _NO_STAGE < _stage(name) <= int(last.removeprefix("stage"))
