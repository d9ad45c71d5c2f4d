"""Trainings that are killed again and again must end with the folder of one that never was, but for times."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
KILLED = -9
NEVER = ":1000000000"
FLAGS = (
    *("--dataset", "shapes", "--model", "resnet8_v2", "--iterations", "60", "--batch-size", "32"),
    *("--validation-size", "200", "--eval-every", "13", "--checkpoint-every", "7", "--threads", "1"),
)
VARIATIONS = {
    "float32": ("--precision", "float32"),
    "mixed_bfloat16": ("--precision", "mixed_bfloat16"),
    "averaged": ("--precision", "float32", "--ema", "0.99", "--accumulate", "2", "--optimizer", "adam"),
}
# Where kills come, by what is going on: operations on files with this in their names, and how many there are at most.
# A run passes through them in this order; "" are any operations, None is any moment.
STAGES = {
    "start": (("lock", 1), ("command", 3), ("settings", 3)),
    "training": (None, ("", 60), ("iterations.bin", 6), ("step-", 60)),
    "evaluation": (("evaluation", 4), ("best", 40), ("metrics", 6)),
    "anywhere": (None, ("", 1000)),
    "report": (("curves", 8), ("final", 60), ("final", 600), ("report", 6)),
}
TIMES = ("seconds", "images_per_second", "evaluation_seconds", "median_images_per_second")


@dataclass
class Outcome:
    """What became of one run."""

    variation: str
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    moves: int = 0
    identical: bool = False
    problems: list[str] = field(default_factory=list)


class Starter:
    """A process that starts trainings as its children; see victim.py."""

    def __init__(self) -> None:
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", "SOURCE_DATE_EPOCH": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.victim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.wait()

    def train(self, folder: Path, flags, kill: str = NEVER, seconds: float | None = None, draws: bool = True) -> int:
        """Train in `folder`/run until that is done or killed; the exit code."""
        folder.mkdir(parents=True, exist_ok=True)
        asked = {"folder": str(folder), "flags": flags, "kill": kill, "seconds": seconds, "draws": draws}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["code"]

    def undisturbed(self, folder: Path, flags) -> int:
        """Train without a kill; return the number of operations."""
        code, output = self.train(folder, flags), (folder / "output").read_text()
        if code != 0:
            raise RuntimeError(f"the undisturbed run failed:\n{output}")
        return int(re.search(r"operations: (\d+)", output)[1])


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a run but its lock, its log and damaged checkpoints, without the times in them."""
    left_out = ("lock", "log.txt", "*.damaged", "*.sha256")
    files = [p for p in folder.rglob("*") if p.is_file() and not any(p.match(pattern) for pattern in left_out)]
    return {str(p.relative_to(folder)): hashlib.sha256(_without_times(p)).hexdigest() for p in files}


def _without_times(path: Path) -> bytes:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            parts = [(key, archive[key].tobytes()) for key in sorted(archive.files)]
        return repr([(key, _timeless(json.loads(d)) if key == "state.json" else d) for key, d in parts]).encode()
    if path.name == "metrics.csv":
        rows = [line.split(",") for line in path.read_text().splitlines()]
        return repr(
            [[cell for cell, name in zip(row, rows[0], strict=True) if name not in TIMES] for row in rows]
        ).encode()
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return repr([_timeless(json.loads(line)) for line in lines]).encode()
    if path.name in ("command.txt", "report.html"):  # and the page has the command and a date
        return re.sub(r" --run-dir [^\s<]+|\d{4}-\d\d-\d\d \d\d:\d\d", "", path.read_text()).encode()
    return path.read_bytes()


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def torment(starter: Starter, folder: Path, variation: str, seed: int, expected: dict[str, str]) -> Outcome:
    """Kill a run of a variation in each stage, from its start to its report, then let it finish.

    After some kills the run is moved to another place.
    """
    draw = random.Random(seed)
    flags, outcome = (*FLAGS, *VARIATIONS[variation]), Outcome(variation)
    stages = [stage for stage in STAGES for _ in range(draw.choice((1, 2)))]
    for stage in stages:
        place = draw.choice(STAGES[stage])
        kill = NEVER if place is None else f"{place[0]}:{draw.randrange(place[1])}"
        code = starter.train(folder, flags, kill, draw.uniform(0.2, 8.0) if place is None else None)
        if code == KILLED:
            outcome.kills[stage] += 1
        elif code != 0:
            outcome.problems.append((folder / "output").read_text()[-500:])
        else:
            break
        if draw.random() < 0.3:
            outcome.moves += 1
            folder = folder.rename(folder.with_name(f"{folder.name}-moved"))
    if starter.train(folder, flags) != 0:
        outcome.problems.append((folder / "output").read_text()[-500:])
        return outcome
    found = digests(folder / "run")
    outcome.problems += [f"{key} differs" for key in {**expected, **found} if expected.get(key) != found.get(key)]
    outcome.problems += [f"{path.name} is left over" for path in (folder / "run").rglob(".new-*")]
    outcome.identical = not outcome.problems
    return outcome


def summary(outcomes: list[Outcome]) -> str:
    """The outcomes as JSON, totals first."""
    kills = {stage: sum(outcome.kills[stage] for outcome in outcomes) for stage in STAGES}
    totals = {
        "runs": len(outcomes),
        "kills": sum(kills.values()),
        "kills_by_stage": kills,
        "moves": sum(o.moves for o in outcomes),
        "identical": sum(o.identical for o in outcomes),
    }
    return json.dumps({**totals, "outcomes": [asdict(o) for o in outcomes]}, indent=2) + "\n"
