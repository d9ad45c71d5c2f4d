"""The short version of the fuzzer; `python -m tests.fuzz --minutes 30` is the long one."""

import pytest

from tests.fuzz import harness
from tests.fuzz.readers import READERS, Reader


def test_damaged_files_end_in_documented_errors():
    results = harness.fuzz(READERS, 400, 40)
    failures = [failure for _, _, found in results.values() for failure in found]
    assert not failures, failures[:3]
    assert all(inputs > 0 for inputs, _, _ in results.values())


def test_a_case_is_the_same_each_time(tmp_path):
    reader = READERS["run-json"]
    reader.prepare(tmp_path)
    assert harness.case_of(reader, 7) == harness.case_of(reader, 7) != harness.case_of(reader, 8)


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("a"), MemoryError(), RecursionError()])
def test_other_errors_are_failures(tmp_path, error):
    def read(folder, data):
        raise error

    reader = Reader("broken", lambda folder: [b"x"], lambda *arguments: b"x", read)
    del READERS["broken"]
    assert type(error).__name__ in harness.complaint(reader, tmp_path, b"x")


BAD = """
import os
from tests.fuzz import harness, readers

harness.SECONDS, harness.MEMORY = 0.5, 2**26


def read(folder, data):
    while data == b"damaged":
        {}


readers.Reader("bad", lambda folder: [b"x"], lambda *arguments: b"damaged", read)
"""


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ("raise KeyError(data)", "KeyError"),
        ("pass", "more than 5 seconds"),
        ("os.abort()", "the process ended with -6"),
        ("data = bytes(2**27) + data", "MiB of memory"),
    ],
)
def test_what_a_reader_may_not_do(tmp_path, monkeypatch, does, says):
    (tmp_path / "sitecustomize.py").write_text(BAD.format(does))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, _, failures = harness.fuzz(["bad"], 2, 20, keep=tmp_path / "kept")["bad"]
    assert [failure["case"] for failure in failures] == [0, 1]
    assert says in failures[0]["what"]
    assert (tmp_path / "kept" / "bad-1.bin").read_bytes() == b"damaged"
