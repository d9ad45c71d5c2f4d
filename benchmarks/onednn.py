"""What oneDNN gives on processors without VNNI, where TensorFlow leaves it off unless told.

    python -m benchmarks.onednn [--nets resnet20_v2,ResNet50] [--rounds 5] [--json FILE]
    TF_ENABLE_ONEDNN_OPTS=1 python -m benchmarks.onednn --check

Training step and inference in float32, stock Keras and the fused view, each without and with oneDNN in turns. Networks
and batches are those of `benchmarks.networks` and `benchmarks.keras_applications`. Nothing else should run. `--check`
measures nothing: it names the small convolutions whose output or gradients are off from those in float64.
"""

import argparse
import itertools
import json
import sys

import numpy as np

from benchmarks import keras_applications, networks
from benchmarks.rounds import Contender, as_dict, measure, ratio, serve, table, timed, write_json

NETS = ("resnet20_v2", "resnet20_v1", *keras_applications.NETS)
WAYS = ("stock float32", "view float32")
TASKS = {"training": keras_applications.training_work, "inference": keras_applications.inference_work}


def contender(net: str, task: str, way: str) -> None:
    import tensorflow as tf

    if net in keras_applications.NETS:
        model, batch = keras_applications.build(net), keras_applications.batch(net)
    else:
        model, batch = networks.build(net), tuple(map(tf.constant, networks.data(net)))
    serve(timed(TASKS[task](model, way, batch)), len(batch[0]))


def check() -> None:
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def convolve(images, kernel, slopes, stride):
        strides = [1, stride, stride, 1]
        return {
            "output": tf.nn.conv2d(images, kernel, stride, "SAME"),
            "gradient of the input": tf.compat.v1.nn.conv2d_backprop_input(
                tf.shape(images), kernel, slopes, strides, "SAME"
            ),
            "gradient of the kernel": tf.compat.v1.nn.conv2d_backprop_filter(
                images, tf.shape(kernel), slopes, strides, "SAME"
            ),
        }

    rng, off, count = np.random.default_rng(0), {}, 0
    channels, filters = (*range(1, 10), 12, 16, 24, 32), (1, 3, 4, 5, 8, 12, 16, 32)
    for (batch, side), size, stride, c, f in itertools.product(
        ((8, 12), (16, 9)), (1, 2, 3, 5), (1, 2, 3), channels, filters
    ):
        out = -(-side // stride)
        shapes = (batch, side, side, c), (size, size, c, f), (batch, out, out, f)
        arrays = [rng.normal(0, 1, shape) for shape in shapes]
        found, exact = (convolve(*(tf.constant(a, kind) for a in arrays), stride) for kind in (tf.float32, tf.float64))
        count += 1
        for what, value in exact.items():
            if not np.linalg.norm(found[what].numpy() - value.numpy()) < 1e-5 * np.linalg.norm(value):
                off.setdefault(f"{size}x{size}, stride {stride}, {what}", set()).add(c)
    print(f"{count} shapes, of which are off:")
    for what, several in off.items():
        print(f"{what}, input channels {sorted(several)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    parser.add_argument("--check", action="store_true", help="compare the results of oneDNN's convolutions instead")
    arguments = parser.parse_args()
    if arguments.check:
        check()
        return
    nets = arguments.nets.split(",")
    results = {}
    for net, task in itertools.product(nets, TASKS):
        contenders = [
            Contender(
                "benchmarks.onednn",
                f"{way}, oneDNN {state}",
                {"net": net, "task": task, "way": way},
                {"TF_ENABLE_ONEDNN_OPTS": value},
            )
            for state, value in (("off", "0"), ("on", "1"))
            for way in WAYS
        ]
        measure(contenders, arguments.rounds)
        print(f"\n{net}, {task}\n{table(contenders, contenders[0], 'images/s')}", flush=True)
        print(f"view against stock, both with oneDNN: {ratio(contenders[3], contenders[2]):.2f}×", flush=True)
        results.setdefault(net, {})[task] = as_dict(contenders, contenders[0])
        write_json(arguments.json, results)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2].startswith("{"):
        contender(**json.loads(sys.argv[2]))
    else:
        main()
