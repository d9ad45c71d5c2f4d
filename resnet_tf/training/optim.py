"""The optimizer of a recipe, and which variables it decays."""

import keras

from resnet_tf.recipes import Recipe


def make_optimizer(recipe: Recipe, policy: str) -> keras.optimizers.Optimizer:
    """SGD with the recipe's momentum; under mixed_float16 with dynamic loss scaling around it.

    Keras keeps the learning rate inside the velocity (v = m·v - lr·g; w += v), as Caffe did.

    Args:
        recipe: momentum and Nesterov switch are taken from it; the step sets the learning rate.
        policy: dtype policy of the run.
    """
    # Named, because checkpoints go by the variables' paths and Keras numbers unnamed optimizers.
    optimizer = keras.optimizers.SGD(
        recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, name="sgd"
    )
    if policy == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer


def decayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables that the L2 term covers.

    Args:
        model: any Keras model.
        decay: "kernels": those of rank 2 and more, that is the kernels of convolutions and of the
            classifier, and neither biases nor batch normalisation; "all": every one.
    """
    return [v for v in model.trainable_variables if decay == "all" or len(v.shape) >= 2]
