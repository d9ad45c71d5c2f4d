"""The papers' figures beside our runs: what is compared, what is refused, and what a command would train."""

import json
import shutil
from pathlib import Path

import pytest

from resnet_tf.cli import reproduce
from resnet_tf.cli.train import parse_options
from resnet_tf.config import make_config
from resnet_tf.errors import UserError
from resnet_tf.models.registry import list_models
from resnet_tf.reports import tables
from resnet_tf.reports.tables import read_results, results_table
from tools import results as tool
from tools.results import ablations_table, archive_run, noise_threshold, results_page, seed_deviation

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"


def fake_run(folder, top1, *flags, source="original", best=None, images=10_000, validation=5_000):
    """A folder as a finished run of these flags leaves it, with made-up accuracies."""
    settings = make_config(**parse_options(flags)).settings()
    settings |= {"data.source": source, "data.fingerprint": source, "precision": "float32", "threads": 2}
    report = {
        "settings": settings,
        "parameters": 269_722,
        "iterations": 64_000,
        "train_images": 50_000 - validation,
        "validation_images": validation,
        "training": {"seconds": 3661.0, "median_images_per_second": 1000.0},
        "test": {"loss": 1.0, "top1": top1, "top5": 1.0, "images": images},
        "device": "a machine",
        "versions": {"tensorflow": "2", "keras": "3"},
    }
    if best is not None:
        tested = report["test"] | {"top1": best}
        report["best"] = {"iteration": 100, "validation_accuracy": best, "test": tested}
    folder.mkdir(parents=True)
    for name, value in (("settings", settings), ("report", report)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "command.txt").write_text("some command\n")
    return folder


def rows_of(table):
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_the_papers_figures():
    # arXiv:1512.03385, table 6; arXiv:1603.05027, tables 3 and 4.
    assert {name: error for name, (error, _) in tables.PUBLISHED.items()} == {
        "resnet20_v1": 8.75,
        "resnet32_v1": 7.51,
        "resnet44_v1": 7.17,
        "resnet56_v1": 6.97,
        "resnet110_v1": 6.43,
        "resnet1202_v1": 7.93,
        "resnet164_v1": 5.93,
        "resnet1001_v1": 7.61,
        "resnet110_v2": 6.37,
        "resnet164_v2": 5.46,
        "resnet1001_v2": 4.92,
    }
    assert tool.SEED_DEVIATION == 0.16
    assert set(tables.PUBLISHED) <= set(list_models())


def test_a_run_of_the_papers_recipe_on_the_original_data_is_compared(tmp_path):
    fake_run(tmp_path / "a", 0.9110, "--model", "resnet20_v1", best=0.9105)
    fake_run(tmp_path / "b", 0.9140, "--model", "resnet20_v1", "--seed", "1", best=0.9125)
    (row,) = rows_of(results_table(read_results(tmp_path)))
    assert row == {
        "network": "resnet20_v1",
        "shortcut": "identity",
        "parameters": "269,722",
        "recipe": "`he2015`, float32",
        "split": "45,000 / 5,000",
        "data": "CIFAR-10, original",
        "seeds": "[0](a), [1](b)",
        "test error %, last step": "8.75 ± 0.21",  # of 8.90 and 8.60
        "test error %, best by validation": "8.85 ± 0.14",  # of 8.95 and 8.75
        "the paper's error %": "8.75 (one run)",
        "difference": "+0.00",
    }


@pytest.mark.parametrize(
    ("flags", "source", "published", "difference"),
    [
        (("--model", "resnet20_v1"), "original", "8.75 (one run)", "+0.35"),
        (("--model", "resnet110_v2"), "original", "6.37 (median of 5)", "+2.73"),
        (("--model", "resnet20_v1"), "JPEG copy", "8.75 (one run; original data)", "not comparable (JPEG copy)"),
        (("--model", "resnet20_v1", "--recipe", "quarter"), "original", "8.75 (one run)", "not comparable (recipe)"),
        (("--model", "resnet20_v1", "--nesterov"), "original", "8.75 (one run)", "not comparable (recipe)"),
        (
            ("--model", "resnet20_v1", "--shortcut", "projection"),
            "original",
            "8.75 (one run)",
            "not comparable (network changed)",
        ),
        (
            ("--model", "resnet20_v1", "--width", "2"),
            "original",
            "8.75 (one run)",
            "not comparable (recipe, network changed)",
        ),
        (("--model", "resnet20_v2"), "original", "not given", "–"),
        (("--dataset", "shapes"), "built-in", "–", "–"),
    ],
)
def test_only_like_is_put_beside_the_papers(tmp_path, flags, source, published, difference):
    fake_run(tmp_path / "run", 0.9090, *flags, source=source)
    (row,) = rows_of(results_table(read_results(tmp_path)))
    assert (row["the paper's error %"], row["difference"]) == (published, difference)


