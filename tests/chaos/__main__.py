"""The long version: `python -m tests.chaos --kills 500 [--json FILE]`."""

import argparse
import itertools
import queue
import shutil
import tempfile
import threading
from pathlib import Path

from tests.chaos.harness import FLAGS, VARIATIONS, Starter, digests, summary, torment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="kills to aim for (default: 100)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write the summary to this file")
    arguments = parser.parse_args()
    outcomes = []
    with tempfile.TemporaryDirectory() as work:
        reference = {}
        with Starter() as starter:
            for variation, flags in VARIATIONS.items():
                folder = Path(work) / f"undisturbed-{variation}"
                starter.undisturbed(folder, (*FLAGS, *flags))
                reference[variation] = digests(folder / "run")
        numbers, done = itertools.count(arguments.seed), queue.Queue()

        def kills() -> int:
            return sum(sum(outcome.kills.values()) for outcome in outcomes)

        def work_on() -> None:
            with Starter() as starter:
                while kills() < arguments.kills and all(outcome.identical for outcome in outcomes[-3:]):
                    number = next(numbers)
                    variation = list(VARIATIONS)[number % len(VARIATIONS)]
                    folder = Path(work) / f"run{number}"
                    outcomes.append(torment(starter, folder, variation, number, reference[variation]))
                    done.put(outcomes[-1])
                    for path in Path(work).glob(f"run{number}*"):
                        shutil.rmtree(path)
            done.put(None)

        threads = [threading.Thread(target=work_on) for _ in range(arguments.jobs)]
        for thread in threads:
            thread.start()
        for _ in threads:
            for outcome in iter(done.get, None):
                print(outcome, flush=True)
    text = summary(outcomes)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text)
    return 0 if all(outcome.identical for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
