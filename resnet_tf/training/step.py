"""The compiled training step, with the optimizers and the moving average of the weights that go into it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from resnet_tf.errors import UserError
from resnet_tf.models.layers import flat_layers
from resnet_tf.process import recursion_limit
from resnet_tf.recipes import Recipe, get_recipe

# Images and labels, or what stands for them on the device: NumPy arrays, or tensors.
Batch = tuple[Any, Any]
TrainStep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
StepFunctions = tuple[TrainStep, TrainStep]  # one step, and several in one call
# Of images and labels: gradients by variable, and what a step returns.
Backward = Callable[[tf.Tensor, tf.Tensor], tuple[list[tf.Tensor], tf.Tensor]]


def cross_entropy(
    labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0, class_weights: ArrayLike | None = None
) -> tf.Tensor:
    """Cross-entropy in nats, float32 (B,), of labels int32 (B,) and logits float32 (B, C).

    `smoothing` of the target goes evenly to all classes (1512.00567 section 7); `class_weights` (C,) scale the images.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if smoothing:
        to_all = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
        losses = (1.0 - smoothing) * losses + smoothing * to_all
    if class_weights is not None:
        losses *= tf.gather(tf.constant(class_weights, tf.float32), labels)
    return losses


def balanced_weights(labels: ArrayLike, classes: int) -> NDArray[np.float64]:
    """N / (C · n) for each class of n among N labels, and 0 for one without images: all classes count alike."""
    members = np.bincount(np.asarray(labels), minlength=classes)
    return np.divide(members.sum() / classes, members, out=np.zeros(classes), where=members > 0)


