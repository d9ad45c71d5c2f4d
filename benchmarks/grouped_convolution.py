"""A training step of resnext50_32x4d against one of resnet50, both under the fused view (batch 8, 224x224).

python -m benchmarks.grouped_convolution [--batch-size 8] [--repeats 5] [--policy float32]
"""

import argparse
import time

import numpy as np

from resnet_tf.config import PRECISIONS
from resnet_tf.fused import fused_view
from resnet_tf.models.registry import build_model
from resnet_tf.process import load_tensorflow


def make_step(name, policy, batch_size):
    import keras
    import tensorflow as tf

    model = build_model(name)
    view = fused_view(model, policy)
    optimizer = keras.optimizers.SGD(0.01, 0.9)
    optimizer.build(model.trainable_variables)
    images = tf.random.uniform((batch_size, 224, 224, 3))
    labels = tf.zeros(batch_size, tf.int32)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = view(images, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--policy", choices=PRECISIONS, default="float32")
    arguments = parser.parse_args()
    load_tensorflow()
    steps = {n: make_step(n, arguments.policy, arguments.batch_size) for n in ("resnet50", "resnext50_32x4d")}
    seconds = {name: [] for name in steps}
    for repeat in range(arguments.repeats + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if repeat:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s a step, {arguments.batch_size / median:.1f} images/s")
    print(f"ratio {medians['resnext50_32x4d'] / medians['resnet50']:.2f}")


if __name__ == "__main__":
    main()
