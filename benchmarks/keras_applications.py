"""Training step and inference of the networks of keras.applications, stock against their fused view.

    python -m benchmarks.keras_applications [--nets ResNet50,VGG16] [--rounds 5] [--json FILE]

A step is forward, backward and an update of SGD with momentum, compiled, on a constant batch; "stock float32" is what
`fit` compiles. Weights are random. First the outputs and gradients of the float32 view are compared with the stock
model's. Nothing else should run.
"""

import argparse
import json
import sys

import numpy as np

from benchmarks.rounds import Contender, as_dict, measure, serve, table, timed, write_json

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
WAYS = ("stock float32", "view float32", "view bfloat16")
# Largest differences allowed of the float32 view, where noise of one rounding does not make as much.
BOUNDS = {"outputs": 1e-5, "gradients": 1e-4}


def build(net: str):
    import keras

    keras.utils.set_random_seed(0)
    side = NETS[net][1]
    options = {"weights": None, "classes": CLASSES, "classifier_activation": None}
    return getattr(keras.applications, net)(input_shape=(side, side, 3), **options)


def batch(net: str):
    import tensorflow as tf

    count, side = NETS[net]
    rng = np.random.default_rng(0)
    # Smooth, and unlike each other: on noise all pixels of the last layers were alike, and their difference rounding.
    images = tf.image.resize(rng.uniform(0, 255, (count, 5, 5, 3)), (side, side), "bicubic").numpy().clip(0, 255)
    if net not in ("MobileNetV3Small", "EfficientNetB0", "EfficientNetV2B0"):  # the others scale pixels themselves
        images = images / 127.5 - 1
    return tf.constant(images), tf.constant(np.arange(count, dtype=np.int32) % CLASSES)


def run_of(model, way: str):
    """What runs: the model or its view."""
    from resnet_tf import fused_view

    kind, precision = way.split()
    if kind == "stock":
        return model
    return fused_view(model, "mixed_bfloat16" if precision == "bfloat16" else "float32")


def gradients_of(run, variables, images, labels, training=True):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, run(images, training=training))
        loss = tf.reduce_mean(losses)
    return loss, tape.gradient(loss, [variable.value for variable in variables])


def train_contender(net: str, way: str) -> None:
    import keras
    import tensorflow as tf

    model = build(net)
    run = run_of(model, way)
    if way == "stock float32":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
        step = model.make_train_function() or model.train_function
        repeated = tf.data.Dataset.from_tensors(batch(net)).cache().repeat().prefetch(2)
        iterator = iter(repeated)
        work = lambda: np.asarray(step(iterator)["loss"])  # noqa: E731
    else:
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(images, labels):
            loss, gradients = gradients_of(run, model.trainable_variables, images, labels)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        data = batch(net)
        work = lambda: step(*data).numpy()  # noqa: E731
    serve(timed(work), NETS[net][0])


def infer_contender(net: str, way: str) -> None:
    import tensorflow as tf

    run = run_of(build(net), way)
    forward = tf.function(lambda images: run(images, training=False))
    images = batch(net)[0]
    serve(timed(lambda: forward(images).numpy()), NETS[net][0])


def compare(net: str) -> dict[str, float]:
    """How far the float32 view is from the stock model: outputs relative to the largest, gradients to the norm of all.

    Batch normalization first takes the batch's statistics, without which nothing would reach the end of an untrained
    network. Some of those multiply every rounding: ResNet50's gradients in float32 are off by 2 % of those in float64,
    stock as well. So the differences stand beside what noise of one rounding on the images makes to the stock model.
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

    noise = 1 + 2.0**-23 * np.random.default_rng(1).choice([-1, 1], images.shape)
    stock = {training: gradients(model, images, training) for training in (False, True)}
    outputs = [np.asarray(each(images, training=False)) for each in (run, model)]
    return {
        "outputs": relative(*outputs, lambda values: np.abs(values).max()),
        "gradients": relative(gradients(run, images, False), stock[False], np.linalg.norm),
        "gradients in training": relative(gradients(run, images, True), stock[True], np.linalg.norm),
        "of noise": relative(gradients(model, images * noise.astype(np.float32), True), stock[True], np.linalg.norm),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    unknown = set(arguments.nets.split(",")) - set(NETS)
    if unknown:
        parser.error(f"--nets {','.join(sorted(unknown))} is not known; allowed: {', '.join(NETS)}")
    results = {}
    for net in arguments.nets.split(","):
        found = compare(net)
        results[net] = {"differences": found}
        too_far = [what for what, bound in BOUNDS.items() if found[what] > max(bound, 2 * found["of noise"])]
        shown = ", ".join(f"{what} {value:.1e}" for what, value in found.items())
        print(f"{net}, differences: {shown}{'; TOO FAR: ' + ', '.join(too_far) if too_far else ''}", flush=True)
        for task in ("training", "inference"):
            contenders = [Contender("benchmarks.keras_applications", w, {"net": net, "task": task}) for w in WAYS]
            measure(contenders, arguments.rounds)
            print(f"\n{net}, {task}\n{table(contenders, contenders[0], 'images/s')}", flush=True)
            results[net][task] = as_dict(contenders, contenders[0])
        write_json(arguments.json, results)
    for task in ("training", "inference"):
        for way in WAYS[1:]:
            ratios = sorted(results[net][task][way]["ratio"] for net in results)
            print(f"{task}, {way}: median {np.median(ratios):.2f}×, lowest {ratios[0]:.2f}×")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2].startswith("{"):
        options = json.loads(sys.argv[2])
        contender = train_contender if options["task"] == "training" else infer_contender
        contender(options["net"], sys.argv[1])
    else:
        main()
