"""The short version of the chaos harness; `python -m tests.chaos --kills 500` is the long one."""

from tests.chaos.harness import KILLED, Starter, digests

FLAGS = (
    *("--model", "resnet8_v2", "--iterations", "12", "--batch-size", "16"),
    *("--validation-size", "40", "--eval-every", "5", "--checkpoint-every", "4", "--threads", "1"),
    *("--precision", "float32", "--ema", "0.9"),
)


def test_a_run_that_dies_again_and_again_ends_with_the_folder_of_one_that_never_died(tmp_path, small_folder):
    flags = (*FLAGS, *small_folder)
    with Starter() as starter:
        assert starter.undisturbed(tmp_path / "whole", flags) > 50
        killed = tmp_path / "killed"
        for kill in ("command:2", "step-:2", "evaluation:1", "final:2", "report.html:1", "report:4"):
            # Only the last one draws: what those before it would have drawn is drawn again anyway.
            assert starter.train(killed, flags, kill, draws=False) == KILLED, (killed / "output").read_text()
            killed = killed.rename(tmp_path / f"{killed.name}-moved")
        assert starter.train(killed, flags) == 0, (killed / "output").read_text()
    found = digests(killed / "run")
    assert {"final.keras", "report.json", "metrics.csv", "iterations.bin", "command.txt"} <= found.keys()
    assert found == digests(tmp_path / "whole" / "run")
    assert not list(killed.rglob(".new-*"))
