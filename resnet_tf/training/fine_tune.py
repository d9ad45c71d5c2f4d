"""Which layers of a network train, by name and from the stem upwards, and the switch from some of them to all."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from resnet_tf.config import TrainConfig
from resnet_tf.errors import UserError
from resnet_tf.files import sha256_of
from resnet_tf.models.registry import CIFAR_NETWORKS, model_options
from resnet_tf.pretrained.keras_file import open_weights
from resnet_tf.pretrained.torch_mapping import HEADS
from resnet_tf.pretrained.zoo import find_shipped, published_file
from resnet_tf.saving import model_path
from resnet_tf.training.step import StepFunctions

_NO_STAGE = -1
_MAX_NAMED_LAYERS = 8  # above, `describe_trainable` names stages


def freeze(model: keras.Model, last: str) -> None:
    """Stop the training of the layers up to `last`: no gradient, and batch normalization as in inference.

    `last` is "none" (everything trains), "stageK" (the stem up to and including stage K does not) or "all" (only the
    classifier trains). Compile the training step afterwards.
    """
    stages = sorted({_stage(layer.name) for layer in model.layers} - {_NO_STAGE})
    allowed = ["none", *(f"stage{stage}" for stage in stages), "all"]
    if last not in allowed:
        raise UserError(f"freeze={last!r} does not fit {model.name}; allowed: {', '.join(allowed)}")
    for layer in model.layers:
        layer.trainable = not _is_frozen(layer.name, last)


def unfreeze(model: keras.Model, batch_norm: bool) -> None:
    """Let everything train again; batch normalization that was frozen only where `batch_norm` says so."""
    for layer in model.layers:
        if batch_norm or not isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = True


class InitialWeights:
    """Weights that a run starts from: "imagenet", a file, or the folder of a run; `digest` is their file's SHA-256."""

    def __init__(self, weights: str, network: str) -> None:
        path = Path(weights)
        if weights == "imagenet":
            path = published_file(network)
        elif path.is_dir() or find_shipped(weights) is not None:
            path = model_path(path)
        self._weights = open_weights(weights if weights == "imagenet" else str(path), network)
        self.digest = sha256_of(path)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the pixels that the weights expect, None where the file does not say."""
        mean, std = self._weights.constants(None, None)
        return None if mean is None or std is None else (mean, std)

    def builder(self, config: TrainConfig) -> dict[str, Any]:
        """The builder's options, with the weights' shortcut and its padding where nobody asked for one."""
        builder, weights = config.builder, self._weights
        if config.model in CIFAR_NETWORKS and config.shortcut is None and "shortcut" not in model_options(config.model):
            builder["shortcut"] = weights.shortcut
        padding = config.identity_padding or weights.identity_padding
        return builder | ({"identity_padding": padding} if padding else {})

    def load_into(self, model: keras.Model) -> None:
        """Give all layers but the classifier their weights; UserError where they are another network's."""
        self._weights.load_into(model, new_head=True)


@dataclass(eq=False)
class UnfreezeAt:
    """Switches a training to the whole network at step `step`, and takes its functions from `make_functions` anew."""

    model: keras.Model
    step: int
    make_functions: Callable[[], StepFunctions]
    log: Callable[[str], None]
    freeze: str
    train_bn: bool

    def __post_init__(self) -> None:
        self._is_unfrozen = False
        self._functions: dict[bool, StepFunctions] = {}

    def functions(self, step: int) -> StepFunctions:
        """One step and several in one call, as they are at step `step`."""
        if (step >= self.step) != self._is_unfrozen:
            self._is_unfrozen = not self._is_unfrozen
            if self._is_unfrozen:
                unfreeze(self.model, self.train_bn)
            else:  # a rollback to before the switch
                freeze(self.model, self.freeze)
            self.log(describe_trainable(self.model))
        if self._is_unfrozen not in self._functions:
            self._functions[self._is_unfrozen] = self.make_functions()
        return self._functions[self._is_unfrozen]


@contextlib.contextmanager
def all_trainable(model: keras.Model) -> Iterator[None]:
    """Make every layer trainable for the time of the block, so that a saved file does not say what was frozen."""
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
    counts = {layer.name: _parameters(layer.trainable_variables) for layer in model.layers}
    training = {name: count for name, count in counts.items() if count}
    with all_trainable(model):
        total = _parameters(model.trainable_variables)
    groups: Counter[str] = Counter()
    for name, count in training.items():
        groups[name if len(training) <= _MAX_NAMED_LAYERS else name.partition("_")[0]] += count
    named = ", ".join(f"{name} {count:,}" for name, count in groups.items())
    return f"training {sum(training.values()):,} of {total:,} parameters in {len(training)} layers: {named}"


def _parameters(variables: list[keras.Variable]) -> int:
    return sum(variable.value.shape.num_elements() for variable in variables)


def _stage(name: str) -> int:
    found = re.match(r"stage(\d+)_", name)
    return int(found[1]) if found else _NO_STAGE


def _is_frozen(name: str, last: str) -> bool:
    if last == "none" or name in HEADS:
        return False
    if last == "all" or name.startswith("stem_"):
        return True
    return _NO_STAGE < _stage(name) <= int(last.removeprefix("stage"))
