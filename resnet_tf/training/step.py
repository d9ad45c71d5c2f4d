"""The compiled training step."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from resnet_tf.recipes import Recipe
from resnet_tf.summary import flat_layers
from resnet_tf.training.optimizer import decayed_variables, ema_pairs, update_ema


def cross_entropy(
    labels: tf.Tensor, logits: tf.Tensor, smoothing: float = 0.0, class_weights: ArrayLike | None = None
) -> tf.Tensor:
    """Cross-entropy of each image in nats, float32 (B,).

    Args:
        labels: true classes, int32 (B,).
        logits: float32 (B, C).
        smoothing: share of the target that is spread evenly over all classes (1512.00567 section 7).
        class_weights: factor for the images of each class (C,), or None.
    """
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if smoothing:
        to_all = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
        losses = (1.0 - smoothing) * losses + smoothing * to_all
    if class_weights is not None:
        losses *= tf.gather(tf.constant(class_weights, tf.float32), labels)
    return losses


def balanced_weights(labels: ArrayLike, classes: int) -> NDArray[np.float64]:
    """N / (C · n) for each class of n among N images: all classes count alike, and the mean factor is 1.

    Args:
        labels: true classes, integers (N,).
        classes: C; a class without images gets 0.
    """
    members = np.bincount(np.asarray(labels), minlength=classes)
    return np.divide(members.sum() / classes, members, out=np.zeros(classes), where=members > 0)


def sum_gradients(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """Each gradient summed over all replicas; to be called in each of them."""
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def disable_optimizer_all_reduce(optimizer: keras.optimizers.Optimizer) -> None:
    """Make an optimizer take gradients as they are, which Keras' sum over replicas themselves.

    They do so after clipping and, in float16, after looking for infinities, so that each replica would clip its own
    part, and an infinity in a replica other than the first would be missed.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
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


# Images and labels, or what stands for them on the device: NumPy arrays, or tensors.
Batch = tuple[Any, Any]
TrainStep = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# Of images and labels: gradients by variable, and what a step returns.
Backward = Callable[[tf.Tensor, tf.Tensor], tuple[list[tf.Tensor], tf.Tensor]]


def make_train_step(
    model: keras.Model,
    view: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    recipe: Recipe,
    jit_compile: bool,
    class_weights: ArrayLike | None = None,
    *,
    accumulate: int = 1,
    average: keras.Model | None = None,
    replicas: int = 1,
    sync_bn: bool = False,
) -> TrainStep:
    """Compile the update of the trainable variables of `model` through its `view`.

    What is trainable is looked up here and at the first call, and holds for the step's whole life.

    The loss is the mean cross-entropy on logits plus weight_decay · Σ tf.nn.l2_loss(w) over the
    variables that the recipe decays: the papers' decay, a gradient term weight_decay · w. AdamW decays in its update,
    so that its L2 term is 0. Softened targets and weighed classes are part of the loss.

    With `accumulate`, a batch goes through the network in equal parts, one after the other, and the mean of their
    gradients makes the one update: that of the whole batch, but that batch normalization which trains normalizes
    each part by itself, and moves its statistics with each part.

    With `replicas`, the step is that of one of them, to be run by `Distribution.step`: each has an equal share of the
    batch, the loss and its L2 term count 1/replicas, gradients are summed once, before clipping, and the moving
    statistics are averaged, so that all replicas end each step with the same variables.

    Args:
        model: stock model with logits.
        view: `fused_view` of the model, or the model itself.
        optimizer: built over these variables at least.
        recipe: gives the decay and the smoothing of labels.
        jit_compile: compile the step with XLA.
        class_weights: factor for the images of each class (C,), or None.
        accumulate: parts of a batch; the number of images must be a multiple of it.
        average: `make_ema` of the model, which moves by the recipe's `ema` after each update; or None.
        replicas: how many of them share a batch.
        sync_bn: whether the view normalizes over all replicas.

    Returns:
        step(images uint8 (B, H, W, C), labels int32 (B,), learning_rate float32 ()) -> float32 (3,):
        mean cross-entropy, L2 term and fraction right of this batch, before its update; of a replica, its part of
        them, to be summed.
    """
    variables = model.trainable_variables
    decayed = decayed_variables(model, recipe.decay)
    decay = 0.0 if recipe.optimizer == "adamw" else recipe.weight_decay
    image = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
    signature = (image, tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.float32))

    averaged = [] if average is None else ema_pairs(model, average)
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
            scaled = optimizer.scale_loss((loss + l2) / replicas)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        right = tf.equal(tf.argmax(logits, axis=-1, output_type=tf.int32), labels)
        return gradients, tf.stack([loss, l2, tf.reduce_mean(tf.cast(right, tf.float32))]) / replicas

    @tf.function(input_signature=signature, jit_compile=jit_compile)
    def step(images: tf.Tensor, labels: tf.Tensor, learning_rate: tf.Tensor) -> tf.Tensor:
        optimizer.learning_rate = learning_rate
        if accumulate == 1:
            gradients, results = backward(images, labels)
        else:
            gradients, results = _mean_of_parts(backward, images, labels, accumulate, unrolled=sync_bn)
        if replicas > 1:
            gradients = sum_gradients(gradients)
        optimizer.apply(gradients, variables)
        sync_moving_stats(statistics)
        if averaged:
            update_ema(averaged, ema, optimizer.iterations)
        return results

    return step


