"""Which part of a network trains: layers by name, from the stem upwards."""

import contextlib
import re
from collections.abc import Iterator

import keras

from resnet_tf.errors import UserError
from resnet_tf.pretrained.torch_mapping import HEADS

_FEW = 8  # layers up to which each is named


def freeze(model: keras.Model, last: str) -> None:
    """Stop the training of the layers up to `last`: no gradient, and batch normalization as in inference.

    The variables and the order of the layers stay as they are; compile or trace the training step afterwards.

    Args:
        model: a network of this package.
        last: "none" (everything trains), "stageK" (the stem up to and including stage K does not) or "all" (only the
            classifier trains).

    Raises:
        UserError: the network has no such stage.
    """
    stages = sorted({stage for layer in model.layers if (stage := _stage(layer.name)) is not None})
    found = re.fullmatch(r"stage(\d+)", last)
    if last not in ("none", "all") and (found is None or int(found[1]) not in stages):
        allowed = ", ".join(["none", *(f"stage{stage}" for stage in stages), "all"])
        raise UserError(f"--freeze {last} does not fit {model.name}; allowed: {allowed}")
    for layer in model.layers:
        layer.trainable = not _is_below(layer.name, last)


def unfreeze(model: keras.Model, batch_norm: bool) -> None:
    """Let everything train again; batch normalization that was frozen only where `batch_norm` says so."""
    for layer in model.layers:
        if batch_norm or not isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = True


@contextlib.contextmanager
def all_trainable(model: keras.Model) -> Iterator[None]:
    """Make every layer trainable for the time of the block: what is frozen is no business of a saved file's."""
    before = [layer.trainable for layer in model.layers]
    try:
        for layer in model.layers:
            layer.trainable = True
        yield
    finally:
        for layer, trainable in zip(model.layers, before, strict=True):
            layer.trainable = trainable


def describe_trainable(model: keras.Model) -> str:
    """What trains, in one line: layers, or stages where those are many, with the numbers of their parameters."""
    counts = {
        layer.name: sum(variable.value.shape.num_elements() for variable in layer.trainable_variables)
        for layer in model.layers
    }
    training = {name: count for name, count in counts.items() if count}
    total = sum(variable.value.shape.num_elements() for variable in _trained_ever(model))
    groups = training
    if len(training) > _FEW:
        groups = {}
        for name, count in training.items():
            group = name.partition("_")[0]
            groups[group] = groups.get(group, 0) + count
    named = ", ".join(f"{name} {count:,}" for name, count in groups.items())
    return f"training {sum(training.values()):,} of {total:,} parameters in {len(training)} layers: {named}"


def _trained_ever(model: keras.Model) -> list[keras.Variable]:
    with all_trainable(model):
        return model.trainable_variables


def _stage(name: str) -> int | None:
    found = re.match(r"stage(\d+)_", name)
    return int(found[1]) if found else None


def _is_below(name: str, last: str) -> bool:
    """Whether a layer comes before the point up to which a network is frozen."""
    if last == "none" or name in HEADS:
        return False
    if last == "all" or name.startswith("stem_"):
        return True
    stage = _stage(name)
    return stage is not None and stage <= int(last.removeprefix("stage"))
