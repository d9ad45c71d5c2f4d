"""Training step and inference of the networks of keras.applications, stock against their fused view.

    python -m benchmarks.keras_applications [--nets ResNet50,VGG16] [--rounds 5] [--scale 1] [--json FILE]

A step is forward, backward and an update of SGD with momentum, compiled, on a constant batch; "stock float32" is what
`fit` compiles. Weights are random. First the outputs and gradients of the float32 view are compared with the stock
model's. Nothing else should run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.rounds import Contender, as_dict, measure, table, timed, write_json

SECONDS = 1.0  # that a turn lasts
# Images of a training batch, and their side: what two cores bear in a second or so.
NETS = {
    "ResNet50": (8, 128),
    "ResNet50V2": (8, 128),
    "VGG16": (8, 96),
    "InceptionV3": (8, 139),
    "Xception": (8, 128),
    "MobileNetV2": (16, 128),
    "MobileNetV3Small": (16, 128),
    "DenseNet121": (8, 128),
    "EfficientNetB0": (8, 128),
    "EfficientNetV2B0": (8, 128),
}
CLASSES = 10
WAYS = ("stock float32", "view float32", "view bfloat16", "view auto")
INFERENCE_WAYS = (*WAYS, "folded auto")
# Largest differences allowed of the float32 view, where noise of one rounding does not make as much.
BOUNDS = {"outputs": 1e-5, "gradients": 1e-4}


def build(net: str):
    import keras

    keras.utils.set_random_seed(0)
    side = NETS[net][1]
    options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
    return getattr(keras.applications, net)(input_shape=(side, side, 3), **options)


def batch(net: str, scale: int = 1):
    import tensorflow as tf

    count, side = scale * NETS[net][0], NETS[net][1]
    rng = np.random.default_rng(0)
    # Smooth, and unlike each other: on noise all pixels of the last layers were alike, and their difference rounding.
    images = tf.image.resize(rng.uniform(0, 255, (count, 5, 5, 3)), (side, side), "bicubic").numpy().clip(0, 255)
    if net not in ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0"):  # the others scale pixels themselves
        images = images / 127.5 - 1
    return tf.constant(images), tf.constant(np.arange(count, dtype=np.int32) % CLASSES)


def run_of(model, way: str):
    """What runs: the model, its view, or the view of its folded copy."""
    from resnet_tf import fold_batch_norm, fused_view

    kind, precision = way.split()
    if kind == "stock":
        return model
    policy = {"bfloat16": "mixed_bfloat16"}.get(precision, precision)
    return fused_view(fold_batch_norm(model) if kind == "folded" else model, policy)


def gradients_of(run, variables, images, labels, training=True):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, run(images, training=training))
        loss = tf.reduce_mean(losses)
    return loss, tape.gradient(loss, [variable.value for variable in variables])


def training_work(model, way: str, data):
    """A function that takes one step."""
    import keras
    import tensorflow as tf

    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    if way == "stock float32":
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        step = model.make_train_function() or model.train_function
        iterator = iter(tf.data.Dataset.from_tensors(data).cache().repeat().prefetch(2))
        return lambda: np.asarray(step(iterator)["loss"])
    run = run_of(model, way)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(images, labels):
        loss, gradients = gradients_of(run, model.trainable_variables, images, labels)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return lambda: step(*data).numpy()


def inference_work(model, way: str, data):
    """A function that classifies the batch."""
    import tensorflow as tf

    run = run_of(model, way)
    forward = tf.function(lambda images: run(images, training=False))
    return lambda: forward(data[0]).numpy()


@dataclass
class Inline(Contender):
    """A contender in this process: only one runs at a time, and all over the same variables."""

    work: Callable[[], object] | None = None

    def start(self) -> None:
        """Compile and warm up."""
        self._run(3)
        self.items = float(self.options["images"])
        self.count = max(1, round(SECONDS / (self._run(2) / 2)))

    def stop(self) -> None:
        """Do nothing: there is no process."""

    def _run(self, count: int) -> float:
        return timed(self.work)(count)


def compare(net: str) -> dict[str, float]:
    """How far the float32 view is from the stock model: outputs relative to the largest, gradients to the norm of all.

    Batch normalization first takes the batch's statistics, without which nothing would reach the end of an untrained
    network. Some of those multiply every rounding: ResNet50's gradients in float32 are off by 2 % of those in float64,
    stock as well. So the differences stand beside what noise of one rounding on the images makes to the stock model: of
    five draws the most, as a single one may miss the few numbers that decide.
    """
    import keras

    model, (images, labels) = build(net), batch(net)
    run = run_of(model, "view float32")
    momenta = [(layer, layer.momentum) for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer, _ in momenta:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in momenta:
        layer.momentum = momentum
    before = [variable.numpy() for variable in model.variables]  # seeds of dropout too

    def gradients(network, pixels, training):
        found = gradients_of(network, model.trainable_variables, pixels, labels, training)[1]
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        return np.concatenate([np.ravel(gradient) for gradient in found])

    def relative(found, expected, norm):
        return float(norm(found - expected) / norm(expected))

    stock = {training: gradients(model, images, training) for training in (False, True)}

    def of_noise(seed):
        noise = 1 + 2.0**-23 * np.random.default_rng(seed).choice([-1, 1], images.shape)
        noisy = images * noise.astype(np.float32)
        return max(relative(gradients(model, noisy, training), stock[training], np.linalg.norm) for training in stock)

    outputs = [np.asarray(each(images, training=False)) for each in (run, model)]
    return {
        "outputs": relative(*outputs, lambda values: np.abs(values).max()),
        "gradients": relative(gradients(run, images, False), stock[False], np.linalg.norm),
        "gradients in training": relative(gradients(run, images, True), stock[True], np.linalg.norm),
        "of noise": max(of_noise(seed) for seed in range(5)),
    }


def measured(net: str, rounds: int, scale: int) -> dict:
    """Differences and rates of one network, printed as they come."""
    found = compare(net)
    too_far = [what for what, bound in BOUNDS.items() if found[what] > max(bound, 2 * found["of noise"])]
    shown = ", ".join(f"{what} {value:.1e}" for what, value in found.items())
    print(f"{net}, differences: {shown}{'; TOO FAR: ' + ', '.join(too_far) if too_far else ''}", flush=True)
    results = {"differences": found}
    model, data = build(net), batch(net, scale)
    for task, ways, work in (("training", WAYS, training_work), ("inference", INFERENCE_WAYS, inference_work)):
        contenders = [Inline("", way, {"images": len(data[0])}, work=work(model, way, data)) for way in ways]
        measure(contenders, rounds)
        print(f"\n{net}, {task}\n{table(contenders, contenders[0], 'images/s')}", flush=True)
        results[task] = as_dict(contenders, contenders[0])
    return results


def markdown(results: dict, task: str) -> str:
    """Rates of the stock model, and ratios of the others to it, as a table."""
    ways = list(next(iter(results.values()))[task])
    lines = [f"| {task} | {ways[0]}, images/s | {' | '.join(ways[1:])} |", "|---" * (len(ways) + 1) + "|"]
    for net, found in results.items():
        ratios = " | ".join(f"{found[task][way]['ratio']:.2f} ×" for way in ways[1:])
        lines.append(f"| {net} | {found[task][ways[0]]['median']:.1f} | {ratios} |")
    medians = (np.median([found[task][way]["ratio"] for found in results.values()]) for way in ways[1:])
    return "\n".join([*lines, f"| median | | {' | '.join(f'{value:.2f} ×' for value in medians)} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="times as many images in a batch (default: 1)")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    nets = arguments.nets.split(",")
    if unknown := set(nets) - set(NETS):
        parser.error(f"--nets {','.join(sorted(unknown))} is not known; allowed: {', '.join(NETS)}")
    if len(nets) == 1:
        write_json(arguments.json, {nets[0]: measured(nets[0], arguments.rounds, arguments.scale)})
        return
    options = ["--rounds", str(arguments.rounds), "--scale", str(arguments.scale)]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for net in nets:  # each in a process of its own, whose memory is its own
            path = Path(folder) / net
            command = [sys.executable, "-m", "benchmarks.keras_applications", "--nets", net, "--json", str(path)]
            subprocess.run([*command, *options], check=True)
            results |= json.loads(path.read_text())
            write_json(arguments.json, results)
    print(f"\n{markdown(results, 'training')}\n\n{markdown(results, 'inference')}")


if __name__ == "__main__":
    main()
