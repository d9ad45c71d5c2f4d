"""Residual networks for TensorFlow 2 and Keras 3: the papers' builders, and their training in one call.

The names below are imported on first use, so that `import resnet_tf` costs nothing and changes nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from resnet_tf.data.cifar import load_dataset
    from resnet_tf.data.dataset import Dataset, Split
    from resnet_tf.data.prepare import preview
    from resnet_tf.errors import UserError
    from resnet_tf.export import export_model
    from resnet_tf.fitting import train
    from resnet_tf.folding import fold_batch_norm
    from resnet_tf.fused import fused_view
    from resnet_tf.inference import EvalMetrics
    from resnet_tf.models.blocks import bottleneck_block, residual_block
    from resnet_tf.models.layers import feature_extractor
    from resnet_tf.models.registry import build_model, list_models
    from resnet_tf.models.resnet import cifar_resnet, imagenet_resnet
    from resnet_tf.prediction import Prediction, predict
    from resnet_tf.pretrained.zoo import list_weights
    from resnet_tf.process import load_tensorflow as quiet
    from resnet_tf.process import recursion_limit as room_for_depth
    from resnet_tf.recipes import RECIPES, Recipe
    from resnet_tf.results import TrainingResult
    from resnet_tf.saving import class_names
    from resnet_tf.scoring import evaluate
    from resnet_tf.training.callbacks import Callback, StopTraining
    from resnet_tf.training.logs import read_iterations
    from resnet_tf.training.step import make_train_step
    from resnet_tf.tuning import TuningResult, tune

# The modules of the public names; one that has another name there stands as "public=there".
_MODULES = {
    "data.cifar": "load_dataset",
    "data.dataset": "Dataset Split",
    "data.prepare": "preview",
    "errors": "UserError",
    "export": "export_model",
    "fitting": "train",
    "folding": "fold_batch_norm",
    "fused": "fused_view",
    "inference": "EvalMetrics",
    "models.blocks": "bottleneck_block residual_block",
    "models.layers": "feature_extractor",
    "models.registry": "build_model list_models",
    "models.resnet": "cifar_resnet imagenet_resnet",
    "prediction": "Prediction predict",
    "pretrained.zoo": "list_weights",
    "process": "quiet=load_tensorflow room_for_depth=recursion_limit",
    "recipes": "RECIPES Recipe",
    "results": "TrainingResult",
    "saving": "class_names",
    "scoring": "evaluate",
    "training.callbacks": "Callback StopTraining",
    "training.logs": "read_iterations",
    "training.step": "make_train_step",
    "tuning": "TuningResult tune",
}
_HOMES = {name.partition("=")[0]: (module, name) for module, names in _MODULES.items() for name in names.split()}

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
    "class_names",
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
    "preview",
    "quiet",
    "read_iterations",
    "residual_block",
    "room_for_depth",
    "train",
    "tune",
]


if not TYPE_CHECKING:  # to a type checker, the names above are all there are

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'resnet_tf' has no attribute {name!r}")
        module, there = _HOMES[name]
        return getattr(importlib.import_module(f"resnet_tf.{module}"), there.rpartition("=")[2])


def __dir__() -> list[str]:
    return sorted(__all__)
