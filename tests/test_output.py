"""Output that nobody reads any more, that cannot be written, or whose encoding lacks what is to be said."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_tf.cli.main import main, run_command
from resnet_tf.errors import UserError
from tests.conftest import ROOT, TINY


def unread():
    """A context in which standard output is a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return contextlib.redirect_stdout(open(writer, "w"))


def test_a_command_ends_where_nobody_reads(capfd):
    said = []

    def command(argv):
        for number in range(10):
            print(number, flush=True)
            said.append(number)

    with unread():
        assert run_command(command, []) == 141
    assert (said, capfd.readouterr().err) == ([], "")


def test_what_is_left_at_the_end_counts_too(capfd):
    with unread():
        assert run_command(lambda argv: print("one line"), []) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("small_data")
def test_a_training_goes_on_without_a_reader(tmp_path, capfd):
    flags = ["--iterations", "2", "--run-dir", str(tmp_path / "run")]
    with unread():
        assert main(["train", *TINY, *flags]) == 0
    assert "iteration 2/2" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "final.keras").exists()
    assert capfd.readouterr().err == ""


def test_the_interpreter_ends_quietly(python):
    program = (
        "import os, sys\n"
        "from resnet_tf.cli.main import run_command\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "length, lasting = map(int, sys.argv[1:])\n"
        "sys.exit(run_command(lambda argv: print('x' * length), [], lasting=bool(lasting)))"
    )
    for length in (1, 100_000):
        result = python(program, length, 0)
        assert (result.returncode, result.stderr) == (141, "")
        result = python(program, length, 1)
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_onto_a_full_disk(capfd):
    with open("/dev/full", "w") as stream, contextlib.redirect_stdout(stream):
        assert run_command(lambda argv: print("one line"), []) == 2
    assert capfd.readouterr().err == (
        "resnet-tf: error: the output cannot be written (No space left on device); make room, or send it elsewhere\n"
    )
    with open("/dev/full", "w") as stream, contextlib.redirect_stdout(stream):
        assert run_command(lambda argv: [print("one line", flush=True) for _ in range(3)], [], lasting=True) == 0
    assert capfd.readouterr().err == (
        "resnet-tf: the output cannot be written any more (No space left on device); going on\n"
    )


def test_characters_that_the_encoding_lacks():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(stream):
        assert main(["train", "--list-models"]) == 0
        print("10 ± 1", os.fsdecode(b"\xff.png"), flush=True)
    assert stream.buffer.getvalue().endswith(b"10 \\xb1 1 \\udcff.png\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams(closed, tmp_path):
    command = f"{sys.executable} -m resnet_tf train --list-models {closed}"
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    # With all of them closed, one that imports TensorFlow, around which stderr is put aside.
    failing = "summary nothing.keras" if "<&-" in closed else "train --model nothing"
    failing = f"{sys.executable} -m resnet_tf {failing} {closed}"
    assert subprocess.run(["sh", "-c", failing], cwd=ROOT, capture_output=True, check=False).returncode == 2


def test_a_failing_download_is_one_line(tmp_path):
    nowhere = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path), "TF_CPP_MIN_LOG_LEVEL": ""}
    command = [sys.executable, "-m", "resnet_tf", "train", "--dataset", "cifar10", "--run-dir", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": ROOT} | nowhere
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("resnet-tf: error: CIFAR-10 is not in ")
    assert "its download failed" in result.stderr
    assert result.stderr.count("\n") == 1


def test_names_in_files_control_no_terminal(capsys):
    def command(argv):
        print("caf\u00e9 \x1b]0;owned\x07")
        raise UserError("the class '\x1b[31m' \x9b31m is not known")

    assert run_command(command, []) == 2
    out, err = capsys.readouterr()
    assert out == "caf\u00e9 \\x1b]0;owned\\x07\n"
    assert err == "resnet-tf: error: the class '\\x1b[31m' \\x9b31m is not known\n"
    assert main(["train", "--model", "\x1b[31m"]) == 2
    assert "\x1b" not in capsys.readouterr().err
