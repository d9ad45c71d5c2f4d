"""What a second worker on the second core gives, with the work of each core held.

    python -m benchmarks.distributed [--model resnet20_v2] [--batch-size 64] [--rounds 3] [--json FILE]

One worker of one thread on batches of B, two workers of one thread each on batches of 2·B, and mirrored logical
devices likewise, in turn. The rate is the median over the evaluations' rows but the first, into which tracing falls;
evaluations and checkpoints are not counted. Nothing else should run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.rounds import write_json

EVERY, ROWS = 20, 4


def rate(folder: Path, workers: int, mirrored: bool, model: str, batch_size: int) -> float:
    """Images a second of a training in a new folder."""
    flags = [
        *("train", "--model", model, "--dataset", "shapes", "--device", "cpu", "--threads", "1"),
        *("--batch-size", str(batch_size * workers), "--validation-size", "50", "--run-dir", str(folder)),
        *("--iterations", str(EVERY * ROWS), "--eval-every", str(EVERY), "--checkpoint-every", str(EVERY * ROWS)),
    ]
    if mirrored:
        flags += ["--strategy", "mirrored", "--replicas", str(workers)]
    elif workers > 1:
        flags = ["launch", "--workers", str(workers), "--", *flags]
    subprocess.run([sys.executable, "-m", "resnet_tf", *flags], check=True, capture_output=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(np.median([row["images_per_second"] for row in rows[1:]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_v2")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step for each worker (default: 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    cases = {"1 worker": (1, False), "2 workers": (2, False), "2 mirrored": (2, True)}
    rates: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as work:
        for number in range(arguments.rounds):
            for name, (workers, mirrored) in cases.items():
                folder = Path(work) / f"{number}-{name.replace(' ', '-')}"
                rates[name].append(rate(folder, workers, mirrored, arguments.model, arguments.batch_size))
    ratios = {name: float(np.median(np.divide(found, rates["1 worker"]))) for name, found in rates.items()}
    for name, found in rates.items():
        efficiency = 100 * ratios[name] / cases[name][0]
        print(f"{name}: {np.median(found):.0f} images/s, {ratios[name]:.2f} x, {efficiency:.0f} % of each core's work")
    write_json(arguments.json, {"rates": rates, "ratios": ratios})


if __name__ == "__main__":
    main()
