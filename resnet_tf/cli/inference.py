"""How the commands that only run a model run it: the flags, and the compiled function."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


def add_inference_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of how a model runs."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="what it computes in; 16 bits are faster where the processor has them, and change the results slightly",
    )
    parser.add_argument("--fold-bn", action="store_true", help="fold batch normalization into convolutions first")


def compiled_inference(
    model: "keras.Model", precision: str = "float32", fold_bn: bool = False
) -> "Callable[[np.ndarray], tf.Tensor]":
    """Compile a model's inference: uint8 (B, H, W, C) to its outputs (B, classes).

    A model that is not functional runs as it stands.
    """
    from resnet_tf.folding import fold_batch_norm
    from resnet_tf.fused import fused_view
    from resnet_tf.inference import compiled_forward

    if not hasattr(model, "operations"):
        return compiled_forward(model)
    return compiled_forward(fused_view(fold_batch_norm(model) if fold_bn else model, precision))
