"""What the flags of `train` ask for, checked and as data. Imports no TensorFlow."""

import argparse
import dataclasses
import re
from typing import Any, Literal

from resnet_tf.data.custom_transform import digest_of, is_function_name
from resnet_tf.data.dataset import check_name, is_image_dataset, short_name
from resnet_tf.errors import UserError
from resnet_tf.models.registry import CIFAR_NETWORKS, model_options
from resnet_tf.recipes import Recipe, check_validation, default_recipe, get_recipe, override, scaled
from resnet_tf.training.run_dir import DEFAULTS

DEFAULT_CHECKPOINT_SECONDS = 300.0

_SEEDS = 2**32  # what NumPy and Keras take as a seed; more than any other number here needs
_LEAST = {
    "seed": 0,
    "width": 1,
    "threads": 0,
    "eval_every": 1,
    "tensorboard_every": 1,
    "steps_per_call": 1,
    "input_size": 1,
    "unfreeze_at": 1,
    "replicas": 1,
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a train command asks for, checked as far as that goes without data or TensorFlow."""

    model: str
    builder: dict[str, Any]
    dataset: str
    data_dir: str | None
    recipe: Recipe
    seed: int
    run_dir: str
    overwrite: bool
    device: str
    precision: str
    threads: int
    steps_per_call: int | None
    jit_compile: bool
    deterministic: bool
    evaluate_every: int | None
    checkpoint_iterations: int | None
    checkpoint_seconds: float | None
    rollbacks: int
    eval_train: bool = False
    tensorboard_every: int | None = None
    keep_on_device: str = "auto"
    augment: str | None = None
    augment_sha256: str | None = None
    input_size: int | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    weights: str | None = None
    freeze: str = "none"
    unfreeze_at: int | None = None
    unfreeze_learning_rate: float | None = None
    train_bn: bool = False
    strategy: str = "none"
    replicas: int | None = None
    sync_bn: bool = False

    def settings(self) -> dict[str, Any]:
        """What decides the result, flat; precision and threads are added when they are known."""
        settings: dict[str, Any] = {"model": self.model, "dataset": self.dataset, "seed": self.seed}
        settings |= {f"builder.{key}": value for key, value in self.builder.items()}
        settings |= {f"recipe.{key}": value for key, value in self.recipe.as_dict().items() if key != "about"}
        settings |= {
            "evaluate_every": self.evaluate_every,
            "steps_per_call": self.steps_per_call,
            "jit_compile": self.jit_compile,
            "deterministic": self.deterministic,
        }
        settings |= {key: getattr(self, key) for key in DEFAULTS if not key.startswith("recipe.")}
        return {key: value for key, value in settings.items() if key not in DEFAULTS or value != DEFAULTS[key]}


def parse_request(arguments: argparse.Namespace) -> Request:
    """Check the flags against one another.

    Raises:
        UserError: a flag's value is not allowed; the message says what is.
    """
    try:
        model_options(arguments.model)
    except ValueError as error:
        raise UserError(f"--{error}; see --list-models") from error
    check_name(arguments.dataset, arguments.data_dir)
    for flag, low in _LEAST.items():
        value = getattr(arguments, flag)
        if value is not None and not low <= value < _SEEDS:
            raise UserError(f"--{flag.replace('_', '-')} {value} is out of range; allowed: {low} to {_SEEDS - 1}")
    recipe = _recipe(arguments)
    if recipe.validation_size == 0 and not is_image_dataset(arguments.dataset):  # own images may bring their own
        check_validation(recipe, 0)
    shortcut = _shortcut(arguments, recipe)
    iterations, seconds = _checkpoint_interval(arguments.checkpoint_every)
    name = "-".join(part for part in (arguments.model, shortcut, short_name(arguments.dataset), recipe.name) if part)
    return Request(
        model=arguments.model,
        builder={"shortcut": shortcut, "width": arguments.width, "use_bias": arguments.use_bias},
        dataset=arguments.dataset,
        data_dir=arguments.data_dir,
        recipe=recipe,
        seed=arguments.seed,
        run_dir=arguments.run_dir or f"runs/{name}-seed{arguments.seed}",
        overwrite=arguments.overwrite,
        device=arguments.device,
        precision=arguments.precision,
        threads=arguments.threads,
        steps_per_call=arguments.steps_per_call,
        jit_compile=arguments.jit_compile,
        deterministic=arguments.deterministic,
        evaluate_every=arguments.eval_every,
        checkpoint_iterations=iterations,
        checkpoint_seconds=seconds,
        rollbacks=3 if arguments.on_nan == "rollback" else 0,
        eval_train=arguments.eval_train,
        tensorboard_every=arguments.tensorboard_every if arguments.tensorboard else None,
        keep_on_device=arguments.keep_on_device,
        strategy=arguments.strategy,
        replicas=arguments.replicas,
        sync_bn=arguments.sync_bn,
        **_images(arguments),
        **_finetuning(arguments),
    )


def _finetuning(arguments: argparse.Namespace) -> dict[str, Any]:
    """What trains when.

    Raises:
        UserError: a flag has no meaning without another one.
    """
    if re.fullmatch(r"none|all|stage\d+", arguments.freeze) is None:
        raise UserError(f"--freeze {arguments.freeze} is not understood; allowed: none, all, or stageK such as stage3")
    if arguments.unfreeze_at is not None and arguments.freeze == "none":
        raise UserError("--unfreeze-at has nothing to unfreeze; add --freeze stageK or --freeze all")
    rate = arguments.unfreeze_learning_rate
    for flag, given in (("--unfreeze-learning-rate", rate is not None), ("--train-bn", arguments.train_bn)):
        if given and arguments.unfreeze_at is None:
            raise UserError(f"{flag} says what comes after the switch; add --unfreeze-at ITERATION")
    if rate is not None and not 0 <= rate <= 1e6:
        raise UserError(f"--unfreeze-learning-rate {rate} is out of range; allowed: 0 to 1e+06")
    names = ("weights", "freeze", "unfreeze_at", "unfreeze_learning_rate", "train_bn")
    return {name: getattr(arguments, name) for name in names}


def _images(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the images are to be treated: own ones have no usual way, so that the network decides."""
    small = arguments.model in CIFAR_NETWORKS
    own = is_image_dataset(arguments.dataset)
    return {
        "augment": arguments.augment or (default_augmentation(arguments.model) if own else None),
        # A function that has changed makes another run.
        "augment_sha256": digest_of(arguments.augment) if is_function_name(arguments.augment) else None,
        "input_size": arguments.input_size or ((32 if small else 224) if own else None),
        "on_bad_image": arguments.on_bad_image,
    }


def default_augmentation(model: str) -> str:
    """How own images are varied for a network where nobody says."""
    return "cifar" if model in CIFAR_NETWORKS else "imagenet"


def _shortcut(arguments: argparse.Namespace, recipe: Recipe) -> str | None:
    """The shortcut that is asked for; plain networks are those without."""
    if model_options(arguments.model).get("shortcut") != "none":
        return arguments.shortcut or recipe.shortcut
    if arguments.shortcut not in (None, "none"):
        raise UserError(
            f"--shortcut {arguments.shortcut} does not go with {arguments.model}, which is the network without "
            f"shortcuts; take --model {arguments.model.replace('plain', 'resnet')}_v1"
        )
    return None


def _recipe(arguments: argparse.Namespace) -> Recipe:
    fields = {field.name for field in dataclasses.fields(Recipe)} - {"name", "about", "shortcut"}
    changes = {name: getattr(arguments, name) for name in fields if getattr(arguments, name) is not None}
    recipe = get_recipe(arguments.recipe or default_recipe(arguments.model))
    changed = override(recipe, **changes)
    if not arguments.scale_learning_rate:
        return changed
    return scaled(changed, recipe.batch_size, changes.get("warmup_learning_rate"))


def _checkpoint_interval(text: str | None) -> tuple[int | None, float | None]:
    """Iterations and seconds between checkpoints."""
    if text is None:
        return None, DEFAULT_CHECKPOINT_SECONDS
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", text)
    if match is None or float(match[1]) <= 0 or ("." in match[1] and not match[2]):
        raise UserError(f"--checkpoint-every {text} is not understood; allowed: iterations (500) or minutes (5m)")
    return (None, 60 * float(match[1])) if match[2] else (int(match[1]), None)
