"""Mirrored replicas beside one device, in a process of its own: `python -m tests.distributed.twins` prints JSON."""

import dataclasses
import json
import sys

import numpy as np

from resnet_tf.process import load_tensorflow

load_tensorflow()

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

from resnet_tf.fused import fused_view, synchronized_batch_norm  # noqa: E402
from resnet_tf.models.blocks import conv, residual_block  # noqa: E402
from resnet_tf.models.layers import head, model_input  # noqa: E402
from resnet_tf.recipes import Recipe, get_recipe  # noqa: E402
from resnet_tf.runtime import set_threads  # noqa: E402
from resnet_tf.training.distribute import Distribution, make_distribution  # noqa: E402
from resnet_tf.training.step import cross_entropy, make_ema, make_multi_step, make_optimizer, make_train_step  # noqa: E402

RECIPE = dataclasses.replace(get_recipe("he2015"), weight_decay=0.01)
BATCH = 16


def some_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(step)
    return rng.integers(0, 256, (BATCH, 16, 16, 3), dtype=np.uint8), rng.integers(0, 10, BATCH).astype(np.int32)


def small_network() -> keras.Model:
    """One residual unit: tracing takes nearly all of the time here, and every kind of variable is in it."""
    inputs, x = model_input((16, 16, 3), 8, mean=(125.0,) * 3, std=(63.0,) * 3)
    x = conv(x, 16, 3, use_bias=False, name="stem_conv")
    x = residual_block(x, 32, stride=2, version=1, shortcut="projection", name="stage1_block1")
    outputs = head(x, include_top=True, pooling=None, classes=10, activation=None)
    return keras.Model(inputs, outputs, name="small")


class Run:
    """A small network with fixed first weights on some replicas."""

    def __init__(
        self, replicas: Distribution, recipe: Recipe = RECIPE, *, sync_bn: bool = False, policy: str = "float32"
    ) -> None:
        self.replicas = replicas
        with replicas.scope():
            keras.utils.set_random_seed(1)
            self.model = small_network()
            self.ema_model = None if recipe.ema is None else make_ema(self.model)
            self.optimizer = make_optimizer(recipe, policy)
            self.optimizer.build(self.model.trainable_variables)
            view = fused_view(self.model, policy, sync_bn=sync_bn)
            of_replica = make_train_step(
                self.model,
                view,
                self.optimizer,
                recipe,
                jit_compile=False,
                accumulate=recipe.accumulate,
                ema_model=self.ema_model,
                replicas=replicas.count,
                sync_bn=sync_bn,
            )
        self.step = replicas.step(of_replica, recipe.accumulate)

    def train(self, steps: int, learning_rate: float = 0.01) -> np.ndarray:
        return np.array([self.step(*some_batch(k), np.float32(learning_rate)).numpy() for k in range(steps)])

    def variables(self) -> dict[str, keras.Variable]:
        found = {v.path: v for v in [*self.model.variables, *self.optimizer.variables]}
        return found | ({} if self.ema_model is None else {f"average/{v.path}": v for v in self.ema_model.variables})


def farthest(one: Run, other: Run) -> float:
    """Largest difference between two runs in any variable."""
    mine, theirs = one.variables(), other.variables()
    assert mine.keys() == theirs.keys()
    return max(float(np.abs(np.float64(v) - np.float64(theirs[path])).max()) for path, v in mine.items())


def agree(run: Run) -> bool:
    """Whether all replicas have the same bits."""
    assert run.replicas.strategy is not None
    copies = [run.replicas.strategy.experimental_local_results(v.value) for v in run.variables().values()]
    return all(all(np.array_equal(copy[0], other) for other in copy) for copy in copies)


def difference(
    pair: Distribution, steps: int, learning_rate: float = 0.01, policy: str = "float32", **changes: object
) -> float:
    """What two replicas with synchronized statistics and one device differ by after some steps of a recipe."""
    recipe = dataclasses.replace(RECIPE, **changes)  # type: ignore[arg-type]
    runs = [Run(replicas, recipe, sync_bn=True, policy=policy) for replicas in (Distribution(), pair)]
    results = [run.train(steps, learning_rate) for run in runs]
    assert np.abs(results[0] - results[1]).max() < 1e-4, results
    return farthest(*runs)


