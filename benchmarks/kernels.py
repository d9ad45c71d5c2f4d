"""Convolutions and normalizations in float32 and in bfloat16, forward and backward: what `fused_view` keeps where.

    python -m benchmarks.kernels [--rounds 9]

Batches of 8 images. What comes in and goes out is bfloat16, as between the layers of a view, so that float32 pays for
the conversions; a ratio above 1 speaks for bfloat16. Nothing else should run.
"""

import argparse
import statistics

import tensorflow as tf

from benchmarks.rounds import timed

BATCH = 8
CHANNELS = (24, 32, 40, 64, 72, 96, 120, 144, 240, 728)
DEPTHWISE = [(channels, kernel, stride) for channels in (64, 144, 288) for kernel in (3, 5) for stride in (1, 2)]
CONVOLUTIONS = ((3, 32, 3, 112), (16, 16, 3, 56), (64, 64, 3, 28), (256, 64, 1, 28), (40, 240, 1, 14), (512, 512, 3, 4))


def normalization(channels: int):
    def run(x, weights):
        gamma, beta = (tf.cast(weight, tf.float32) for weight in weights)
        return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=1e-3, is_training=True)[0]

    return f"normalization, {channels} channels, 28²", run, (28, channels), [tf.ones(channels), tf.zeros(channels)]


def depthwise(channels: int, kernel: int, stride: int):
    def run(x, weights):
        return tf.nn.depthwise_conv2d(x, weights[0], (1, stride, stride, 1), "SAME")

    name = f"depthwise, {channels} channels, {kernel}x{kernel}, stride {stride}, 28²"
    return name, run, (28, channels), [tf.random.normal((kernel, kernel, channels, 1))]


def convolution(channels: int, filters: int, kernel: int, side: int):
    def run(x, weights):
        return tf.nn.conv2d(x, weights[0], 1, "SAME")

    name = f"convolution, {channels} to {filters} channels, {kernel}x{kernel}, {side}²"
    return name, run, (side, channels), [tf.random.normal((kernel, kernel, channels, filters))]


def work(run, shape: tuple[int, int], weights: list, dtype: tf.DType):
    """A function that computes output and gradients, between tensors of bfloat16."""
    side, channels = shape
    images = tf.cast(tf.random.normal((BATCH, side, side, channels)), tf.bfloat16)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch((images, *weights))
            y = run(tf.cast(images, dtype), [tf.cast(weight, dtype) for weight in weights])
            y = tf.cast(y, tf.bfloat16)
        return tape.gradient(y, (images, *weights))

    return lambda: [gradient.numpy() for gradient in step()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    cases = [*(normalization(c) for c in CHANNELS), *(depthwise(*d) for d in DEPTHWISE)]
    cases += [convolution(*c) for c in CONVOLUTIONS]
    print("| | float32, ms | bfloat16, ms | ratio |\n|---|---|---|---|")
    for name, run, shape, weights in cases:
        steps = [timed(work(run, shape, weights, dtype)) for dtype in (tf.float32, tf.bfloat16)]
        times = [[200 * step(5) for step in steps] for _ in range(rounds + 1)][1:]
        wide, narrow = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(f"| {name} | {wide:.2f} | {narrow:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
