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
