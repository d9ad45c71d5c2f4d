"""Speed and memory of reading one's own images: the check, then an epoch of decoded and augmented batches.

    python -m benchmarks.decoding DATASET [--augment cifar] [--size 32] [--batch-size 128] [--workers 1] [--epochs 1]

DATASET is folder:PATH or list:FILE. Images a second are given by the clock and per second of processor time, which is
what a core does that nothing else runs on. Memory is the peak of the whole process.
"""

import argparse
import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from resnet_tf.data.image_check import check_images
from resnet_tf.data.image_folder import ImageFiles
from resnet_tf.data.image_io import cv2
from resnet_tf.data.image_list import find_images
from resnet_tf.data.loader import FileSource, ResizedSource, TrainLoader, source_statistics
from resnet_tf.data.transforms import AUGMENTATIONS, make_transforms


@contextlib.contextmanager
def timed(what: str, images: int) -> Iterator[None]:
    """Print how fast the block got through the images, and the memory at its peak."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    rate, per_core = images / (time.perf_counter() - clock), images / (time.process_time() - processor)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        f"{what:11} {images:6} images {rate:7.0f} images/s {per_core:7.0f} images/s per core, peak {peak:.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--augment", choices=AUGMENTATIONS, default="cifar")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cache", type=Path, help="file of the checks' results")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    measure(arguments, find_images(arguments.dataset))


def measure(arguments: argparse.Namespace, splits: dict[str, ImageFiles]) -> None:
    with timed("check", sum(map(len, splits.values()))):
        scanned = check_images(splits, on_bad="skip", cache=arguments.cache)
    print(scanned.counts(), {split: len(files) for split, files in scanned.kept.items()}, flush=True)
    files, chosen = scanned.kept["train"], make_transforms(arguments.augment, arguments.size)
    batches = TrainLoader(
        FileSource(files, chosen.min_side),
        chosen.train,
        batch_size=arguments.batch_size,
        seed=0,
        workers=arguments.workers,
    )
    steps = batches.steps_per_epoch
    for epoch in range(arguments.epochs):
        with timed("train epoch", steps * arguments.batch_size):
            for _ in batches.iterate(epoch * steps, (epoch + 1) * steps):
                pass
    with timed("statistics", len(files)):
        mean, deviation = source_statistics(ResizedSource(FileSource(files), chosen.eval), np.arange(len(files)))
    print("mean", [round(x, 2) for x in mean], "deviation", [round(x, 2) for x in deviation])


if __name__ == "__main__":
    main()
