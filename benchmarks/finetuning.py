"""What pretrained stages are worth: a network that knows five classes of CIFAR-10 learns the other five from little.

    python -m benchmarks.finetuning FOLDER OUT [--source-epochs 6] [--epochs 40] [--seeds 0,1,2]

FOLDER holds CIFAR-10 as JPEG files, train/CLASS/*.jpg and test/CLASS/*.jpg. A ResNet-20 is trained on all images of
five classes. On 100 images a class of the other five, the same network is then trained from scratch, and fine-tuned
from the first one's weights with its stem and two stages frozen, both with the same recipe and length; no setting was
chosen by the test images. OUT gets lists, runs and table.md.
"""

import argparse
from pathlib import Path

import numpy as np

from resnet_tf.cli.train import main as train

SOURCE = ("airplane", "automobile", "bird", "cat", "deer")
TARGET = ("dog", "frog", "horse", "ship", "truck")
IMAGES = 100


def write_list(path, folder, classes, part):
    """List a part of the images of each class, in an order drawn with a fixed seed."""
    lines = []
    for name in classes:
        files = sorted((folder / name).glob("*.jpg"))
        chosen = np.random.default_rng(0).permutation(len(files))[part]
        lines += [f"{files[i].resolve()} {name}" for i in sorted(chosen.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_lists(out, folder, name, classes, train):
    """Training images, of those that are left 500 a class to validate on, and all test images."""
    parts = {"train": train, "valid": slice(-500, None), "test": slice(None)}
    kinds = {"valid": "train"}
    return ",".join(
        write_list(out / f"{name}-{kind}.txt", folder / kinds.get(kind, kind), classes, part)
        for kind, part in parts.items()
    )


def accuracy(out, name, dataset, flags):
    argv = ["--model", "resnet20_v1", "--recipe", "quick", "--augment", "cifar", "--on-bad-image", "skip"]
    report = train([*argv, "--dataset", f"list:{dataset}", "--run-dir", str(out / name), *flags])
    return 100 * report["test"]["top1"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--source-epochs", default="6")
    parser.add_argument("--epochs", default="40")
    parser.add_argument("--seeds", default="0,1,2")
    arguments = parser.parse_args()
    folder, out = arguments.folder, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    source_lists = write_lists(out, folder, "source", SOURCE, slice(-500))
    target_lists = write_lists(out, folder, "target", TARGET, slice(IMAGES))
    source = accuracy(out, "source", source_lists, ["--epochs", arguments.source_epochs])
    rows = [f"| source classes ({', '.join(SOURCE)}) | | {source:.2f} |"]
    flags = ["--epochs", arguments.epochs, "--batch-size", "50", "--learning-rate", "0.1"]
    tuned = ["--weights", str(out / "source"), "--freeze", "stage2"]
    for seed in arguments.seeds.split(","):
        for name, more in (("scratch", []), ("fine-tuned", tuned)):
            top1 = accuracy(out, f"{name}-{seed}", target_lists, [*flags, *more, "--seed", seed])
            rows.append(f"| {name} | {seed} | {top1:.2f} |")
    text = "| run | seed | test accuracy % |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
