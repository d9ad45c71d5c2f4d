"""The long version, with four workers and kills: `python -m tests.distributed [--keep FOLDER]`."""

import argparse
import json
import tempfile
from pathlib import Path

from resnet_tf.process import load_tensorflow
from tests.distributed.harness import FLAGS, alone, farthest, first_loss, kill_one, loss_of_shards, together

SYNC = (*FLAGS, "--sync-bn")
LONG = (*FLAGS, "--iterations", "150", "--batch-size", "32", "--checkpoint-every", "10", "--eval-every", "60")


class Findings:
    """Prints each number beside what it may be."""

    def __init__(self) -> None:
        self.bad = 0

    def add(self, what: str, value: float, most: float) -> None:
        self.bad += not value <= most
        print(f"{'ok  ' if value <= most else 'BAD '} {what}: {value:.3g} (at most {most:g})", flush=True)


def compare(work: Path, findings: Findings) -> None:
    """Twenty steps on one device, on logical devices and in several processes."""
    one = alone(work / "one", *SYNC)
    fused = alone(work / "fused", *FLAGS)
    findings.add("sync BN on one device from the fused network, one device", farthest(fused, one, True), 1e-5)
    for count in (2, 4):
        replicas = ("--strategy", "mirrored", "--replicas", str(count))
        sync = alone(work / f"mirrored{count}-sync", *SYNC, *replicas)
        findings.add(f"sync BN, mirrored {count} from one device", farthest(one, sync, True), 1e-5)
        sync = together(count, work / f"workers{count}-sync", *SYNC)
        findings.add(f"sync BN, {count} workers from one device", farthest(one, sync, True), 1e-5)
        own = alone(work / f"mirrored{count}", *FLAGS, *replicas)
        others = together(count, work / f"workers{count}", *FLAGS)
        findings.add(f"own BN, {count} workers from mirrored {count}", farthest(own, others, True), 1e-5)
        loss = loss_of_shards(count, *FLAGS)
        findings.add(f"first loss, mirrored {count} from {count} shards", abs(first_loss(own) - loss), 1e-6)
        findings.add(f"first loss, {count} workers from {count} shards", abs(first_loss(others) - loss), 1e-6)


def kill(work: Path, findings: Findings) -> None:
    """Kill the chief, the other one or the launcher in mid-run, and go on with two; then once with one."""
    whole = together(2, work / "whole", *LONG)
    for name, victim in (("chief", 0), ("other", 1), ("launcher", None)):
        folder = work / f"killed-{name}"
        took, why = kill_one(folder, victim, 50, *LONG)
        print(f"     {why or 'nobody is left to log why'}", flush=True)
        findings.add(f"seconds from the kill of the {name} until all have ended", took, 15)
        together(2, folder, *LONG)
        findings.add(f"final weights after the kill of the {name} from undisturbed ones", farthest(whole, folder), 0)
    resumed = work / "resumed-alone"
    kill_one(resumed, 1, 50, *LONG, "--sync-bn")
    alone(resumed, *LONG, "--sync-bn")
    report = json.loads((resumed / "report.json").read_text())
    findings.add("updates missing after two workers, a kill, and the end on one device", 150 - report["iterations"], 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", help="keep the runs in this folder")
    arguments = parser.parse_args()
    load_tensorflow()
    findings = Findings()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.keep or scratch)
        compare(work, findings)
        kill(work, findings)
    print("all as it must be" if not findings.bad else f"{findings.bad} findings are not as they must be")
    return 1 if findings.bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
