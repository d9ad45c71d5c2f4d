"""`resnet-tf predict` on 500 synthetic JPEGs of 500x375 with ResNet-50, against the bare forward passes.

    python -m benchmarks.predict [--images 500] [--batch-size 32]

Both run in this process, on the same compiled network, in turns; importing and loading are left out.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np

from resnet_tf.data.image_io import cv2
from resnet_tf.models.registry import build_model
from resnet_tf.prediction import classify, crop_of, expand_patterns, probabilities_of
from resnet_tf.process import load_tensorflow


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    load_tensorflow()
    model = build_model("resnet50", mean=(124, 116, 104), std=(58, 57, 57))
    probabilities = probabilities_of(model)
    framing = crop_of(model.input_shape, {}, None, None)
    size = arguments.batch_size
    sizes = [size] * (arguments.images // size) + [arguments.images % size] * bool(arguments.images % size)
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (size, 224, 224, 3), np.uint8)
    probabilities(batch)
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(arguments.images):
            smooth = cv2.resize(rng.integers(0, 256, (40, 50, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(Path(folder) / f"{i}.jpg"), smooth)
        for _ in range(arguments.repeats):
            began = time.perf_counter()
            for count in sizes:
                probabilities(batch[:count])
            bare = time.perf_counter() - began
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                found = list(classify(expand_patterns([folder]), probabilities, framing, batch_size=size))
            whole = time.perf_counter() - began
            assert len(found) == arguments.images
            ratios.append(whole / bare)
            print(f"bare {bare:.1f} s, predict {whole:.1f} s, ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {np.median(ratios):.3f}")


if __name__ == "__main__":
    main()