def test_departures_from_the_named_recipe_are_named(tmp_path):
    fake_run(tmp_path / "run", 0.9, "--recipe", "quarter", "--nesterov", "--learning-rate", "0.05", "--freeze", "all")
    (row,) = rows_of(results_table(read_results(tmp_path)))
    assert row["recipe"] == "`quarter`, freeze=all, learning_rate=0.05, nesterov, float32"


def test_runs_of_older_versions_belong_to_those_of_this_one(tmp_path):
    fake_run(tmp_path / "new", 0.91, "--model", "resnet20_v1", "--shortcut", "identity")
    old = fake_run(tmp_path / "old", 0.92, "--model", "resnet20_v1", "--seed", "1")
    settings = json.loads((old / "settings.json").read_text())
    del settings["steps_per_call"]
    settings["recipe.momentum"] = 0.90
    settings["recipe.pad"] = 4.0
    settings["data.mean"] = [125.3, 123.0, 113.9]
    (old / "settings.json").write_text(json.dumps(settings))
    (row,) = rows_of(results_table(read_results(tmp_path)))
    assert row["seeds"] == "[0](new), [1](old)"


def test_a_batch_that_was_shared_is_another_run_unless_statistics_were_shared_too(tmp_path):
    for name, flags in (("one", ()), ("shared", ()), ("synchronized", ("--sync-bn",))):
        fake_run(tmp_path / name, 0.9, "--model", "resnet20_v2", *flags)
        if name != "one":
            report = json.loads((tmp_path / name / "report.json").read_text())
            (tmp_path / name / "report.json").write_text(json.dumps({**report, "replicas": "2 replicas"}))
    one, shared, synchronized = read_results(tmp_path)
    assert (one.overrides, shared.overrides, synchronized.overrides) == ((), ("2 replicas",), ("sync_bn",))
    assert one.papers_recipe
    assert not shared.papers_recipe
    assert one.settings != shared.settings


def test_what_chance_does():
    # By hand: 2 * sqrt(2 * 13.95 * 86.05 / 10000 + 2 * 0.16**2) and, of four seeds, 0.16**2 / 2.
    assert noise_threshold(13.95, 13.95, 10_000, 1, 0.16) == pytest.approx(1.07940, abs=1e-5)
    assert noise_threshold(13.95, 13.95, 10_000, 4, 0.16) == pytest.approx(1.00574, abs=1e-5)


def test_the_spread_of_seeds_is_pooled(tmp_path):
    for index, (top1, flags) in enumerate(
        [(0.91, ()), (0.92, ()), (0.80, ("--nesterov",)), (0.82, ("--nesterov",)), (0.84, ("--nesterov",))]
    ):
        fake_run(tmp_path / str(index), top1, "--seed", str(index), *flags)
    # Sums of squares 0.5 and 8 with 1 + 2 degrees of freedom.
    assert seed_deviation(read_results(tmp_path)) == pytest.approx((8.5 / 3) ** 0.5)
    assert seed_deviation(read_results(tmp_path)[:1]) is None