def halves(run: Run) -> list[float]:
    """The stock model's mean cross-entropy on each half of the first batch, before any update."""
    before = run.model.get_weights()
    images, labels = some_batch(0)
    half = BATCH // 2
    losses = [
        float(tf.reduce_mean(cross_entropy(labels[part], run.model(images[part], training=True))))
        for part in (slice(0, half), slice(half, None))
    ]
    run.model.set_weights(before)
    return losses


def large_mean(pair: Distribution) -> dict[str, float]:
    """Errors against float64 where the mean is a thousand times the deviation, over two unequal halves."""
    rng = np.random.default_rng(0)
    shape = (4, 8, 8, 3)
    x = np.concatenate([rng.normal(100, 0.1, shape), rng.normal(100.2, 0.1, shape)]).astype(np.float32)
    slope = rng.normal(size=x.shape).astype(np.float32)
    gamma, beta = np.array([0.5, 1, 2], np.float32), np.array([-1, 0, 1], np.float32)

    def of_replica(x: tf.Tensor, slope: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            weights = tf.constant(gamma), tf.constant(beta)
            tape.watch((x, *weights))
            y, mean, variance = synchronized_batch_norm(x, *weights, 1e-5)
            loss = tf.reduce_sum(y * slope)
        return [y, mean, variance, *tape.gradient(loss, (x, *weights))]

    strategy = pair.strategy
    assert strategy is not None

    @tf.function
    def run() -> list[list[tf.Tensor]]:
        parts = [
            strategy.experimental_distribute_values_from_function(
                lambda context, whole=whole: tf.split(whole, 2)[context.replica_id_in_sync_group]
            )
            for whole in (x, slope)
        ]
        return [list(strategy.experimental_local_results(v)) for v in strategy.run(of_replica, args=tuple(parts))]

    y, mean, variance, dx, dgamma, dbeta = (np.array(parts, np.float64) for parts in run())
    wide, over = np.float64(x), (0, 1, 2)
    scale = 1 / np.sqrt(wide.var(over) + 1e-5)
    normal = (wide - wide.mean(over)) * scale
    inner = slope - slope.mean(over, dtype=np.float64) - normal * (slope * normal).mean(over)

    def error(found: np.ndarray, true: np.ndarray) -> float:
        return float(np.abs(found - true).max() / np.abs(true).max())

    return {
        "output": error(np.concatenate(list(y)), normal * gamma + beta),
        "mean": error(mean, np.stack([wide.mean(over)] * 2)),
        "variance": error(variance, np.stack([wide.var(over)] * 2)),
        "x": error(np.concatenate(list(dx)), gamma * scale * inner),
        "gamma": error(dgamma.sum(0), (slope * normal).sum(over)),
        "beta": error(dbeta.sum(0), np.float64(slope).sum(over)),
    }


def main() -> None:
    set_threads(1)
    pair = make_distribution("mirrored", "cpu", 2)
    found: dict[str, object] = {"replicas": pair.count, "large_mean": large_mean(pair)}
    found["sync"] = difference(pair, 20, learning_rate=0.001)
    found["nesterov, clipped, averaged"] = difference(pair, 3, nesterov=True, clip_norm=0.5, ema=0.9)
    found["adamw, accumulated"] = difference(pair, 2, learning_rate=1e-4, optimizer="adamw", accumulate=2)
    found["float16"] = difference(pair, 2, policy="mixed_float16")
    own = Run(pair)
    found["halves"] = halves(own)
    found["first"] = own.train(5)[0].tolist()
    found["agree"] = agree(own)
    several = Run(pair)
    batches = [some_batch(k) for k in range(5)]
    together = make_multi_step(several.step, several.model)(
        np.stack([images for images, _ in batches]),
        np.stack([labels for _, labels in batches]),
        np.full(5, 0.01, np.float32),
    )
    assert together.shape == (5, 3)
    found["several"] = farthest(own, several)
    images = some_batch(0)[0][:7]
    found["forward"] = float(np.abs(pair.forward(own.model)(images) - own.model(images)).max())
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
