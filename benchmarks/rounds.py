"""Contenders in processes of their own, measured in turns: only ratios within one run mean anything."""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

PAUSE = 0.5  # seconds between turns, in which thread pools that spin after their work fall asleep
TURN = 2.0  # seconds that a turn lasts, roughly


@dataclass
class Contender:
    """A process that runs one thing on demand."""

    module: str
    name: str
    options: dict
    environment: dict[str, str] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Start the process and wait until it has compiled and warmed up."""
        command = [sys.executable, "-m", self.module, self.name, json.dumps(self.options)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | self.environment,
        )
        self.items = float(self._answer()["items"])
        self.count = max(1, round(TURN / (self._run(2) / 2)))

    def turn(self) -> None:
        """Measure one turn, in items a second."""
        time.sleep(PAUSE)
        self.rates.append(self.count * self.items / self._run(self.count))

    def stop(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    @property
    def rate(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.rates)

    def _run(self, count: int) -> float:
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} {self.options} ended early")
        return json.loads(line)


def measure(contenders: list[Contender], rounds: int) -> None:
    """Run all contenders in turns, `rounds` times."""
    for contender in contenders:
        contender.start()
    for _ in range(rounds):
        for contender in contenders:
            contender.turn()
    for contender in contenders:
        contender.stop()


def serve(step, items: float) -> None:
    """Be a contender: `step(count)` does the work `count` times and returns the seconds it took."""
    step(3)
    print(json.dumps({"items": items}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": step(int(line))}), flush=True)


def timed(work):
    """A `step(count)` for `serve` from a function without arguments."""

    def step(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            work()
        return time.perf_counter() - began

    return step


def ratio(contender: Contender, base: Contender) -> float:
    """Median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(contender.rates, base.rates, strict=True))


def table(contenders: list[Contender], base: Contender, unit: str) -> str:
    """Rates and their ratios to a base, as lines."""
    lines = [f"{'':28} {unit:>12} {'spread':>17} {'ratio':>7}"]
    for contender in contenders:
        spread = f"{min(contender.rates):.0f}–{max(contender.rates):.0f}"
        lines.append(f"{contender.name:28} {contender.rate:12.0f} {spread:>17} {ratio(contender, base):6.2f}×")
    return "\n".join(lines)


def as_dict(contenders: list[Contender], base: Contender) -> dict:
    """Rates and ratios for a JSON file."""
    return {c.name: {"rates": c.rates, "median": c.rate, "ratio": ratio(c, base)} for c in contenders}


def write_json(path: str | None, value: dict) -> None:
    """Write the results where a path is given."""
    if path:
        Path(path).write_text(json.dumps(value, indent=2) + "\n")