@pytest.mark.parametrize(
    ("flags", "others", "change", "run", "against"),
    [
        (
            ("--shortcut", "projection"),
            (),
            "projection against identity",
            "resnet20_v2 (projection, `he2016`, float32)",
            "resnet20_v2 (identity, `he2016`, float32)",
        ),
        (
            ("--model", "resnet20_v2"),
            ("--model", "resnet20_v1"),
            "v2 against v1, the papers' recipes",
            "resnet20_v2 (identity, `he2016`, float32)",
            "resnet20_v1 (identity, `he2015`, float32)",
        ),
        (
            ("--model", "resnet20_v2", "--recipe", "quarter"),
            ("--model", "resnet20_v1", "--recipe", "quarter"),
            "v2 against v1",
            "resnet20_v2 (identity, `quarter`, float32)",
            "resnet20_v1 (identity, `quarter`, float32)",
        ),
        (
            ("--model", "resnet20_v1", "--recipe", "quarter"),
            ("--model", "plain20", "--recipe", "quarter"),
            "residual against plain",
            "resnet20_v1 (identity, `quarter`, float32)",
            "plain20 (none, `quarter`, float32)",
        ),
        (
            ("--recipe", "he2016"),
            ("--recipe", "quarter"),
            "full length against `quarter`",
            "resnet20_v2 (identity, `he2016`, float32)",
            "resnet20_v2 (identity, `quarter`, float32)",
        ),
    ],
)
def test_a_difference_that_chance_explains(tmp_path, flags, others, change, run, against):
    fake_run(tmp_path / "one", 0.87, *flags)
    fake_run(tmp_path / "two", 0.865, *others)
    (row,) = ablations_table(read_results(tmp_path)).splitlines()[2:]
    # By hand: 2 * sqrt((13 * 87 + 13.5 * 86.5) / 10000 + 2 * 0.16**2) = 1.06.
    cells = [change, "CIFAR-10, original", "45,000 / 5,000", "0", run, "13.00", against, "13.50", "−0.50", "1.06", "no"]
    assert row == f"| {' | '.join(cells)} |"


def test_a_difference_that_chance_does_not_explain(tmp_path):
    fake_run(tmp_path / "long", 0.89, "--recipe", "he2016")
    fake_run(tmp_path / "short", 0.86, "--recipe", "quarter")
    (row,) = ablations_table(read_results(tmp_path)).splitlines()[2:]
    assert row.endswith("| −3.00 | 1.04 | yes |")


@pytest.mark.parametrize(
    "others",
    [("--seed", "1"), ("--nesterov",), ("--width", "2"), ("--validation-size", "0")],
)
def test_runs_that_differ_in_more_are_not_compared(tmp_path, others):
    fake_run(tmp_path / "one", 0.87)
    fake_run(tmp_path / "two", 0.865, "--shortcut", "projection", *others)
    assert tool.find_ablations(read_results(tmp_path)) == []


def test_other_data_is_not_compared(tmp_path):
    fake_run(tmp_path / "one", 0.87)
    fake_run(tmp_path / "two", 0.865, "--shortcut", "projection", source="JPEG copy")
    assert tool.find_ablations(read_results(tmp_path)) == []


def test_the_tables_need_no_framework(python):
    result = python(
        "import sys; from tools.results import Path, results_page\n"
        "assert '| resnet20_v1 |' in results_page(Path('results'))\n"
        "assert not {'tensorflow', 'keras', 'cv2'} & sys.modules.keys()"
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_what_a_short_run_of_a_large_network_showed(tmp_path):
    fake_run(tmp_path / "run", 0.9)
    assert "not run here" not in results_page(tmp_path)
    fake_run(tmp_path / "smoke" / "resnet110_v2", 0.1, "--model", "resnet110_v2", "--iterations", "200")
    smoke = {"peak_memory_mib": 3210, "gpu_hours": 4, "gpu_basis": "by its arithmetic"}
    (tmp_path / "smoke" / "resnet110_v2" / "smoke.json").write_text(json.dumps(smoke))
    page = results_page(tmp_path)
    assert "## resnet110_v2, not run here" in page
    assert "1,000 images/s (median), 3,210 MiB" in page
    assert "64,000 iterations take 2.3 hours" in page  # 64,000 * 128 / 1,000 s
    assert "On one GPU about 4 hours: an estimate, not measured (by its arithmetic)." in page
    assert "The paper's error: 6.37 (median of 5; original data)." in page
    assert "    resnet-tf train --model resnet110_v2 --recipe he2016 --data-dir DIR\n" in page
    assert "smoke/" not in page


TINY = ("--dataset", "shapes", "--recipe", "quick", "--nets", "resnet8_v2")
LENGTH = ("--iterations", "12", "--eval-every", "12", "--batch-size", "16")
FLAGS = ("--", *LENGTH, "--device", "cpu", "--precision", "float32")


@pytest.fixture
def tiny(small_data, tmp_path):
    """Runs `reproduce` on the small data, in folders of this test."""
    places = ("--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"))
    return lambda *flags: reproduce.main([*TINY, *places, *flags])


