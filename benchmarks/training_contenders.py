"""The contenders of `benchmarks.training`, each run in a process of its own."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.networks import build, data, torch_inputs
from benchmarks.rounds import serve, timed


def compiled_step(model: str, policy: str):
    from resnet_tf import RECIPES, fused_view
    from resnet_tf.runtime import set_threads
    from resnet_tf.training.step import make_optimizer, make_train_step

    set_threads(0)
    recipe = RECIPES["he2015"]
    network = build(model)
    optimizer = make_optimizer(recipe, policy)
    optimizer.build(network.trainable_variables)
    return network, optimizer, make_train_step(network, fused_view(network, policy), optimizer, recipe, False)


def ours(model: str, policy: str) -> None:
    import tensorflow as tf

    _, _, step = compiled_step(model, policy)
    images, labels = (tf.constant(array) for array in data(model))
    rate = tf.constant(0.01)
    serve(timed(lambda: step(images, labels, rate).numpy()), len(images))


class Silent:
    """A logger that logs nothing."""

    def progress(self, *_) -> None:
        pass

    def evaluated(self, *_) -> None:
        pass

    def log(self, *_) -> None:
        pass


def whole_loop(model: str, policy: str) -> None:
    from resnet_tf.data.loader import ArraySource, TrainLoader
    from resnet_tf.data.shapes import load_shapes
    from resnet_tf.data.transforms import PadCropFlip
    from resnet_tf.recipes import RECIPES
    from resnet_tf.training.run_dir import RunDir
    from resnet_tf.training.schedule import Schedule
    from resnet_tf.training.trainer import Trainer

    train = load_shapes().train
    network, optimizer, step = compiled_step(model, policy)
    folder = RunDir(Path(tempfile.mkdtemp()))
    folder.lock()
    batches = TrainLoader(ArraySource(train.images, train.labels), PadCropFlip(fill=(120,)), batch_size=128, seed=0)
    training = Trainer(
        model=network,
        optimizer=optimizer,
        step_functions=(step, step),
        schedule=Schedule(RECIPES["he2015"], 0),
        loader=batches,
        evaluate=None,
        save_best=lambda _: None,
        run_dir=folder,
        evaluate_every=10**9,
        checkpoint_seconds=None,
        logger=Silent(),
    )

    def run(count: int) -> float:
        training.schedule.iterations = training.step + count
        training.fit()
        return count * 128 / training.history[-1]["images_per_second"]

    serve(run, 128)


def model_fit(model: str) -> None:
    import keras

    images, labels = data(model)
    network = build(model)
    network.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    repeats = 8
    many, many_labels = np.tile(images, (repeats, 1, 1, 1)), np.tile(labels, repeats)
    serve(
        timed(lambda: network.fit(many, many_labels, batch_size=len(images), epochs=1, verbose=0)),
        repeats * len(images),
    )


def tutorial(model: str) -> None:
    """The loop of the tutorials: stock layers with biases, OpenCV between the steps, nothing in the background."""
    import cv2
    import keras
    import tensorflow as tf

    from resnet_tf import build_model

    images, labels = data(model)
    bias = {} if model == "resnet50" else {"use_bias": True}
    network = build_model(model, classes=10, **bias)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True)
    optimizer.build(network.trainable_variables)
    kernels = [v for v in network.trainable_variables if v.name == "kernel"]

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            logits = network(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
            loss += 1e-4 * tf.add_n([tf.nn.l2_loss(v.value) for v in kernels])
        variables = network.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
        return loss

    def augmented(image):
        side = image.shape[0]
        padded = cv2.copyMakeBorder(image, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        y, x = np.random.randint(0, 9, 2)
        crop = padded[y : y + side, x : x + side]
        return cv2.flip(crop, 1) if np.random.rand() < 0.5 else crop

    def work():
        batch = np.stack([augmented(image) for image in images]).astype(np.float32)
        step((batch - 120.0) / 64.0, labels).numpy()

    serve(timed(work), len(images))


def torch(model: str, how: str) -> None:
    import torch as t

    network, x, y = torch_inputs(model, how)
    network.train()
    optimizer = t.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    forward = t.compile(network) if "compiled" in how else network

    def work():
        optimizer.zero_grad(set_to_none=True)
        with t.autocast("cpu", t.bfloat16, enabled="bfloat16" in how):
            loss = t.nn.functional.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()

    serve(timed(work), len(x))


def matmul(kind: str) -> None:
    import tensorflow as tf

    size = 2048
    a = tf.cast(tf.random.normal((size, size)), kind)
    multiply = tf.function(lambda: tf.reduce_sum(tf.cast(tf.matmul(a, a), tf.float32)))
    serve(timed(lambda: multiply().numpy()), 2 * size**3)


def main() -> None:
    name, options = sys.argv[1], json.loads(sys.argv[2])
    model = options.get("model", "")
    kind, _, how = name.partition(" ")
    policy = "mixed_bfloat16" if how == "bfloat16" else how
    runs = {
        "ours": lambda: ours(model, policy),
        "loop": lambda: whole_loop(model, policy),
        "model.fit": lambda: model_fit(model),
        "tutorial": lambda: tutorial(model),
        "torch": lambda: torch(model, how),
        "matmul": lambda: matmul(how),
    }
    runs[kind]()


if __name__ == "__main__":
    main()
