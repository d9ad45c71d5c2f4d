import json

import pytest

from resnet_tf.cli import compare, train
from resnet_tf.errors import UserError


def write_run(folder, seed, test, validation, **changes):
    folder.mkdir()
    settings = {
        "model": "resnet20_v1",
        "seed": seed,
        "recipe.name": "quick",
        "recipe.learning_rate": 0.1,
        "threads": seed,
        "recipe.iterations": None,
        "recipe.validation_size": 0.1,
        **dict.fromkeys(("dataset", "data.source", "data.fingerprint", "precision"), "any"),
    }
    (folder / "settings.json").write_text(json.dumps(settings | changes))
    score = "" if validation is None else validation
    head = "iteration,epoch,learning_rate,train_loss,train_accuracy,validation_accuracy,images_per_second,seconds"
    (folder / "metrics.csv").write_text(f"{head}\n100,2.0,0.1,1.0,0.5,{score},500,99\n")
    training = {"seconds": 3725.4, "median_images_per_second": 1000.0 + seed}
    tested = None if test is None else {"loss": 1.0, "top1": test, "top5": 1.0, "images": 100}
    report = {"parameters": 269722, "training": training, "test": tested, "device": "any"}
    report |= dict.fromkeys(("iterations", "train_images", "validation_images"), 100)
    report |= {"settings": {"data.source": "any"}, "versions": {"tensorflow": "2", "keras": "3"}}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def three(tmp_path):
    scores = [(0.91, 0.92), (0.92, 0.93), (0.94, 0.93)]
    return [write_run(tmp_path / f"s{i}", i, test, validation) for i, (test, validation) in enumerate(scores)]


def test_mean_and_deviation_over_three_seeds(three):
    lines = compare.compare_table(three).splitlines()
    assert lines[1].split() == ["s0", "resnet20_v1", "269,722", "quick", "0", "92.00", "91.00", "1000", "1:02:05"]
    # 91, 92, 94: mean 92.33, squared deviations 1.78 + 0.11 + 2.78 = 4.67, over 2: 1.53.
    assert "92.33 ± 1.53" in lines[4]
    assert lines[4].startswith("mean ± std of 3")
    assert "92.67 ± 0.58" in lines[4]
    assert len(lines) == 5


def test_other_settings_are_kept_apart_and_named(three, tmp_path):
    other = write_run(tmp_path / "other", 0, 0.5, None, **{"recipe.learning_rate": 0.2, "builder.width": 2})
    table = compare.compare_table([*three, other])
    assert "other differs from s0: recipe.learning_rate is 0.1 there, 0.2 here" in table
    assert "mean ± std of 3" in table
    line = next(line for line in table.splitlines() if line.startswith("other "))
    assert "resnet20_v1 width 2" in line
    assert line.split()[-4:] == ["-", "50.00", "1000", "1:02:05"]


def test_one_seed_has_no_deviation(three):
    assert "±" not in compare.compare_table(three[:1])


def test_an_unfinished_run(three):
    (three[0] / "report.json").unlink()
    line = compare.compare_table(three[:1]).splitlines()[1]
    assert line.split() == ["s0", "resnet20_v1", "-", "quick", "0", "92.00", "-", "-", "0:01:39"]


@pytest.mark.parametrize("text", ["iteration,seconds\n1,x\n", "seconds\n1\n", "iteration\n1,2\n", 'iteration\n""\n'])
def test_damaged_rows(three, text):
    (three[0] / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        compare.compare_table(three)


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        compare.main([str(tmp_path / "none")])
    with pytest.raises(UserError, match=r"no known ending; allowed: \.png, \.pdf, \.svg"):
        compare.main([str(tmp_path), "--output", "a.txt"])
    (tmp_path / "settings.json").write_text('{"theme": "dark"}')  # of some other program
    with pytest.raises(UserError, match="holds no run"):
        compare.main([str(tmp_path)])


def test_the_figure_and_no_tensorflow(three, tmp_path, command):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    result = command("compare", *three, "--output", tmp_path / "c.png", PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "curves in" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert not imported & {"tensorflow", "keras", "cv2"}


def test_seeds_in_turn(train_seeds, tmp_path, capsys):
    result = train_seeds("--seeds", "0,1", "--run-dir", str(tmp_path / "run"))
    assert list(result["seeds"]) == [0, 1]
    losses = [report["test"]["loss"] for report in result["seeds"].values()]
    assert losses[0] != losses[1]
    out = capsys.readouterr().out
    assert "mean ± std of 2" in out
    alone = train_seeds("--seed", "1", "--run-dir", str(tmp_path / "alone"))
    assert alone["test"]["loss"] == losses[1]
    train_seeds("--seeds", "0,1", "--run-dir", str(tmp_path / "run"))
    assert capsys.readouterr().out.count("is finished") == 2


def test_seeds_that_are_refused(train_seeds, tmp_path):
    with pytest.raises(UserError, match="seed twice"):
        train_seeds("--seeds", "1,1")
    with pytest.raises(UserError, match="allowed: 0 to"):
        train_seeds("--seeds", "0,-1", "--run-dir", str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def train_seeds(small_data):
    flags = ["--model", "resnet8_v2", "--dataset", "shapes", "--batch-size", "16", "--iterations", "2"]
    return lambda *more: train.main([*flags, "--device", "cpu", "--precision", "float32", *more])
