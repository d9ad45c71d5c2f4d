"""Start-up time and peak memory of the commands.

    python -m benchmarks.footprint [--data-dir DIR] [--json FILE]

Each command is a process of its own; memory is the largest resident set that the kernel saw. Trainings take 60 steps of
128 images of --data-dir's CIFAR-10, or of the built-in `shapes` without it. `first step` trains one step of the quick
recipe on `shapes`: all from the command line to that step, and its checkpoint, test and report as well.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rounds import write_json

STEPS = "60"


def run(*arguments: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a command."""
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen([sys.executable, "-m", "resnet_tf", *arguments], stdout=nowhere, stderr=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"resnet-tf {' '.join(arguments)} failed")
    return time.perf_counter() - began, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    data = ["--dataset", "shapes"]
    if arguments.data_dir:
        data = ["--dataset", "cifar10", "--data-dir", arguments.data_dir]
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: str(Path(folder, name)) for name in ("first", "resnet20_v2", "resnet110_v2")}
        training = ["train", "--iterations", STEPS, "--validation-size", "0", *data]
        first = ["train", "--dataset", "shapes", "--recipe", "quick", "--iterations", "1", "--run-dir", runs["first"]]
        commands = {
            "--help": ["train", "--help"],
            "first step": first,
            **{f"train {m}": [*training, "--model", m, "--run-dir", runs[m]] for m in ("resnet20_v2", "resnet110_v2")},
            "evaluate resnet20_v2": ["evaluate", runs["resnet20_v2"], *data],
        }
        results = {}
        for name, command in commands.items():
            seconds, memory = run(*command)
            print(f"{name:22} {seconds:7.2f} s {memory:6.2f} GB", flush=True)
            results[name] = {"seconds": seconds, "peak_gb": memory}
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
