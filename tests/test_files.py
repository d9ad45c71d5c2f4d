import errno
import json
import os

import pytest

from resnet_tf import files
from resnet_tf.files import replacing, write_json, write_text, write_with


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_writing_and_replacing(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "neu: ü\n")
    assert path.read_bytes() == "neu: ü\n".encode()
    write_text(path, os.fsdecode(b"caf\xe9.jpg"))
    assert path.read_bytes() == rb"caf\udce9.jpg"
    write_json(path, {"b": [1, None], "a": 0.1})
    assert json.loads(path.read_text()) == {"b": [1, None], "a": 0.1}
    assert path.read_text().index('"b"') < path.read_text().index('"a"')
    write_with(path, lambda temporary: temporary.write_bytes(b"\0\1"))
    assert path.read_bytes() == b"\0\1"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_file_is_beside_hidden_and_of_the_same_kind(tmp_path):
    with replacing(tmp_path / "model.keras") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".keras"
        temporary.write_bytes(b"x")
        assert not (tmp_path / "model.keras").exists()
    assert names(tmp_path) == ["model.keras"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        full_disk()

    with pytest.raises(OSError, match="No space left"):
        write_with(path, half)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
def test_so_does_one_that_is_interrupted(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def interrupted(temporary):
        temporary.write_text("new")
        raise error

    with pytest.raises(error):
        write_with(path, interrupted)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_so_does_a_system_that_refuses_to_flush_or_rename(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(files.os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_file_is_flushed_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    calls = []

    def note(name):
        original = getattr(os, name)

        def noting(*arguments):
            what = name
            if name == "fsync":
                what = "fsync folder" if os.path.isdir(f"/proc/self/fd/{arguments[0]}") else "fsync file"
            calls.append(what)
            return original(*arguments)

        monkeypatch.setattr(files.os, name, noting)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell files from folders")
    note("fsync")
    note("replace")
    write_text(tmp_path / "a.txt", "new")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "none" / "a.txt", "new")
    assert names(tmp_path) == []
