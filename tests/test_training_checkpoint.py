import errno
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from resnet_tf import files
from resnet_tf.errors import UserError
from resnet_tf.files import sha256_of
from resnet_tf.training import checkpoint


def some_arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "model/stage1/kernel": rng.standard_normal((3, 3, 2, 4)).astype(np.float32),
        "optimizer/iteration": np.asarray(seed, np.int64),
        "empty": np.empty((0, 2), np.float16),
    }


def save(folder, *steps):
    for step in steps:
        checkpoint.save(folder, step, some_arrays(step), {"step": step, "best": None, "sum": 0.1 + 0.2})


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def assert_newest(folder, step, damaged=()):
    arrays, state, passed_over = checkpoint.load_newest(folder)
    assert state == {"step": step, "best": None, "sum": 0.1 + 0.2}
    assert arrays.keys() == some_arrays().keys()
    for key, value in some_arrays(step).items():
        assert arrays[key].dtype == value.dtype
        assert np.array_equal(arrays[key], value)
    assert [path.name for path in passed_over] == list(damaged)


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    save(tmp_path / "made", 7)
    assert_newest(tmp_path / "made", 7)


def test_the_newest_two_are_kept(tmp_path):
    save(tmp_path, 5, 10, 1_000, 999_999_999, 20)
    assert [name for name in names(tmp_path) if name.endswith(".npz")] == ["step-000001000.npz", "step-999999999.npz"]
    shutil.rmtree(tmp_path)
    save(tmp_path, 5, 10, 15)
    assert names(tmp_path) == [f"step-0000000{step}.{kind}" for step in (10, 15) for kind in ("npz", "sha256")]
    assert_newest(tmp_path, 15)


def test_saving_a_step_again(tmp_path):
    save(tmp_path, 5, 10, 10)
    assert_newest(tmp_path, 10)


def test_an_empty_or_missing_folder(tmp_path):
    assert checkpoint.load_newest(tmp_path) is None
    assert checkpoint.load_newest(tmp_path / "none") is None


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def no_checksum(path):
    path.with_suffix(".sha256").unlink()


def wrong_checksum(path):
    path.with_suffix(".sha256").write_text("0" * 64)


def binary_checksum(path):
    path.with_suffix(".sha256").write_bytes(b"\xff\xfe")


DAMAGES = [truncate, flip_a_bit, empty, no_checksum, wrong_checksum, binary_checksum]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_passed_over(tmp_path, damage):
    save(tmp_path, 5, 10)
    damage(tmp_path / "step-000000010.npz")
    assert_newest(tmp_path, 5, damaged=["step-000000010.npz"])


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_whole_one_left(tmp_path, damage):
    save(tmp_path, 5, 10)
    for step in (5, 10):
        damage(tmp_path / f"step-0000000{step:02}.npz")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole.*overwrite=True.*run_dir="):
        checkpoint.load_newest(tmp_path)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("content", ["object array", "bare pickle"])
def test_nothing_is_unpickled(tmp_path, content):
    path = tmp_path / "step-000000010.npz"
    with open(path, "wb") as file:
        if content == "bare pickle":
            pickle.dump(Trap(), file)
        else:
            np.savez(file, **{"model": np.array([Trap()], object), "state.json": np.frombuffer(b"{}", np.uint8)})
    path.with_suffix(".sha256").write_text(sha256_of(path))
    with pytest.raises(UserError, match="is whole"):
        checkpoint.load_newest(tmp_path)


def test_an_archive_without_state(tmp_path):
    path = tmp_path / "step-000000010.npz"
    np.savez(path, a=np.zeros(3))
    path.with_suffix(".sha256").write_text(sha256_of(path))
    with pytest.raises(UserError, match="is whole"):
        checkpoint.load_newest(tmp_path)


def test_a_damaged_zip_under_a_right_checksum(tmp_path):
    save(tmp_path, 5, 10)
    path = tmp_path / "step-000000010.npz"
    flip_a_bit(path)
    path.with_suffix(".sha256").write_text(sha256_of(path))
    assert_newest(tmp_path, 5, damaged=["step-000000010.npz"])


def test_files_of_other_names_are_left_alone(tmp_path):
    (tmp_path / "step-abc.npz").write_bytes(b"mine")
    (tmp_path / ".new-step-000000099.npz").write_bytes(b"half")
    save(tmp_path, 5, 10, 15)
    assert_newest(tmp_path, 15)
    assert (tmp_path / "step-abc.npz").read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["savez", "fsync", "replace", "checksum"])
def test_a_failing_save_leaves_the_earlier_ones(tmp_path, monkeypatch, place):
    save(tmp_path, 5, 10)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def refuse(*arguments, **options):
        if place == "savez" and isinstance(arguments[0], io.IOBase):
            arguments[0].write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "savez":
        monkeypatch.setattr(checkpoint.np, "savez", refuse)
    elif place == "checksum":
        monkeypatch.setattr(Path, "write_text", refuse)
    else:
        monkeypatch.setattr(files.os, place, refuse)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 15)
    monkeypatch.undo()
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    assert not any(name.endswith(".npz") for name in set(names(tmp_path)) - before.keys())
    assert_newest(tmp_path, 10)
    save(tmp_path, 20)
    assert_newest(tmp_path, 20)


def test_an_old_checkpoint_that_cannot_be_removed_does_not_fail_the_save(tmp_path, monkeypatch):
    save(tmp_path, 5, 10)

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    save(tmp_path, 15)
    monkeypatch.undo()
    assert_newest(tmp_path, 15)
