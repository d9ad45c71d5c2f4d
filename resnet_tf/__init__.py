"""Residual networks for TensorFlow 2 and Keras 3: the papers' builders and a training loop for them.

The names below are imported on first use, so that `import resnet_tf` costs nothing and changes nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resnet_tf.errors import UserError
    from resnet_tf.fused import fused_view
    from resnet_tf.models.blocks import bottleneck_block, residual_block
    from resnet_tf.models.cifar import cifar_resnet
    from resnet_tf.models.features import feature_extractor
    from resnet_tf.models.imagenet import imagenet_resnet
    from resnet_tf.models.registry import build_model, list_models
    from resnet_tf.pretrained.zoo import list_weights
    from resnet_tf.process import recursion_limit, room_for_depth
    from resnet_tf.recipes import RECIPES, Recipe
    from resnet_tf.training.logs import read_iterations

_HOMES = {
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "UserError": "errors",
    "bottleneck_block": "models.blocks",
    "build_model": "models.registry",
    "cifar_resnet": "models.cifar",
    "feature_extractor": "models.features",
    "fused_view": "fused",
    "imagenet_resnet": "models.imagenet",
    "list_models": "models.registry",
    "list_weights": "pretrained.zoo",
    "read_iterations": "training.logs",
    "recursion_limit": "process",
    "residual_block": "models.blocks",
    "room_for_depth": "process",
}

__all__ = [
    "RECIPES",
    "Recipe",
    "UserError",
    "bottleneck_block",
    "build_model",
    "cifar_resnet",
    "feature_extractor",
    "fused_view",
    "imagenet_resnet",
    "list_models",
    "list_weights",
    "read_iterations",
    "recursion_limit",
    "residual_block",
    "room_for_depth",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resnet_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"resnet_tf.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
