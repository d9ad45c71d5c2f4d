import platform
import subprocess
import sys
import threading
import time

import pytest

import resnet_tf
from resnet_tf.errors import UserError
from resnet_tf.process import recursion_limit


def test_the_recursion_limit_is_raised_and_put_back():
    before = sys.getrecursionlimit()
    with recursion_limit(before):
        assert sys.getrecursionlimit() == 20 * before
        with recursion_limit(1):
            assert sys.getrecursionlimit() == 20 * before
    assert sys.getrecursionlimit() == before
    assert resnet_tf.room_for_depth is recursion_limit


def test_who_asks_for_quiet_gets_it(python):
    result = python(
        "import resnet_tf; resnet_tf.quiet(); import tensorflow as tf; print(int(tf.reduce_sum(tf.ones(3))))",
        TF_CPP_MIN_LOG_LEVEL="",
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "3\n", "")


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="only x86 is told")
@pytest.mark.parametrize(("given", "used"), [(None, "1 True"), ("0", "0 False")])
def test_the_command_trains_by_onednn_unless_told_otherwise(python, monkeypatch, tmp_path, given, used):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    result = python(
        """
import contextlib, os, sys
from resnet_tf.cli.train import main
from resnet_tf.errors import UserError
with contextlib.suppress(UserError):
    main(["--dataset", f"folder:{sys.argv[1]}", "--run-dir", f"{sys.argv[1]}/run"])
from tensorflow.python.util._pywrap_util_port import IsMklEnabled
print(os.environ["TF_ENABLE_ONEDNN_OPTS"], IsMklEnabled())
        """,
        tmp_path / "missing",
        **({} if given is None else {"TF_ENABLE_ONEDNN_OPTS": given}),
    )
    assert result.stdout.strip() == used, result.stderr


def test_threads_that_build_at_once_leave_the_limit_as_it_was():
    before = sys.getrecursionlimit()
    together = threading.Barrier(8)
    low = []

    def build(index):
        together.wait()
        time.sleep(0.01 * index)  # the first to come is the first to go: each saw another's limit as the one before
        with recursion_limit(500 + index):
            time.sleep(0.05)
            low.append(sys.getrecursionlimit() < 20 * (500 + index))

    threads = [threading.Thread(target=build, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(low)
    assert sys.getrecursionlimit() == before


def test_what_libraries_print_is_swallowed_and_what_python_prints_is_not():
    code = """
import os, sys
from resnet_tf.data.image_io import UnreadableImageError, cv2, decode_image
from resnet_tf.process import only_python_on_stderr
png = bytearray(cv2.imencode(".png", cv2.UMat(9, 9, 0).get())[1].tobytes())
png[-20] ^= 255
with only_python_on_stderr():
    os.write(2, b"a library")
    print("first", file=sys.stderr)
    try:
        decode_image(bytes(png))
    except UnreadableImageError as error:
        print(error, file=sys.stderr)
print("last", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "first\ndamaged or truncated\nlast\n")


def test_other_threads_leave_the_stderr_of_the_process_alone():
    code = """
import os, sys, threading
from resnet_tf.process import only_python_on_stderr
entered, left = threading.Event(), threading.Event()
def first():
    with only_python_on_stderr():
        entered.set()
        left.wait()
def second():
    entered.wait()
    with only_python_on_stderr():
        os.write(2, b"a library ")
    left.set()
threads = [threading.Thread(target=first), threading.Thread(target=second)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("last", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "a library last\n")


def test_an_error_names_its_argument():
    with pytest.raises(ValueError, match="no such depth") as caught:
        raise UserError("no such depth", argument="depth")
    assert caught.value.argument == "depth"
    assert UserError("something else").argument is None
