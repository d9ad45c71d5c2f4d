"""Hash what short trainings of every kind end with, to show that a refactoring changed no bit of any.

    python -m tests.golden --write golden.json     # before
    python -m tests.golden --check golden.json     # after, on the same machine

Each configuration trains 30 steps by the command line with one thread, and is hashed twice: every array of its last
checkpoint (weights, moving statistics, optimizer slots, averages), and its log of the steps. The hashes hold for one
machine and one version of TensorFlow, so they are not committed.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STEPS = 30
SHARED = f"--seed 3 --device cpu --threads 1 --batch-size 32 --iterations {STEPS} --eval-every 15 --checkpoint-every 10"
CONFIGURATIONS = {
    "v1": "--model resnet8_v1 --dataset shapes --precision float32",
    "v2": "--model resnet8_v2 --dataset shapes --precision float32 --eval-train",
    "projection": "--model resnet8_v2 --dataset shapes --precision float32 --recipe tutorial",
    "bfloat16": "--model resnet8_v2 --dataset shapes --precision mixed_bfloat16 --warmup error",
    "ema_accumulate": "--model resnet8_v2 --dataset shapes --precision float32 --ema 0.99 --accumulate 2",
    "adamw_smoothing": "--model resnet8_v1 --dataset shapes --precision float32 --optimizer adamw "
    "--learning-rate 0.001 --label-smoothing 0.1 --clip-norm 1 --schedule cosine",
    "folder_imagenet": "--model resnet18 --dataset folder:{folder} --precision mixed_bfloat16 --augment imagenet "
    "--recipe he2015 --input-size 64 --class-weights balanced",
    "strong": "--model resnet8_v2 --dataset shapes --precision float32 --augment strong --decay all",
    "unfreezing": "--model resnet8_v1 --dataset shapes --precision float32 --weights {runs}/v1 --freeze stage2 "
    "--recipe he2015 --unfreeze-at 15 --unfreeze-learning-rate 0.01 --train-bn",
    "steps_per_call": "--model resnet8_v1 --dataset shapes --precision float32 --recipe quick --steps-per-call 5",
    "on_device": "--model resnet8_v1 --dataset shapes --precision float32 --keep-on-device always --pad-mode reflect",
    "mirrored": "--model resnet8_v2 --dataset shapes --precision float32 --strategy mirrored --replicas 2 --sync-bn",
}
# Logical devices can be divided only once in a process.
ALONE = ("mirrored",)


def make_folder(folder: Path) -> None:
    """Write 3 classes of 40, 50 and 60 PNG files of random sizes."""
    rng = np.random.default_rng(0)
    for label, count in enumerate((40, 50, 60)):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(count):
            height, width = rng.integers(40, 100, 2)
            image = rng.integers(0, 256, (height, width, 3), np.uint8) // 2 + 40 * label
            cv2.imwrite(str(folder / f"class{label}" / f"{index}.png"), image)


def train(names: list[str], runs: Path, folder: Path) -> None:
    """Train some configurations in a fresh process."""
    commands = [
        [
            "train",
            *f"{CONFIGURATIONS[name]} {SHARED}".format(runs=runs, folder=folder).split(),
            f"--run-dir={runs / name}",
        ]
        for name in names
    ]
    program = "import json, sys; from resnet_tf.cli.main import main\n"
    program += "for argv in json.loads(sys.argv[1]):\n    code = main(argv)\n    if code: sys.exit(code)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RESNET_TF_CACHE": str(runs / "cache")}
    subprocess.run([sys.executable, "-c", program, json.dumps(commands)], env=environment, check=True)


def digest(run: Path) -> dict[str, str]:
    """SHA-256 of the last checkpoint's arrays and of the log of the steps."""
    arrays = hashlib.sha256()
    with np.load(run / "checkpoints" / f"step-{STEPS:09d}.npz", allow_pickle=False) as archive:
        for key in sorted(set(archive.files) - {"state.json"}):
            arrays.update(f"{key} {archive[key].dtype} {archive[key].shape}".encode())
            arrays.update(np.ascontiguousarray(archive[key]).tobytes())
    return {"weights": arrays.hexdigest(), "log": hashlib.sha256((run / "iterations.bin").read_bytes()).hexdigest()}


def main() -> int:
    """Write or check the hashes; 1 where one differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", metavar="FILE", type=Path)
    action.add_argument("--check", metavar="FILE", type=Path)
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS), metavar="NAME")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs, folder = Path(temporary) / "runs", Path(temporary) / "images"
        make_folder(folder)
        names = arguments.only if "unfreezing" not in arguments.only else ["v1", *arguments.only]
        together = [name for name in dict.fromkeys(names) if name not in ALONE]
        for group in ([together] if together else []) + [[name] for name in ALONE if name in names]:
            train(group, runs, folder)
        found = {name: digest(runs / name) for name in names}
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return 0
    expected = json.loads(arguments.check.read_text(encoding="utf-8"))
    differing = [name for name in found if found[name] != expected[name]]
    for name in found:
        print(f"{name}: {'DIFFERS' if name in differing else 'same'}")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