def _mean_of_parts(
    backward: Backward, images: tf.Tensor, labels: tf.Tensor, count: int, unrolled: bool
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Means of what `backward` returns for each of `count` equal parts of a batch."""

    def in_parts(whole: tf.Tensor) -> tf.Tensor:
        return tf.reshape(whole, tf.concat([[count, -1], tf.shape(whole)[1:]], axis=0))

    image_parts, label_parts = in_parts(images), in_parts(labels)

    def of_part(k: tf.Tensor) -> list[tf.Tensor]:
        gradients, results = backward(
            tf.ensure_shape(image_parts[k], images.shape), tf.ensure_shape(label_parts[k], labels.shape)
        )
        return [value / count for value in (*gradients, results)]

    def add(k: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return k + 1, [total + value for total, value in zip(sums, of_part(k), strict=True)]

    if unrolled:
        # Replicas cannot meet inside a loop of a graph, as synchronized statistics must.
        sums = of_part(tf.constant(0))
        for k in range(1, count):
            with tf.control_dependencies(sums):
                _, sums = add(tf.constant(k), sums)
        return sums[:-1], sums[-1]
    # One part at a time: to hold the activations of a part alone is what this is for.
    _, sums = tf.while_loop(
        lambda k, _: k < count, add, (tf.constant(1), of_part(tf.constant(0))), parallel_iterations=1
    )
    return sums[:-1], sums[-1]


def make_multi_step(step: TrainStep, model: keras.Model) -> TrainStep:
    """Compile several updates into one call, for devices that finish a step before the host can ask for the next.

    Args:
        step: a `make_train_step`.
        model: its model.

    Returns:
        steps(images uint8 (K, B, H, W, C), labels int32 (K, B), learning_rates float32 (K,)) -> float32 (K, 3).
    """
    image = tf.TensorSpec((None, None, *model.input_shape[1:]), tf.uint8)
    signature = (image, tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None,), tf.float32))

    @tf.function(input_signature=signature)
    def steps(images: tf.Tensor, labels: tf.Tensor, learning_rates: tf.Tensor) -> tf.Tensor:
        count = tf.shape(learning_rates)[0]
        results = tf.TensorArray(tf.float32, size=count, element_shape=(3,))
        for k in tf.range(count):
            results = results.write(k, step(images[k], labels[k], learning_rates[k]))
        return results.stack()

    return steps


class Switch(Protocol):
    """A change of what trains, at one iteration of a run."""

    at: int

    def functions(self, step: int) -> tuple[TrainStep, TrainStep]:
        """One update and several in one call, as they are from update `step` on until the switch or the end."""
        ...


class StepRunner:
    """Hands batches to the compiled update that is in force."""

    def __init__(self, step: TrainStep, steps: TrainStep | None, per_call: int, switch: Switch | None) -> None:
        """Take one update, several in one call where `per_call` is above 1, and what changes them during the run."""
        self._step, self._steps = step, steps or step
        self._per_call, self._switch = per_call, switch

    def groups(self, batches: Iterable[Batch], start: int, is_boundary: Callable[[int], bool]) -> Iterator[list[Batch]]:
        """Batches of one call each, from update `start` on; none reaches over the switch or a boundary.

        `is_boundary` is asked about a number of updates done.
        """
        group = []
        for done, batch in enumerate(batches, start=start + 1):
            group.append(batch)
            at_switch = self._switch is not None and done == self._switch.at
            if len(group) == self._per_call or at_switch or is_boundary(done):
                yield group
                group = []

    def run(self, start: int, group: list[Batch], rates: np.ndarray) -> Any:
        """Results (n, 3) of the n updates from `start` on, at the learning rates (n,)."""
        if self._switch is not None:
            self._step, self._steps = self._switch.functions(start)
        if len(group) == 1:
            return self._step(*group[0], rates[0])[None]
        first, second = (np.stack(part) for part in zip(*group, strict=True))
        return self._steps(first, second, rates)