def disable_optimizer_all_reduce(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer take the gradients as they are: Keras sums them over replicas only after clipping them.

    In float16 it also looks for infinities before it sums, and would miss one in a replica other than the first.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(inner, "_all_reduce_sum_gradients"):
        advice = "install an earlier Keras, such as 3.15, or use strategy='none'"
        raise UserError(f"Keras {keras.__version__} sums gradients over replicas in an unknown way; {advice}")
    inner._all_reduce_sum_gradients = list


def sync_moving_stats(statistics: list[keras.Variable]) -> None:
    """Give all replicas the mean of their moving statistics; to be called in each of them."""
    if not statistics:
        return
    context = tf.distribute.get_replica_context()
    # An identity has the replica's device, which the sum asks for; a variable's value need not have one.
    values = [tf.identity(variable.value) for variable in statistics]
    for variable, mean in zip(statistics, context.all_reduce(tf.distribute.ReduceOp.MEAN, values), strict=True):
        variable.assign(mean)


def moving_statistics(model: keras.Model) -> list[keras.Variable]:
    """Mean and variance of each batch normalization of a model that moves them."""
    norms = [layer for layer in flat_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    return [v for norm in norms if norm.trainable for v in (norm.moving_mean, norm.moving_variance)]


def make_optimizer(recipe: Recipe, policy: str, undecayed: Sequence[keras.Variable] = ()) -> keras.optimizers.Optimizer:
    """The recipe's optimizer, with dynamic loss scaling under mixed_float16; AdamW does not decay the `undecayed`."""
    # Named, because checkpoints go by the variables' paths and Keras numbers unnamed optimizers.
    options: dict[str, Any] = {"global_clipnorm": recipe.clip_norm, "name": recipe.optimizer}
    optimizer: keras.optimizers.Optimizer
    if recipe.optimizer == "sgd":
        # Keras keeps the learning rate inside the velocity (v = m·v - lr·g; w += v), as Caffe did.
        optimizer = keras.optimizers.SGD(
            recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov, **options
        )
    elif recipe.optimizer == "adam":
        optimizer = keras.optimizers.Adam(recipe.learning_rate, **options)
    else:
        optimizer = keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay, **options)
        optimizer.exclude_from_weight_decay(list(undecayed))
    if policy == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer


def decayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables in the L2 term: "all", or "kernels" (rank 2 and more: no biases, no normalization)."""
    return [v for v in model.trainable_variables if decay == "all" or len(v.shape) >= 2]


def undecayed_variables(model: keras.Model, decay: str) -> list[keras.Variable]:
    """The trainable variables that `decayed_variables` leaves out."""
    decayed = {id(v) for v in decayed_variables(model, decay)}
    return [v for v in model.trainable_variables if id(v) not in decayed]


def make_ema(model: keras.Model) -> keras.Model:
    """A copy of a functional stock model, to hold the exponential moving averages of its variables."""
    with recursion_limit(len(model.layers)):
        ema_model = keras.models.clone_model(model)
    for variable, average in zip(model.variables, ema_model.variables, strict=True):
        average.assign(variable)
    return ema_model


def ema_pairs(model: keras.Model, ema_model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    """Each variable of a layer that trains, moving statistics among them, with its average."""
    moving = {id(v) for layer in flat_layers(model) if layer.trainable for v in layer.variables}
    pairs = zip(model.variables, ema_model.variables, strict=True)
    # By order, for paths need not be unique; a state of a random generator is no number to average.
    return [(v, average) for v, average in pairs if id(v) in moving and keras.backend.is_float_dtype(v.dtype)]


def update_ema(pairs: list[tuple[keras.Variable, keras.Variable]], decay: float, steps: tf.Tensor) -> None:
    """Move each average towards its variable: average = d · average + (1 - d) · variable.

    d is min(decay, (1 + t) / (10 + t)) after t steps: the first ones would otherwise weigh next to nothing against
    the initial values.
    """
    done = tf.cast(steps, tf.float32)
    rest = 1.0 - tf.minimum(decay, (1.0 + done) / (10.0 + done))
    for variable, average in pairs:
        # In this form an average that is equal to its variable stays so bit for bit.
        average.assign_sub(rest * (average.value - variable.value))


def make_train_step(
    model: keras.Model,
    view: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    recipe: Recipe | str,
    jit_compile: bool = False,
    *,
    class_weights: ArrayLike | None = None,
    accumulate: int = 1,
    ema_model: keras.Model | None = None,
    replicas: int = 1,
    sync_bn: bool = False,
    image_dtype: tf.DType = tf.uint8,
) -> TrainStep:
    """Compile one training step of `model`, whose trainable variables it updates through its `view`.

    The loss is the mean cross-entropy on logits plus weight_decay · Σ tf.nn.l2_loss(w) over the variables that the
    recipe decays: the papers' decay, a gradient term weight_decay · w. AdamW decays in its update, so that its L2 term
    is 0. To it come the losses that the model has itself, of regularizers and `add_loss`. Which variables train is
    looked up here and at the first call, and holds from then on.

    With `accumulate`, the mean of the microbatches' gradients makes the one update: that of the whole batch, except
    that batch normalization takes its statistics from each microbatch. With `replicas`, the step is that of one of
    them, to be run by `Distribution.step`: the loss counts 1/replicas, gradients are summed once, before clipping, and
    the moving statistics are averaged, so that all replicas end each step with the same variables.

    Args:
        model: stock model with logits or probabilities.
        view: its `logits_view`, or the model itself where it has logits.
        optimizer: built over the trainable variables, and possibly others.
        recipe: it or its name; gives the decay, the smoothing of labels and the decay of the moving average.
        jit_compile: compile the step with XLA.
        class_weights: factor for the images of each class (C,), or None.
        accumulate: microbatches of a batch; the number of images must be a multiple of it.
        ema_model: `make_ema` of the model, which moves by the recipe's `ema` after each update; or None.
        replicas: how many of them share a batch.
        sync_bn: whether the view normalizes over all replicas.
        image_dtype: of the images that the step takes.

    Returns:
        step(images uint8 (B, H, W, C), labels int32 (B,), learning_rate float32 ()) -> float32 (3,):
        mean cross-entropy, L2 term with the model's own losses, and accuracy on this batch, before its update; of a
        replica, its summands.

    Raises:
        UserError: no recipe has this name, or this version of Keras cannot train on several replicas.
    """
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    variables = model.trainable_variables
    decayed = decayed_variables(model, recipe.decay)
    decay = 0.0 if recipe.optimizer == "adamw" else recipe.weight_decay
    image = tf.TensorSpec((None, *model.input_shape[1:]), image_dtype)
    signature = (image, tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.float32))

    averaged = [] if ema_model is None else ema_pairs(model, ema_model)
    ema = 0.0 if recipe.ema is None else recipe.ema
    # Synchronized statistics are the same everywhere as they are.
    statistics = [] if replicas == 1 or sync_bn else moving_statistics(model)
    if replicas > 1:
        disable_optimizer_all_reduce(optimizer)

    def backward(images: tf.Tensor, labels: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        # Watched by hand: below the lowest variable that trains, the tape then has nothing to go back through.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in variables])
            logits = tf.cast(view(images, training=True), tf.float32)
            loss = tf.reduce_mean(cross_entropy(labels, logits, recipe.label_smoothing, class_weights))
            l2 = decay * tf.add_n([tf.nn.l2_loss(v.value) for v in decayed])
            penalty = tf.add_n([l2, *view.losses])
            scaled = optimizer.scale_loss((loss + penalty) / replicas)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        right = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
        return gradients, tf.stack([loss, penalty, tf.reduce_mean(tf.cast(right, tf.float32))]) / replicas

    @tf.function(input_signature=signature, jit_compile=jit_compile, autograph=False)
    def step(images: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        optimizer.learning_rate = learning_rate
        if accumulate == 1:
            gradients, results = backward(images, labels)
        else:
            gradients, results = _mean_over_microbatches(backward, images, labels, accumulate, unrolled=sync_bn)
        if replicas > 1:
            gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        optimizer.apply(gradients, variables)
        sync_moving_stats(statistics)
        if averaged:
            update_ema(averaged, ema, optimizer.iterations)
        return results

    return step


def _mean_over_microbatches(
    backward: Backward, images: tf.Tensor, labels: tf.Tensor, count: int, unrolled: bool
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Means of what `backward` returns for each of `count` equal microbatches."""

    def split(batch: tf.Tensor) -> tf.Tensor:
        return tf.reshape(batch, tf.concat([[count, -1], tf.shape(batch)[1:]], axis=0))

    image_microbatches, label_microbatches = split(images), split(labels)

    def run_microbatch(k: tf.Tensor) -> list[tf.Tensor]:
        gradients, results = backward(
            tf.ensure_shape(image_microbatches[k], images.shape), tf.ensure_shape(label_microbatches[k], labels.shape)
        )
        return [value / count for value in (*gradients, results)]

    def add(k: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return k + 1, [total + value for total, value in zip(sums, run_microbatch(k), strict=True)]

    if unrolled:
        # Replicas cannot meet inside a loop of a graph, as synchronized statistics must.
        sums = run_microbatch(tf.constant(0))
        for k in range(1, count):
            with tf.control_dependencies(sums):
                _, sums = add(tf.constant(k), sums)
        return sums[:-1], sums[-1]
    # One at a time: to hold the activations of a single microbatch is what this is for.
    _, sums = tf.while_loop(
        lambda k, _: k < count, add, (tf.constant(1), run_microbatch(tf.constant(0))), parallel_iterations=1
    )
    return sums[:-1], sums[-1]


def make_multi_step(step: TrainStep, model: keras.Model, image_dtype: tf.DType = tf.uint8) -> TrainStep:
    """Compile K steps into one call: uint8 (K, B, H, W, C), int32 (K, B), rates float32 (K,) -> float32 (K, 3)."""
    image = tf.TensorSpec((None, None, *model.input_shape[1:]), image_dtype)
    signature = (image, tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None,), tf.float32))

    @tf.function(input_signature=signature)
    def steps(images: tf.Tensor, labels: tf.Tensor, learning_rates: tf.Tensor) -> tf.Tensor:
        count = tf.shape(learning_rates)[0]
        results = tf.TensorArray(tf.float32, size=count, element_shape=(3,))
        for k in tf.range(count):
            results = results.write(k, step(images[k], labels[k], learning_rates[k]))
        return results.stack()

    return steps


def group_batches(
    batches: Iterable[Batch], start: int, size: int, is_boundary: Callable[[int], bool]
) -> Iterator[list[Batch]]:
    """Group the batches from step `start` on by `size`, but over no number of steps done that `is_boundary`."""
    group = []
    for done, batch in enumerate(batches, start=start + 1):
        group.append(batch)
        if len(group) == size or is_boundary(done):
            yield group
            group = []


def run_group(functions: StepFunctions, group: list[Batch], learning_rates: np.ndarray) -> Any:
    """Results (n, 3) of the steps on n batches at the learning rates (n,)."""
    step, multi_step = functions
    if len(group) == 1:
        return step(*group[0], learning_rates[0])[None]
    first, second = (np.stack(column) for column in zip(*group, strict=True))
    return multi_step(first, second, learning_rates)
