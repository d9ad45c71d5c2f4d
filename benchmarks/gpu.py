"""The speeds of docs/performance.md on this machine's GPU, as a page to paste.

    python -m benchmarks.gpu [--rounds 3] [--cpu]

Measures the training step of ResNet-20 and ResNet-50 against Keras' `fit` (`benchmarks.training`), and training and
inference of the networks of keras.applications against their view (`benchmarks.keras_applications`, eight times the
images). Nothing else should run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.keras_applications import NETS, markdown

MODELS = ("resnet20_v2", "resnet20_v1", "resnet50")


def run(module: str, path: Path, *flags: str) -> dict:
    """Run a benchmark, which prints as it goes, and return its numbers."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags, "--json", str(path)]
    # The contenders are processes that share the GPU.
    subprocess.run(command, check=True, env=os.environ | {"TF_FORCE_GPU_ALLOW_GROWTH": "true"})
    return json.loads(path.read_text())


def step_table(results: dict) -> str:
    """Rates of `fit`, and ratios of ours to it, as a table."""
    ways = ("ours float32", "ours bfloat16")
    lines = [f"| training step | fit, images/s | {' | '.join(ways)} |", "|---" * 4 + "|"]
    for model in MODELS:
        found = results[model]
        ratios = " | ".join(f"{found[way]['ratio']:.2f} ×" for way in ways)
        lines.append(f"| {model} | {found['model.fit']['median']:.0f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", default=",".join(NETS), help="of keras.applications")
    parser.add_argument("--cpu", action="store_true", help="try the command where there is no GPU")
    arguments = parser.parse_args()
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and not arguments.cpu:
        sys.exit("TensorFlow sees no GPU here; pip install 'tensorflow[and-cuda]', or try the command with --cpu")
    device = tf.config.experimental.get_device_details(gpus[0])["device_name"] if gpus else "CPU"
    rounds = ("--rounds", str(arguments.rounds))
    scale = () if arguments.cpu else ("--scale", "8")
    with tempfile.TemporaryDirectory() as folder:
        steps = run("training", Path(folder, "steps"), "--no-torch", "--models", ",".join(MODELS), *rounds)
        nets = run("keras_applications", Path(folder, "nets"), "--nets", arguments.nets, *scale, *rounds)
    print(f"\n## {device}, TensorFlow {tf.__version__}, Keras {keras.__version__}\n\n{step_table(steps)}\n")
    print(f"{markdown(nets, 'training')}\n\n{markdown(nets, 'inference')}")


if __name__ == "__main__":
    main()
