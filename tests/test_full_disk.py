"""A disk that fills up while a run saves (a real one of 50 MB, where the machine lets the test mount it)."""

import contextlib
import shutil
import subprocess

import numpy as np
import pytest

from resnet_tf.cli.main import main
from resnet_tf.data import shapes
from tests.chaos.harness import digests

FLAGS = (
    *("train", "--dataset", "shapes", "--model", "resnet8_v2", "--iterations", "12", "--batch-size", "16"),
    *("--validation-size", "20", "--eval-every", "6", "--checkpoint-every", "4", "--precision", "float32"),
)


@pytest.fixture
def disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=50m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs rights that this process does not have")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path):
    with open(path, "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))


@pytest.fixture
def fill_at_second_save(disk, monkeypatch):
    save, saves = np.savez, []

    def filling(file, **arrays):
        saves.append(file)
        if len(saves) == 2:
            fill(disk / "ballast")
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", filling)


def test_training_survives_a_full_disk_and_is_resumable(disk, fill_at_second_save, tmp_path, monkeypatch, capsys):
    few = shapes.load_shapes(train_size=100, test_size=20)
    monkeypatch.setattr(shapes, "load_shapes", lambda: few)
    run = disk / "run"
    assert main([*FLAGS, "--run-dir", str(run)]) == 2
    out, err = capsys.readouterr()
    assert "could not write the checkpoint of iteration 8: No space left on device" in out
    assert "could not write the checkpoint of iteration 12" in out
    assert "make room and run the same command again" in err
    assert len(err.strip().splitlines()) == 1
    assert [path.name for path in (run / "checkpoints").glob("*.npz")] == ["step-000000004.npz"]

    (disk / "ballast").unlink()
    assert main([*FLAGS, "--run-dir", str(run)]) == 0
    assert "resuming at iteration 4 of 12" in capsys.readouterr().out
    assert main([*FLAGS, "--run-dir", str(tmp_path / "undisturbed")]) == 0
    assert digests(run) == digests(tmp_path / "undisturbed")
