import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_tf import files
from resnet_tf.files import Between, misfit, replacing, write_json, write_text, write_with
from tests.conftest import ROOT


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


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_text(path, "new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert names(tmp_path) == ["pipe"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_device_that_is_full_stays_a_device():
    with pytest.raises(OSError, match="No space left"):
        write_text(Path("/dev/full"), "new")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_the_output_of_the_process_is_gone_on_with(python, tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom resnet_tf.files import write_text\n"
        "print('before')\nwrite_text(Path('/dev/stdout'), 'inside\\n')\nprint('after')\n"
    )
    assert python(program).stdout == "before\ninside\nafter\n"
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, env=os.environ | {"PYTHONPATH": ROOT}, check=True)
    assert (tmp_path / "out").read_text() == "before\ninside\nafter\n"


def test_a_link_and_the_rights_of_a_file_stay(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("value", "shape", "says"),
    [
        ({"a": 1}, {"a": int, "b?": str}, None),
        ({"a": 1.0}, {"a": int}, None),
        ({"a": 1.5}, {"a": int}, "has 1.5 as a, not a whole number"),
        ({"a": True}, {"a": int}, "has True as a, not a whole number"),
        ({"a": True}, {"a": float | None}, "has True as a, not a number"),
        ({"a": None}, {"a": float | None}, None),
        ({"b": 1}, {"a": int, "c": int}, "lacks a, c"),
        ({"a": [1, "x"]}, {"a": [int]}, "has 'x' as a, not a whole number"),
        ({"a": [1, 2]}, {"a": tuple[float, ...]}, None),
        ({"a": 10**400}, {"a": Between(0, 1e300)}, "not a number from 0 to 1e+300"),
        ({"a": float("nan")}, {"a": Between(0, 1)}, "has nan as a, not a number from 0 to 1"),
        ({"a": 7}, {"a": range(7)}, "has 7 as a, not a whole number from 0 to 6"),
        ({"a": []}, {"a": frozenset(("x", "y"))}, "has [] as a, not one of x, y"),
        ({"a": {"b": 1}}, {"a": ({"b": int}, None)}, None),
        ({"a": {"b": ""}}, {"a": ({"b": int}, None)}, "has '' as b, not a whole number"),
    ],
)
def test_the_shape_of_json(value, shape, says):
    found = misfit(value, shape)
    assert found is None if says is None else says in found
