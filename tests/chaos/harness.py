"""Trainings that are killed again and again must end with the bytes of one that never was."""

import hashlib
import json
import random
import re
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
VICTIM = Path(__file__).with_name("victim.py")
SIGKILL_CODE = -9
FLAGS = (
    *("--dataset", "shapes", "--model", "resnet8_v2", "--iterations", "60", "--batch-size", "32"),
    *("--validation-size", "200", "--eval-every", "13", "--checkpoint-every", "7", "--threads", "1"),
)
VARIATIONS = {
    "float32": ("--precision", "float32"),
    "mixed_bfloat16": ("--precision", "mixed_bfloat16"),
    "averaged": ("--precision", "float32", "--ema", "0.99", "--accumulate", "2", "--optimizer", "adam"),
}


@dataclass
class Outcome:
    """What became of one run."""

    variation: str
    kills: int = 0
    kills_in_saves: int = 0
    moves: int = 0
    identical: bool = False
    problems: list[str] = field(default_factory=list)


def start(folder: Path, flags: tuple[str, ...], operation: int = -1) -> subprocess.Popen:
    """Start train.py in a process that dies at this file operation."""
    command = [sys.executable, str(VICTIM), str(ROOT / "train.py"), str(folder), str(operation), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent)


def undisturbed(folder: Path, flags: tuple[str, ...]) -> int:
    """Train without a kill; return the number of file operations."""
    out, err = (process := start(folder, flags)).communicate()
    if process.returncode != 0:
        raise RuntimeError(f"the undisturbed run failed:\n{out}{err}")
    return int(re.search(r"operations: (\d+)", out)[1])


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every variable of the final and best model, of the last checkpoint, and of the course of the loss."""
    result = {"iterations.bin": hashlib.sha256((folder / "iterations.bin").read_bytes()).hexdigest()}
    for name in ("final.keras", "best.keras"):
        with zipfile.ZipFile(folder / name) as archive:
            result[name] = hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
    newest = max((folder / "checkpoints").glob("step-*.npz"))
    with np.load(newest) as archive:
        for key in archive.files:
            if key != "state.json":
                result[key] = hashlib.sha256(archive[key].tobytes()).hexdigest()
    return result


def torment(folder: Path, variation: str, operations: int, kills: int, seed: int, expected: dict[str, str]) -> Outcome:
    """Kill a run of a variation `kills` times, then let it finish.

    Half of the kills come at a file operation and half at any moment. After every third kill the run is
    moved to another folder.
    """
    draw = random.Random(seed)
    flags = (*FLAGS, *VARIATIONS[variation])
    outcome = Outcome(variation)
    for number in range(kills):
        in_save = number % 2 == 0
        # Later starts have fewer operations left: aim low enough to hit one of them.
        process = start(folder, flags, draw.randrange(max(2, operations // kills)) if in_save else -1)
        try:
            _, err = process.communicate(timeout=None if in_save else draw.uniform(0.5, 12.0))
        except subprocess.TimeoutExpired:
            process.kill()
            _, err = process.communicate()
        if process.returncode == SIGKILL_CODE:
            outcome.kills += 1
            outcome.kills_in_saves += in_save
        elif process.returncode != 0:
            outcome.problems.append(err.strip()[-500:])
        else:
            break
        if number % 3 == 2 and folder.exists():
            folder = folder.rename(folder.with_name(f"{folder.name}-moved{number}"))
            outcome.moves += 1
    process = start(folder, flags)
    _, err = process.communicate()
    if process.returncode != 0:
        outcome.problems.append(err.strip()[-500:])
        return outcome
    found = digests(folder)
    outcome.problems += [f"{key} differs" for key in {**expected, **found} if expected.get(key) != found.get(key)]
    outcome.identical = not outcome.problems
    return outcome


def summary(outcomes: list[Outcome]) -> str:
    """The outcomes as JSON, totals first."""
    totals = {
        "runs": len(outcomes),
        "kills": sum(o.kills for o in outcomes),
        "kills_in_saves": sum(o.kills_in_saves for o in outcomes),
        "moves": sum(o.moves for o in outcomes),
        "identical": sum(o.identical for o in outcomes),
    }
    return json.dumps({**totals, "outcomes": [asdict(o) for o in outcomes]}, indent=2) + "\n"
