"""The optimizer of a recipe, and which variables it decays."""

from collections.abc import Sequence

import keras

from resnet_tf.recipes import Recipe


def make_optimizer(recipe: Recipe, policy: str, undecayed: Sequence[keras.Variable] = ()) -> keras.optimizers.Optimizer:
    """The recipe's optimizer; under mixed_float16 with dynamic loss scaling around it.

    Keras keeps SGD's learning rate inside the velocity (v = m·v - lr·g; w += v), as Caffe did.

    Args:
        recipe: optimizer, momentum, clipping and decay are taken from it; the step sets the learning rate.
        policy: dtype policy of the run.
        undecayed: variables that AdamW, which decays them itself, leaves alone.
    """
    optimizer = _OPTIMIZERS[recipe.optimizer](recipe)
    if recipe.optimizer == "adamw":
        optimizer.exclude_from_weight_decay(list(undecayed))
    if policy == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer


# Named, because checkpoints go by the variables' paths and Keras numbers unnamed optimizers.
def _sgd(recipe: Recipe) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(
        recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        global_clipnorm=recipe.clip_norm,
        name="sgd",
    )


def _adam(recipe: Recipe) -> keras.optimizers.Optimizer:
    return keras.optimizers.Adam(recipe.learning_rate, global_clipnorm=recipe.clip_norm, name="adam")


def _adamw(recipe: Recipe) -> keras.optimizers.Optimizer:
    return keras.optimizers.AdamW(
        recipe.learning_rate, weight_decay=recipe.weight_decay, global_clipnorm=recipe.clip_norm, name="adamw"
    )


_OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


def decayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables that the L2 term covers.

    Args:
        model: any Keras model.
        decay: "kernels": those of rank 2 and more, that is the kernels of convolutions and of the
            classifier, and neither biases nor batch normalisation; "all": every one.
    """
    return [v for v in model.trainable_variables if decay == "all" or len(v.shape) >= 2]


def undecayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables that `decayed_variables` leaves out."""
    decayed = {v.path for v in decayed_variables(model, decay)}
    return [v for v in model.trainable_variables if v.path not in decayed]
