"""The recipe's later fields, from the command line to the run."""

import json

import numpy as np
import pytest

from resnet_tf import fitting
from resnet_tf.cli.train import main, parse_options
from resnet_tf.config import make_config
from resnet_tf.errors import UserError
from resnet_tf.recipes import get_recipe, override

FLAGS = ("--iterations", "4", "--eval-every", "4", "--precision", "float32", "--learning-rate", "0.001")


@pytest.mark.parametrize(("optimizer", "policy"), [("adam", "float32"), ("adamw", "mixed_float16")])
def test_a_run_with_everything(tmp_path, train, monkeypatch, optimizer, policy, shapes):
    make, given = fitting.make_train_step, []

    def watched(*arguments, class_weights, **options):
        given.append(class_weights)
        return make(*arguments, class_weights=class_weights, **options)

    monkeypatch.setattr(fitting, "make_train_step", watched)
    fields = {"optimizer": optimizer, "label_smoothing": 0.1, "class_weights": "balanced", "clip_norm": 1.0}
    flags = [part for key, value in fields.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    report = train(tmp_path / "run", *FLAGS, *flags, "--precision", policy)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert {key: settings[f"recipe.{key}"] for key in fields} == fields
    assert report["iterations"] == 4
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all((row["train_l2"] == 0) == (optimizer == "adamw") for row in rows)
    (weights,) = given
    # 180 images, in stratified shares of 200: N / (C · n) of every class.
    members = np.bincount(shapes.train.labels)
    np.testing.assert_allclose(weights, 18 / (members * 0.9), rtol=0.06)


def test_an_early_end_is_in_the_report(tmp_path, train, capsys):
    flags = [*FLAGS, "--iterations", "30", "--eval-every", "2", "--learning-rate", "0", "--warmup", "none"]
    flags += ["--early-stopping", "2"]
    report = train(tmp_path / "run", *flags)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert report["iterations"] == 2 * len(rows) < 30
    assert "ending early: no better validation in 2 evaluations" in capsys.readouterr().out


def test_settings_of_runs_from_before_are_the_same(finished_run):
    settings = json.loads((finished_run[0] / "settings.json").read_text())
    later = {"optimizer", "clip_norm", "label_smoothing", "class_weights", "early_stopping"}
    assert not {f"recipe.{name}" for name in later} & settings.keys()


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "lion"}, {"label_smoothing": 1.0}, {"clip_norm": 0.0}, {"class_weights": "even"},
     {"early_stopping": -1}],
)  # fmt: skip
def test_values_out_of_range(changes):
    with pytest.raises(UserError, match=f"^{next(iter(changes))}="):
        override(get_recipe("he2015"), **changes)


def test_other_fields_are_another_run(finished_run):
    with pytest.raises(UserError, match=r'recipe\.optimizer is "sgd" there, "adam" here'):
        main([*finished_run[1], "--optimizer", "adam"])


def asked(*flags):
    return make_config(**parse_options(["--model", "resnet8_v1", *flags])).recipe


def test_scaling_the_learning_rate_from_the_command_line():
    assert asked("--batch-size", "512").learning_rate == 0.1
    assert asked("--batch-size", "512", "--scale-learning-rate").learning_rate == 0.4
    flags = ("--batch-size", "256", "--scale-learning-rate", "--warmup", "linear", "--warmup-iterations", "9")
    recipe = asked(*flags, "--learning-rate", "0.3")
    assert (recipe.batch_size, recipe.learning_rate, recipe.warmup_learning_rate) == (256, 0.6, 0.3)
    assert asked(*flags, "--warmup-learning-rate", "0.01").warmup_learning_rate == 0.01
