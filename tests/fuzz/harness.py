"""Cases in children: one child for a reader reads one file after the other, under limits of time and memory."""

import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

SECONDS, MEMORY = 5.0, 2**30
# What a process may map beyond this limit before memory is refused to it.
ROOM = 2**31
STARTUP = 120.0  # seconds for imports and samples
ROOT = Path(__file__).parents[2]


def case_of(reader, number):
    """The damaged file of this number."""
    return reader.case(random.Random(f"{reader.name} {number}"))


def complaint(reader, folder, data):
    """What is wrong with how a reader takes a file; None where it reads it or refuses it as documented."""
    from resnet_tf.errors import UserError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder, data)
    except UserError as error:
        return None if " ".join(str(error).split()).isprintable() else f"not printable: {error!r}"
    except BaseException:
        return traceback.format_exc()
    return None


def peak():
    """The most memory that this process has held, bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def child(name, first, last, seconds, folder):
    """Read cases from `first` to before `last` for some seconds; failures are appended to a file."""
    from tests.fuzz.readers import READERS

    folder = Path(folder)
    reader = READERS[name]
    (folder / "work").mkdir(exist_ok=True)
    reader.prepare(folder / "work")
    progress = open(folder / "progress", "r+b")  # noqa: SIM115
    shared = mmap.mmap(progress.fileno(), 24)
    os.dup2(os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    complaint(reader, folder / "work", reader.samples[0])  # imports, once
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM, mapped + ROOM))
    base = peak()
    ready = time.time()
    for number in range(first, last):
        shared[:24] = struct.pack("<qdd", number, time.time(), ready)
        if time.time() - ready > seconds:
            break
        data = case_of(reader, number)
        (folder / "current").write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of the processor: other processes may keep it waiting
        found = complaint(reader, folder / "work", data)
        signal.setitimer(signal.ITIMER_PROF, 0)
        taken = peak() - base
        if found is None and taken > MEMORY:
            found = f"{taken / 2**20:.0f} MiB of memory"
        if found is not None:
            shutil.copy(folder / "current", folder / f"{name}-{number}.bin")
            with open(folder / "failures.jsonl", "a") as file:
                file.write(json.dumps({"reader": name, "case": number, "what": found}) + "\n")
        shared[:8] = struct.pack("<q", number + 1)
        if taken > MEMORY:
            break


class Run:
    """A reader's child, started anew where it dies."""

    def __init__(self, name, first, last, seconds, keep):
        self.name, self.next, self.last, self.left, self.keep = name, first, last, seconds, keep
        self.first, self.failures = first, []
        shared = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
        self.start()

    def start(self):
        (self.folder / "progress").write_bytes(struct.pack("<qdd", -1, time.time() + STARTUP, 0))
        arguments = (self.name, self.next, self.last, self.left, self.folder)
        program = "import sys\nfrom tests.fuzz.harness import child\n"
        program += "n, a, b, t, f = sys.argv[1:]\nchild(n, int(a), int(b), float(t), f)\n"
        program += "import os\nos._exit(0)\n"  # the end of an interpreter with TensorFlow takes its time
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        quiet = {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", "OPENCV_LOG_LEVEL": "OFF"}
        output = open(self.folder / "output", "ab")  # noqa: SIM115
        command = [sys.executable, "-c", program, *map(str, arguments)]
        self.process = subprocess.Popen(command, env={**os.environ, **quiet}, stdout=output, stderr=output)

    def at(self):
        return struct.unpack("<qdd", (self.folder / "progress").read_bytes())

    def poll(self):
        """Whether the run is over; takes note of a child that died or hangs."""
        number, since, ready = self.at()
        code = self.process.poll()
        if code is None:
            if time.time() - since > 6 * SECONDS:
                self.process.kill()
            return False
        self.take_failures()
        if number < 0:
            raise RuntimeError(f"{self.name}: {(self.folder / 'output').read_text(errors='replace')[-2000:]}")
        self.left -= since - ready
        if code == 0:
            self.next = number
            return self.go_on()
        why = {-signal.SIGPROF: "more than 5 seconds", -signal.SIGKILL: "more than 30 seconds of waiting"}
        self.note({"reader": self.name, "case": number, "what": why.get(code, f"the process ended with {code}")})
        self.next = number + 1
        return self.go_on()

    def go_on(self):
        """Start a child for what is left, or say that nothing is."""
        if self.next >= self.last or self.left <= 0:
            return True
        self.start()
        return False

    def take_failures(self):
        path = self.folder / "failures.jsonl"
        if path.exists():
            for line in path.read_text().splitlines():
                self.note(json.loads(line))
            path.unlink()

    def note(self, failure):
        """Keep a failure: the file that was read, and what came of it."""
        self.failures.append(failure)
        if self.keep is not None:
            self.keep.mkdir(parents=True, exist_ok=True)
            name = f"{failure['reader']}-{failure['case']}"
            kept = self.folder / f"{name}.bin"
            shutil.copy(kept if kept.exists() else self.folder / "current", self.keep / f"{name}.bin")
            (self.keep / f"{name}.json").write_text(json.dumps(failure, indent=2))

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def fuzz(names, cases, seconds, jobs=2, first=0, keep=None, log=lambda line: None):
    """Give each reader an equal share of the time, or `cases` cases; returns {name: (inputs, seconds, failures)}."""
    waiting, running, results = list(names), [], {}
    share = seconds * jobs / len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                running.append((Run(name, first, first + cases, share, keep), time.time()))
            time.sleep(0.05)
            for entry in list(running):
                run, began = entry
                if run.poll():
                    running.remove(entry)
                    run.close()
                    results[run.name] = (run.next - run.first, time.time() - began, run.failures)
                    log(f"{run.name}: {run.next - run.first:,} inputs, {len(run.failures)} failures")
    finally:
        for run, _ in running:
            run.close()
    return results
