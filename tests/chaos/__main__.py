"""The long version: `python -m tests.chaos --kills 100 [--json FILE]`."""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.harness import FLAGS, VARIATIONS, digests, summary, torment, undisturbed

KILLS_A_RUN = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills to aim for (default: 100)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the summary to this file")
    arguments = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(arguments.jobs) as pool:
        reference = {}
        for variation, flags in VARIATIONS.items():
            folder = Path(work) / f"undisturbed-{variation}"
            reference[variation] = undisturbed(folder, (*FLAGS, *flags)), digests(folder)
        number = 0
        while (done := sum(outcome.kills for outcome in outcomes)) < arguments.kills:
            batch = []
            for _ in range(max(arguments.jobs, -(-(arguments.kills - done) // KILLS_A_RUN))):
                variation = list(VARIATIONS)[number % len(VARIATIONS)]
                operations, expected = reference[variation]
                folder = Path(work) / f"run{number}" / "run"
                folder.parent.mkdir()
                seed = arguments.seed + number
                batch.append(pool.submit(torment, folder, variation, operations, KILLS_A_RUN, seed, expected))
                number += 1
            for future in batch:
                outcomes.append(future.result())
                print(outcomes[-1], flush=True)
    text = summary(outcomes)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text)
    return 0 if all(outcome.identical for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
