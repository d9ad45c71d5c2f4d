"""The weights that a fine-tuning starts from."""

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
        self._weights.fill(model, new_head=True)


def _file_of(weights: str, network: str) -> Path:
    if weights == "imagenet":
        return published_file(network)
    path = Path(weights)
    return model_path(path, best=False) if path.is_dir() or find_shipped(weights) is not None else path
