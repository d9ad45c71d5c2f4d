"""The parts of a fine-tuning that meet in a run: weights from elsewhere, and what of the network trains when."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from resnet_tf.cli.evaluate import model_path
from resnet_tf.cli.request import Request
from resnet_tf.files import sha256_of
from resnet_tf.models.registry import CIFAR_NETWORKS
from resnet_tf.pretrained.download import published_file
from resnet_tf.pretrained.keras_file import open_weights
from resnet_tf.pretrained.zoo import find_shipped
from resnet_tf.training.fine_tune import describe_trainable, freeze, unfreeze
from resnet_tf.training.step import TrainStep

Functions = tuple[TrainStep, TrainStep]


class InitialWeights:
    """Weights that a run starts from; `digest` is the SHA-256 of their file."""

    def __init__(self, request: Request) -> None:
        """Open the weights that a request names: "imagenet", a file, or the folder of a finished run.

        Raises:
            UserError: they are not there or cannot be read.
        """
        assert request.weights is not None
        self._path = _file_of(request.weights, request.model)
        self._weights = open_weights(str(self._path), None)
        self.digest = sha256_of(self._path)

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation of the pixels that the weights expect, None where the file does not say."""
        if self._weights.mean is None or self._weights.std is None:
            return None
        return self._weights.mean, self._weights.std

    def builder(self, request: Request) -> dict[str, Any]:
        """The builder's options, with the weights' shortcut where nobody asked for one."""
        if request.model not in CIFAR_NETWORKS or request.builder["shortcut"] is not None:
            return request.builder
        return request.builder | {"shortcut": self._weights.shortcut}

    def fill(self, model: keras.Model) -> None:
        """Give all layers but the classifier their weights.

        Raises:
            UserError: they are those of another network.
        """
        self._weights.load_into(model, new_head=True)


def _file_of(weights: str, network: str) -> Path:
    if weights == "imagenet":
        return published_file(network)
    path = Path(weights)
    return model_path(path, best=False) if path.is_dir() or find_shipped(weights) is not None else path


class UnfreezeAt:
    """The switch of a training from its frozen network to the whole of it.

    Attributes:
        at: the update from which on everything trains.
    """

    def __init__(
        self, model: keras.Model, request: Request, make: Callable[[], Functions], log: Callable[[str], None]
    ) -> None:
        """Take a network that is frozen as `request` says.

        `make` compiles the updates of what trains when it is called; `log` is told at the switch what that is.
        """
        assert request.unfreeze_at is not None
        self.at = request.unfreeze_at
        self._model, self._request, self._make, self._say = model, request, make, log
        self._open = False
        self._made: dict[bool, Functions] = {}

    def functions(self, step: int) -> Functions:
        """One update and several in one call, as they are at update `step`."""
        if (step >= self.at) != self._open:
            self._open = not self._open
            self._turn()
        if self._open not in self._made:
            self._made[self._open] = self._make()
        return self._made[self._open]

    def _turn(self) -> None:
        # Backwards after a rollback to before the switch.
        if self._open:
            unfreeze(self._model, self._request.train_bn)
        else:
            freeze(self._model, self._request.freeze)
        self._say(describe_trainable(self._model))
