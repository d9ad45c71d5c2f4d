"""The short version of the chaos harness; `python -m tests.chaos --kills 100` is the long one."""

from tests.chaos.harness import SIGKILL_CODE, digests, start, undisturbed

FLAGS = (
    *("--model", "resnet8_v2", "--iterations", "12", "--batch-size", "16"),
    *("--validation-size", "40", "--eval-every", "5", "--checkpoint-every", "4", "--threads", "1"),
    *("--precision", "float32", "--ema", "0.9"),
)


def test_a_run_that_dies_inside_saves_ends_with_the_bytes_of_one_that_never_died(tmp_path, small_folder):
    flags = (*FLAGS, *small_folder)
    operations = undisturbed(tmp_path / "whole", flags)
    assert operations > 50
    killed = tmp_path / "killed"
    # Early (the settings), in the middle (a checkpoint or a model) and late (the report).
    for operation in (3, operations // 3, operations // 4):
        process = start(killed, flags, operation)
        process.communicate()
        assert process.returncode == SIGKILL_CODE
    moved = killed.rename(tmp_path / "moved")
    process = start(moved, flags)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert digests(moved) == digests(tmp_path / "whole")
    assert not list(moved.rglob(".new-*"))
