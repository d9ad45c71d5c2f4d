"""Cost of a training step with all but the classifier frozen, against one that trains everything (batch 128, 32x32).

python -m benchmarks.frozen_step [--model resnet20_v1] [--policy float32] [--rounds 7]
"""

import argparse
import time

import numpy as np

from resnet_tf.config import PRECISIONS
from resnet_tf.fused import fused_view
from resnet_tf.models.registry import build_model
from resnet_tf.process import load_tensorflow
from resnet_tf.recipes import get_recipe

STEPS = 5


def make_step(name, policy, last):
    from resnet_tf.models.layers import freeze
    from resnet_tf.training.step import make_optimizer, make_train_step

    model = build_model(name)
    optimizer = make_optimizer(get_recipe("he2015"), policy)
    optimizer.build(model.trainable_variables)
    freeze(model, last)
    return make_train_step(model, fused_view(model, policy), optimizer, get_recipe("he2015"), jit_compile=False)


def seconds(step, images, labels):
    began = time.perf_counter()
    for _ in range(STEPS):
        result = step(images, labels, np.float32(0.01))
    np.asarray(result)
    return (time.perf_counter() - began) / STEPS


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet20_v1")
    parser.add_argument("--policy", choices=PRECISIONS, default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    load_tensorflow()
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (128, 32, 32, 3), np.uint8), rng.integers(0, 10, 128).astype(np.int32)
    steps = [make_step(arguments.model, arguments.policy, last) for last in ("none", "all")]
    for step in steps:
        seconds(step, *batch)
    # Turn about, so that whatever else runs on the machine slows both alike.
    rounds = [[seconds(step, *batch) for step in steps] for _ in range(arguments.rounds)]
    whole, frozen = np.median(rounds, axis=0)
    ratio = np.median([f / w for w, f in rounds])
    print(
        f"{arguments.model} {arguments.policy}: {1e3 * whole:.1f} ms unfrozen, {1e3 * frozen:.1f} frozen, {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
