"""Speed of the input pipeline: augmented 32x32 images a second, without a network.

python -m benchmarks.pipeline
"""

import time

import numpy as np

from resnet_tf.data.loader import ArraySource, TrainLoader
from resnet_tf.data.transforms import NoTransform, PadCropFlip

BATCH, STEPS, ROUNDS = 128, 400, 5


def main() -> None:
    rng = np.random.default_rng(0)
    source = ArraySource(rng.integers(0, 256, (50_000, 32, 32, 3), np.uint8), np.zeros(50_000, np.int32))
    for policy in (PadCropFlip(fill=(125, 123, 114)), NoTransform()):
        for workers in (0, 1, 2):
            rates = [rate(source, policy, workers) for _ in range(ROUNDS)]
            how = f"{workers} workers" if workers else "inline"
            print(f"{type(policy).__name__:16} {how:10} {np.median(rates):10,.0f} images/s")


def rate(source: ArraySource, policy, workers: int) -> float:
    batches = TrainLoader(source, policy, batch_size=BATCH, seed=0, workers=max(1, workers))
    batches.batch(0)
    began = time.perf_counter()
    if workers:
        for _ in batches.iterate(1, STEPS):
            pass
    else:
        for step in range(1, STEPS):
            batches.batch(step)
    return (STEPS - 1) * BATCH / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
