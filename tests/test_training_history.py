import csv
import errno
import json

import numpy as np
import pytest

import resnet_tf
from resnet_tf.training import logs
from resnet_tf.training.logs import COLUMNS, StepLog, read_iterations, write_history


def results(start, stop):
    steps = np.arange(start, stop, dtype=np.float32)
    return np.stack([steps + 0.5, steps / 8, steps / 1_000], axis=1)


def written(path, *parts, step=0):
    log = StepLog(path, step)
    for start, stop in parts:
        log.append(results(start, stop))
    log.flush()
    return log


def assert_log(path, count):
    records = read_iterations(path)
    assert records.dtype.names == ("loss", "l2", "accuracy")
    assert len(records) == count
    assert path.stat().st_size == 12 * count
    for name, column in zip(records.dtype.names, results(0, count).T, strict=True):
        assert np.array_equal(records[name], column)


def test_a_row_per_iteration(tmp_path):
    path = tmp_path / "iterations.bin"
    log = written(path, (0, 25), (25, 26), (26, 60))
    assert_log(path, 60)
    log.append(results(60, 64))
    assert_log(path, 60)  # in memory until it is flushed
    log.flush()
    log.flush()
    assert_log(path, 64)
    assert resnet_tf.read_iterations is read_iterations


def test_resuming_cuts_off_what_the_checkpoint_does_not_know(tmp_path):
    path = tmp_path / "iterations.bin"
    written(path, (0, 60))
    written(path, (40, 45), step=40)
    assert_log(path, 45)
    written(path, (45, 80), step=45)
    assert_log(path, 80)


def test_a_new_run_cuts_off_everything(tmp_path):
    path = tmp_path / "iterations.bin"
    written(path, (30, 60))
    written(path, (0, 3))
    assert_log(path, 3)


@pytest.mark.parametrize("count", [0, 39])
def test_a_log_shorter_than_the_checkpoint(tmp_path, count):
    path = tmp_path / "iterations.bin"
    written(path, (0, count))
    with pytest.raises(OSError, match="fewer than the 40 records"):
        StepLog(path, 40)


def test_a_missing_log(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        StepLog(tmp_path / "iterations.bin", 40)


@pytest.mark.parametrize("half_written", [False, True])
def test_a_flush_that_fails_is_made_good_by_the_next(tmp_path, monkeypatch, half_written):
    path = tmp_path / "iterations.bin"
    log = written(path, (0, 10))
    log.append(results(10, 20))

    def refuse(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logs.os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        log.flush()
    monkeypatch.undo()
    if half_written:
        with open(path, "r+b") as file:
            file.truncate(10 * 12 + 7)
    log.append(results(20, 30))
    log.flush()
    assert_log(path, 30)


ROW = dict.fromkeys(COLUMNS, 1.5) | {"iteration": 10, "validation_loss": None, "validation_accuracy": None}


def test_rows_as_csv_and_json_lines(tmp_path):
    history = [ROW, {**ROW, "iteration": 20, "validation_accuracy": 0.1 + 0.2}]
    write_history(tmp_path, history)
    with open(tmp_path / "metrics.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    assert [row["iteration"] for row in read] == ["10", "20"]
    assert (read[0]["validation_loss"], read[0]["validation_accuracy"]) == ("", "")
    assert float(read[1]["validation_accuracy"]) == 0.1 + 0.2
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == history
    write_history(tmp_path, history[:1])
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