def test_what_is_missing_is_trained_and_what_is_there_is_not(tiny, tmp_path):
    assert "to be trained" in tiny("--plan", *FLAGS)["plan"][0]
    assert not (tmp_path / "runs").exists()
    made = tiny(*FLAGS)
    (row,) = rows_of(made["table"])
    (run,) = (tmp_path / "runs").iterdir()
    report = json.loads((run / "report.json").read_text())
    assert row["test error %, last step"] == f"{100 - 100 * report['test']['top1']:.2f}"
    assert row["recipe"] == "`quick`, batch_size=16, iterations=12, float32"

    (run / "command.txt").write_text("resnet-tf train\n")
    kept = Path(tool.main([str(run), "--results", str(tmp_path / "results")])["folders"][0])
    files = {"settings.json", "metrics.csv", "report.json", "command.txt"}
    assert {path.name for path in kept.iterdir()} - {"curves.png"} == files
    assert kept.name == "resnet8_v2-shapes-quick-batch-size-16-iterations-12-float32-seed0"
    shutil.rmtree(run)
    assert f"finished, {kept}" in tiny(*FLAGS)["plan"][0]
    assert not run.exists()  # not trained again
    assert "to be trained" in tiny("--plan", "--seeds", "1", *FLAGS)["plan"][0]
    assert "to be trained" in tiny("--plan", *FLAGS, "--nesterov", "--momentum", "0.8")["plan"][0]


def test_what_is_unfinished_is_resumed(tiny, tmp_path):
    first = tiny(*FLAGS)
    (run,) = (tmp_path / "runs").iterdir()
    for name in ("report.json", "final.keras", "final.json"):
        (run / name).unlink()
    with pytest.raises(UserError, match="is not finished; run its command again first"):
        archive_run(run, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    again = tiny(*FLAGS)
    assert f"to be resumed in {run}" in again["plan"][0]
    assert again["table"] == first["table"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--nets", "resnet21_v1"), "model='resnet21_v1' is not known"),
        (("--nets", "resnet20_v1,resnet20_v1"), "--nets resnet20_v1,resnet20_v1 is empty or repeats a value"),
        (("--seeds", "1,0,1"), "--seeds 1,0,1 is empty or repeats a value"),
        (("--recipe", "paper"), "recipe 'paper' is not known"),
        (("--", "--seed", "1"), "--seed does not go behind --"),
    ],
)
def test_what_cannot_be_is_said(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        reproduce.main(list(argv))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("settings.json", "{}", "settings.json lacks data.fingerprint, data.source, dataset, model"),
        ("settings.json", "[1", "settings.json cannot be read"),
        ("report.json", '{"test": {"top1": 1}}', "report.json lacks device, iterations, parameters"),
    ],
)
def test_a_folder_that_train_has_not_written_is_named(tmp_path, name, text, message):
    run = fake_run(tmp_path / "results" / "run", 0.9)
    (run / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_results(run.parent)
    with pytest.raises(UserError, match=message):
        tool.main([str(run), "--results", str(tmp_path)])
    assert not list(tmp_path.glob("resnet*"))


def test_a_run_of_a_network_of_ones_own_is_archived(tmp_path):
    run = fake_run(tmp_path / "run", 0.9)
    settings = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps(settings | {"model": "mine"}))
    assert archive_run(run, tmp_path / "results").name == "mine-he2016-float32-seed0"


def test_a_name_stays_in_the_folder(tmp_path):
    run = fake_run(tmp_path / "run", 0.9)
    for name in ("../elsewhere", "..", ".", "a/b", str(tmp_path / "x")):
        with pytest.raises(UserError, match="expected the name of a folder"):
            archive_run(run, tmp_path / "deep" / "results", name)
    assert not (tmp_path / "deep").exists()


def test_another_run_is_not_overwritten(tmp_path):
    run = fake_run(tmp_path / "run", 0.9)
    (run / "metrics.csv").write_text("")
    fake_run(tmp_path / "results" / "mine", 0.9, "--nesterov")
    with pytest.raises(UserError, match="does not hold this run; pass another name="):
        archive_run(run, tmp_path / "results", "mine")
