"""The layers and variables of a model: which of them train, and by which paths they are known."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import keras
from keras import layers

from resnet_tf.errors import UserError

T = TypeVar("T")

_NO_STAGE = -1
_MAX_NAMED_LAYERS = 8  # above, `describe_trainable` names stages


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
