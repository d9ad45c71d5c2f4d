"""The classic transfer run: a ResNet-152 from a local checkpoint, frozen but for a new head of 20 classes.

    python -m benchmarks.transfer [--folder FOLDER] [--precision auto]

Writes JPEG files of many sizes with a list of them (ten drawn shapes, each in colors and in gray), and a
checkpoint of the full network under torchvision's names; its numbers are random, scaled so that activations stay of
order one. Then `train` runs one epoch of 128 images with Adam at 1e-3 and the strong augmentation, in a process of its
own, whose peak memory is measured. Exit code 1 where that is above 3 GB, or where the best model was not kept.
"""

import argparse
import collections
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from resnet_tf.data.image_io import cv2
from resnet_tf.data.shapes import load_shapes
from resnet_tf.process import load_tensorflow

TRAIN, VALIDATION = 128, 40
MOST_GB = 3.0
BLOCKS = (3, 8, 36, 3)
FLAGS = (
    *("--model", "resnet152", "--freeze", "all", "--optimizer", "adam", "--learning-rate", "1e-3"),
    *("--schedule", "constant", "--augment", "strong", "--input-size", "256", "--batch-size", "16", "--epochs", "1"),
)


def write_images(folder):
    """Lists of the training and validation images, 20 classes in turn."""
    data = load_shapes(train_size=TRAIN + VALIDATION, test_size=10)
    rng = np.random.default_rng(0)
    lines = []
    for index, (image, label) in enumerate(zip(data.train.images, data.train.labels, strict=True)):
        gray = bool(index // 10 % 2)
        width, height = (int(side) for side in rng.integers(180, 640, 2))
        large = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        if gray:
            large = np.repeat(large.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
        cv2.imwrite(str(folder / f"photo {index}.jpg"), large[..., ::-1])
        lines.append(f"photo {index}.jpg {data.class_names[label]}{'-in-gray' if gray else ''}")
    lists = {"train": lines[:TRAIN], "valid": lines[TRAIN:]}
    for name, part in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    assert all(len({line.split()[-1] for line in part}) == 20 for part in lists.values())
    return f"list:{folder / 'train.txt'},{folder / 'valid.txt'}"


def torchvision_shapes():
    """Names and shapes of the tensors of torchvision's resnet152."""
    yield from conv_bn("conv1", "bn1", 64, 3, 7)
    into = 64
    for stage, blocks in enumerate(BLOCKS):
        width = 64 * 2**stage
        for block in range(blocks):
            place = f"layer{stage + 1}.{block}"
            for number, (out, channels, side) in enumerate(
                ((width, into, 1), (width, width, 3), (4 * width, width, 1))
            ):
                yield from conv_bn(f"{place}.conv{number + 1}", f"{place}.bn{number + 1}", out, channels, side)
            if block == 0:
                yield from conv_bn(f"{place}.downsample.0", f"{place}.downsample.1", 4 * width, into, 1)
            into = 4 * width
    yield from (("fc.weight", (1000, into)), ("fc.bias", (1000,)))


def conv_bn(conv, bn, out, channels, side):
    yield f"{conv}.weight", (out, channels, side, side)
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{bn}.{part}", (out,)


def value(name, shape, rng):
    """He's initialization; each residual branch ends small, so that 50 of them in a row do not explode."""
    if len(shape) > 1:
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if name.endswith(("bias", "running_mean")):
        return np.zeros(shape, np.float32)
    return np.full(shape, 0.2 if name.endswith("bn3.weight") else 1.0, np.float32)


def write_checkpoint(path):
    """A zip archive as torch.save writes it; returns the number of its parameters."""
    load_tensorflow()
    from tests.test_pretrained_torch import pickled, tensor

    rng = np.random.default_rng(1)
    parameters, description = 0, collections.OrderedDict()
    with zipfile.ZipFile(path, "w") as archive:
        for key, (name, shape) in enumerate(torchvision_shapes()):
            strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
            size = int(np.prod(shape))
            description[name] = tensor(shape, strides, numel=size, key=str(key))
            archive.writestr(f"archive/data/{key}", value(name, shape, rng).tobytes())
            parameters += 0 if "running" in name else size
        archive.writestr("archive/data.pkl", pickled(description))
    return parameters


def measure(folder, precision):
    dataset = write_images(folder)
    parameters = write_checkpoint(folder / "resnet152.pth")
    print(f"checkpoint of {parameters:,} parameters, {TRAIN} training and {VALIDATION} validation images", flush=True)
    run = folder / "run"
    argv = [*FLAGS, "--dataset", dataset, "--weights", str(folder / "resnet152.pth"), "--run-dir", str(run)]
    began = time.monotonic()
    code = subprocess.run(
        [sys.executable, "-m", "resnet_tf", "train", *argv, "--precision", precision],
        env={**os.environ, "KERAS_HOME": str(folder / "keras")},
        check=False,
    ).returncode
    if code:
        return code
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    best = report["best"]["validation_accuracy"]
    kept = (run / "best.keras").exists() and report["train_images"] == TRAIN
    print(
        f"{report['iterations']} updates, {seconds:.0f} s in all, peak memory {peak:.2f} GB (at most {MOST_GB:.2f}); "
        f"best.keras {'kept' if kept else 'NOT kept'} with validation accuracy {100 * best:.1f} %"
    )
    return 0 if kept and peak <= MOST_GB else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="an empty folder that stays (default: a temporary one)")
    parser.add_argument("--precision", default="auto")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        return measure(arguments.folder, arguments.precision)
    with tempfile.TemporaryDirectory() as folder:
        return measure(Path(folder), arguments.precision)


if __name__ == "__main__":
    raise SystemExit(main())
