import dataclasses
import math

import pytest

from resnet_tf.cli.train import parse_options
from resnet_tf.config import make_config
from resnet_tf.errors import UserError
from resnet_tf.recipes import RECIPES, Recipe, check_validation, default_recipe, get_recipe, override


def test_the_recipes():
    assert list(RECIPES) == ["he2015", "he2016", "tutorial", "quarter", "quick", "finetune"]
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert (recipe.iterations is None) != (recipe.epochs is None)
        assert recipe.about


def test_he2015_is_section_4_2_of_the_paper():
    recipe = get_recipe("he2015")
    assert (recipe.iterations, recipe.batch_size, recipe.learning_rate) == (64_000, 128, 0.1)
    assert [drop * recipe.iterations for drop in recipe.drops] == [32_000, 48_000]
    assert (recipe.drop_factor, recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.1, 0.9, False, 1e-4)
    assert (recipe.decay, recipe.warmup, recipe.validation_size) == ("kernels", "none", 0.1)
    assert (recipe.pad, recipe.pad_mode, recipe.shortcut) == (4, "mean", None)


def test_he2016_adds_400_iterations_at_a_tenth():
    changed = {
        field: value
        for field, value in get_recipe("he2016").as_dict().items()
        if value != get_recipe("he2015").as_dict()[field]
    }
    del changed["name"], changed["about"]
    assert changed == {"warmup": "iterations", "warmup_iterations": 400}
    assert get_recipe("he2016").warmup_learning_rate == 0.01


def test_tutorial_is_200_epochs_of_all_images():
    recipe = get_recipe("tutorial")
    assert (recipe.epochs, recipe.nesterov, recipe.validation_size, recipe.shortcut) == (200, True, 0, "projection")
    assert recipe.length(50_000) == 78_000
    assert [drop * recipe.length(50_000) for drop in recipe.drops] == pytest.approx([31_200, 46_800])


def test_finetune_fits_its_batch_to_small_data():
    recipe = get_recipe("finetune")
    assert [recipe.batch_for(images) for images in (45_000, 180, 128, 100, 3)] == [32, 32, 32, 25, 1]
    assert [recipe.batch_for(images, 4) for images in (100, 9)] == [24, 4]  # replicas and microbatches share it evenly
    assert override(recipe, batch_size=128).batch_for(180) == 45  # a quarter
    assert override(recipe, max_batch_share=1).batch_for(20) == 32
    assert get_recipe("he2015").batch_for(100) == 128
    assert 10 <= recipe.epochs <= 20
    assert recipe.length(2_000) == recipe.epochs * 62


def test_what_is_the_default(tmp_path):
    def name(**options):
        return make_config(**options).recipe.name

    assert name(model="resnet50", dataset="folder:pets") == name(dataset="list:a.txt") == "finetune"
    assert name(model="resnet20_v1", weights="runs/first") == "finetune"
    assert name(model="resnet20_v1", dataset="arrays", data_given=True, weights="x.keras") == "finetune"
    assert (name(model="resnet20_v2"), name(model="resnet50", dataset="shapes")) == ("he2016", "he2015")
    assert name(recipe="he2015", dataset="folder:pets") == "he2015"
    # A run from before there was such a recipe goes on as it was started.
    (tmp_path / "settings.json").write_text('{"recipe.name": "he2016"}')
    earlier = {"dataset": "folder:pets", "run_dir": str(tmp_path)}
    assert (name(**earlier), name(**earlier, overwrite=True)) == ("he2016", "finetune")
    assert name(**earlier, model="resnet50") == "finetune"


def test_an_unfinished_run_of_earlier_defaults_is_found_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "resnet18", "--dataset", "folder:x/pets"]
    new, old = (f"runs/resnet18-pets-{recipe}-seed0" for recipe in ("finetune", "he2015"))
    assert parse_options(flags)["run_dir"] == new
    (tmp_path / old).mkdir(parents=True)
    (tmp_path / old / "settings.json").write_text('{"recipe.name": "he2015"}')
    assert parse_options(flags)["run_dir"] == old
    for more in (["--overwrite"], ["--recipe", "finetune"]):
        assert parse_options([*flags, *more])["run_dir"] == new
    (tmp_path / old / "report.json").write_text("{}")
    assert parse_options(flags)["run_dir"] == new


def test_quarter_and_quick():
    quarter = get_recipe("quarter")
    assert (quarter.iterations, [drop * 16_000 for drop in quarter.drops]) == (16_000, [8_000, 12_000])
    quick = get_recipe("quick")
    assert (quick.epochs, quick.schedule, quick.nesterov, quick.weight_decay) == (20, "onecycle", True, 5e-4)
    assert (quick.learning_rate, quick.learning_rate * quick.start_factor, quick.rise) == (0.25, 0.025, 0.25)
    assert quick.length(45_000) == 20 * 351


def test_default_recipe():
    assert default_recipe("resnet20_v2") == "he2016"
    assert default_recipe("resnet110_v1") == "he2015"
    assert default_recipe("plain20") == "he2015"


def test_recipes_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("he2015").momentum = 0.5


