"""Residual networks for TensorFlow 2 and Keras 3: the papers' builders, and their training in one call.

The names below are imported on first use, so that `import resnet_tf` costs nothing and changes nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resnet_tf.data.cifar import load_dataset
    from resnet_tf.data.dataset import Dataset, Split
    from resnet_tf.errors import UserError
    from resnet_tf.export import export_model
    from resnet_tf.fitting import train
    from resnet_tf.fused import fold_batch_norm, fused_view
    from resnet_tf.inference import EvalMetrics
    from resnet_tf.models.blocks import bottleneck_block, residual_block
    from resnet_tf.models.cifar import cifar_resnet
    from resnet_tf.models.imagenet import imagenet_resnet
    from resnet_tf.models.layers import feature_extractor
    from resnet_tf.models.registry import build_model, list_models
    from resnet_tf.prediction import Prediction, predict
    from resnet_tf.pretrained.zoo import list_weights
    from resnet_tf.process import recursion_limit as room_for_depth
    from resnet_tf.recipes import RECIPES, Recipe
    from resnet_tf.results import TrainingResult
    from resnet_tf.scoring import evaluate
    from resnet_tf.training.callbacks import Callback, StopTraining
    from resnet_tf.training.logs import read_iterations
    from resnet_tf.training.step import make_train_step
    from resnet_tf.tuning import TuningResult, tune

# Where each public name lives, and what it is called there where that differs.
_HOMES = {
    "Callback": "training.callbacks",
    "Dataset": "data.dataset",
    "EvalMetrics": "inference",
    "Prediction": "prediction",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Split": "data.dataset",
    "StopTraining": "training.callbacks",
    "TrainingResult": "results",
    "TuningResult": "tuning",
    "UserError": "errors",
    "bottleneck_block": "models.blocks",
    "build_model": "models.registry",
    "cifar_resnet": "models.cifar",
    "evaluate": "scoring",
    "export_model": "export",
    "feature_extractor": "models.layers",
    "fold_batch_norm": "fused",
    "fused_view": "fused",
    "imagenet_resnet": "models.imagenet",
    "list_models": "models.registry",
    "list_weights": "pretrained.zoo",
    "load_dataset": "data.cifar",
    "make_train_step": "training.step",
    "predict": "prediction",
    "read_iterations": "training.logs",
    "residual_block": "models.blocks",
    "room_for_depth": "process",
    "train": "fitting",
    "tune": "tuning",
}
_NAMES_THERE = {"room_for_depth": "recursion_limit"}

__all__ = [
    "RECIPES",
    "Callback",
    "Dataset",
    "EvalMetrics",
    "Prediction",
    "Recipe",
    "Split",
    "StopTraining",
    "TrainingResult",
    "TuningResult",
    "UserError",
    "bottleneck_block",
    "build_model",
    "cifar_resnet",
    "evaluate",
    "export_model",
    "feature_extractor",
    "fold_batch_norm",
    "fused_view",
    "imagenet_resnet",
    "list_models",
    "list_weights",
    "load_dataset",
    "make_train_step",
    "predict",
    "read_iterations",
    "residual_block",
    "room_for_depth",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'resnet_tf' has no attribute {name!r}")
    return getattr(importlib.import_module(f"resnet_tf.{_HOMES[name]}"), _NAMES_THERE.get(name, name))


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