def test_as_dict_is_plain_json():
    import json

    recipe = get_recipe("he2016")
    fields = json.loads(json.dumps(recipe.as_dict()))
    assert fields == recipe.as_dict()
    assert Recipe(**{**fields, "drops": tuple(fields["drops"])}) == recipe


def test_a_shorter_length_keeps_the_proportions():
    recipe = override(get_recipe("he2016"), iterations=6_400)
    assert (recipe.length(45_000), recipe.warmup_iterations, recipe.drops) == (6_400, 40, (0.5, 0.75))
    assert override(get_recipe("he2016"), iterations=10).warmup_iterations == 1
    assert override(get_recipe("he2016"), iterations=6_400, warmup_iterations=7).warmup_iterations == 7


def test_iterations_and_epochs_replace_each_other():
    assert override(get_recipe("tutorial"), iterations=1_000).length(50_000) == 1_000
    assert override(get_recipe("he2015"), epochs=2.0, batch_size=100).length(1_050) == 20
    assert override(get_recipe("he2015"), epochs=0.001).length(50_000) == 1
    with pytest.raises(UserError, match="exclude each other"):
        override(get_recipe("he2015"), epochs=1.0, iterations=100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "step"}, "schedule='step' is not known; allowed: piecewise, cosine, onecycle, plateau, constant"),
        ({"warmup": "slow"}, "warmup='slow' is not known; allowed: none, iterations, error, linear"),
        ({"warmup": "linear"}, "warmup='linear' needs its length"),
        ({"decay": "bias"}, "decay='bias' is not known; allowed: kernels, all"),
        ({"pad_mode": "edge"}, "pad_mode='edge' is not known; allowed: mean, black, reflect"),
        ({"monitor": "loss"}, "monitor='loss' is not known"),
        ({"batch_size": 0}, "batch_size=0 is out of range; allowed: 1 to"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1 is out of range"),
        ({"learning_rate": math.nan}, "learning_rate=nan is out of range"),
        ({"momentum": 1.5}, "momentum=1.5 is out of range; allowed: 0 to 1"),
        ({"iterations": 0}, "iterations=0 is out of range"),
        ({"epochs": 0.0}, "epochs=0.0 is out of range"),
        ({"epochs": math.inf}, "epochs=inf is out of range"),
        ({"pad": -1}, "pad=-1 is out of range"),
        ({"patience": 0}, "patience=0 is out of range"),
        ({"drops": (0.75, 0.5)}, "drops=.* must rise"),
        ({"drops": (0.5, 0.5)}, "drops=.* must rise"),
        ({"drops": (0.5, 1.0)}, "between 0 and 1"),
        ({"drops": (math.nan,)}, "between 0 and 1"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(UserError, match=message):
        override(get_recipe("he2015"), **changes)


def recipe_of(*flags):
    return make_config(**parse_options(["--recipe", "he2015", *flags])).recipe


def test_the_learning_rate_grows_with_the_batch():
    # 1706.02677: 0.1 for 256 images, 3.2 for 8,192; here 0.1 for 128.
    assert recipe_of("--scale-learning-rate", "--batch-size", "4096").learning_rate == 3.2
    assert recipe_of("--scale-learning-rate", "--batch-size", "64", "--learning-rate", "0.4").learning_rate == 0.2
    assert recipe_of("--scale-learning-rate").learning_rate == 0.1
    parts = recipe_of("--scale-learning-rate", "--batch-size", "384", "--accumulate", "3")  # 3 does not divide 128
    assert (parts.batch_size, parts.accumulate, parts.learning_rate) == (384, 3, 0.3)


def test_a_linear_warmup_begins_at_the_unscaled_learning_rate():
    flags = ("--scale-learning-rate", "--batch-size", "512", "--warmup", "linear", "--warmup-iterations", "10")
    assert recipe_of(*flags).warmup_learning_rate == 0.1
    assert recipe_of(*flags, "--warmup-learning-rate", "0.02").warmup_learning_rate == 0.02
    constant = recipe_of("--scale-learning-rate", "--batch-size", "512", "--recipe", "he2016")
    assert (constant.warmup, constant.warmup_learning_rate, constant.learning_rate) == ("iterations", 0.01, 0.4)


def test_a_plateau_on_the_loss_needs_no_validation_images():
    recipe = override(get_recipe("he2015"), schedule="plateau", monitor="minibatch-loss", validation_size=0)
    assert recipe.schedule == "plateau"
    check_validation(recipe, 0)


@pytest.mark.parametrize("changes", [{"schedule": "plateau"}, {"early_stopping": 3}])
def test_what_goes_by_the_validation_accuracy_needs_images_for_it(changes):
    recipe = override(get_recipe("he2015"), **changes)
    check_validation(recipe, 1)
    with pytest.raises(UserError, match=r"needs validation images; use validation_size=… above 0"):
        check_validation(recipe, 0)


def test_an_unknown_recipe():
    with pytest.raises(UserError, match="recipe 'he2017' is not known; allowed: he2015, he2016, tutorial"):
        get_recipe("he2017")
