"""What a training is asked for, checked and as data. Imports no TensorFlow."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from resnet_tf.data.custom_transform import digest_of, is_function_name, name_of
from resnet_tf.data.dataset import check_name, is_image_dataset
from resnet_tf.errors import UserError, did_you_mean
from resnet_tf.files import read_json
from resnet_tf.models.registry import CIFAR_NETWORKS, model_options
from resnet_tf.recipes import (
    FINE_TUNING,
    RECIPE_FIELDS,
    Recipe,
    check_fields,
    check_validation,
    default_recipe,
    get_recipe,
    override,
    scaled,
    setting,
)

SHORTCUTS = ("identity", "projection", "projection_all", "none")
IDENTITY_PADDINGS = ("center", "end")
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
AnyPrecision = Precision | Literal["auto"]
ANY_PRECISION: tuple[AnyPrecision, ...] = ("auto", *PRECISIONS)
AUGMENTATIONS = ("cifar", "imagenet", "strong", "none")
FORMATS = ("keras", "saved_model", "tflite", "onnx")
QUANTIZATIONS = (None, "float16", "int8")
DEFAULT_CHECKPOINT_SECONDS = 300.0

MAX_CLASSES, MAX_SIDE, MAX_WIDTH = 100_000, 4096, 256  # more takes all memory, or is a slip
_MAX_SEED = 2**32 - 1  # what NumPy and Keras take as a seed; more than any other number here needs
# Where the flags of each group begin.
GROUPS = {
    "shortcut": "network",
    "augment": "images",
    "weights": "fine-tuning",
    "run_dir": "run",
    "strategy": "several devices, which share each batch (docs/distributed.md)",
}


def _count(default: int | None, low: int = 1, high: int = _MAX_SEED, **metadata: Any) -> Any:
    return setting(default, low=low, high=high, parse=int, **metadata)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of a training, which `train` takes as keyword arguments beside the fields of its recipe.

    Attributes:
        model: network by name.
        dataset: cifar10, cifar100, shapes, folder:PATH, list:TRAIN[,[VALID][,TEST]].
        data_dir: folder or archive with CIFAR; without it, Keras' cache, then a download.
        recipe: a recipe by name; by default the paper's, he2016 for v2 networks, else he2015; for
            image folders, lists and where weights are given, finetune.
        seed: seed of weights, order and augmentation.
        shortcut: by default the network's or the recipe's own.
        identity_padding: where the identity shortcut's zero channels are; by default center (half before, half after),
            or as in the weights.
        width: multiplies the channels.
        use_bias: give the convolutions a bias.
        augment: how training images are varied, and all others framed; by default cifar, or imagenet where an image
            folder or list trains a network of ImageNet's; or a function(image uint8 (H, W, C), numpy.random.Generator)
            of the input size, from a file or as MODULE:FUNCTION, where the others are framed as by default.
        input_size: side that all images get on the fly; by default the data's, of image folders and lists 32, or 224
            for networks of ImageNet's.
        on_bad_image: what happens where image files are unreadable, damaged or there twice.
        weights: start from these, under a new classifier: a PyTorch checkpoint, a .keras or .weights.h5 file, the
            folder of a run, weights that come with the package (NETWORK:NAME), or imagenet.
        freeze: what does not train: nothing, the stem up to and including stage K, or all but the classifier.
        unfreeze_at: from this step on everything trains.
        unfreeze_learning_rate: highest learning rate from then on; by default as before.
        train_bn: unfreeze batch normalization too, which otherwise stays frozen.
        run_dir: the run's directory; runs/<model>[-<shortcut>]-<dataset>-<recipe>-seed<k> on the command line.
        overwrite: start anew where a run exists.
        device: auto, cpu, gpu or gpu:N.
        precision: auto is the fastest one on the device.
        threads: threads an operation may use; one per core on the command line, from Python as they are.
        steps_per_execution: steps in one compiled call; by default 1, on GPUs 10 for small images.
        keep_on_device: hold images in the device's memory and vary them there; by default CIFAR's on GPUs.
        jit_compile: compile the step with XLA (slower on CPUs).
        deterministic: deterministic kernels only.
        evaluate_every: steps between evaluations; by default an epoch.
        checkpoint_every: steps (500) or minutes (5m) between checkpoints; by default each evaluation and every 5
            minutes.
        eval_train: evaluate on the training images as well.
        tensorboard: write event files to RUN/tensorboard.
        tensorboard_every: evaluations between its pictures and histograms.
        on_nan: what a diverging run does.
        strategy: mirrored for the GPUs of this machine, multiworker for the processes that TF_CONFIG names (see
            resnet-tf launch); by default multiworker where TF_CONFIG names several, mirrored where there are several
            GPUs, else none. From Python also a tf.distribute.Strategy.
        replicas: GPUs that mirrored uses, by default all; or parts of the CPU.
        sync_bn: batch normalization over all replicas; by default over each one's share.
    """

    model: str = setting("resnet20_v2")
    dataset: str = setting("cifar10")
    data_dir: str | None = setting(None)
    recipe: Recipe = setting(None)
    seed: int = _count(0, 0)

    shortcut: str | None = setting(None, choices=SHORTCUTS)
    identity_padding: str | None = setting(None, choices=IDENTITY_PADDINGS)
    width: int = _count(1, high=MAX_WIDTH)
    use_bias: bool = setting(False)

    augment: Any = setting(None, metavar="|".join((*AUGMENTATIONS, "FILE.py:FUNCTION")))
    input_size: int | None = _count(None, high=MAX_SIDE, metavar="PIXELS")
    on_bad_image: str = setting("stop", choices=("stop", "skip"))

    weights: str | None = setting(None, metavar="FILE")
    freeze: str = setting("none", metavar="none|stageK|all")
    unfreeze_at: int | None = _count(None, metavar="ITERATION")
    unfreeze_learning_rate: float | None = setting(None, low=0, high=1e6, parse=float, metavar="RATE")
    train_bn: bool = setting(False)

    run_dir: str | None = setting(None)
    overwrite: bool = setting(False)
    device: str = setting("auto")
    precision: AnyPrecision = setting("auto", choices=ANY_PRECISION)
    threads: int | None = _count(None, 0, 1024)
    steps_per_execution: int | None = _count(None, flag="steps_per_call")
    keep_on_device: str = setting("auto", choices=("auto", "always", "never"))
    jit_compile: bool = setting(False)
    deterministic: bool = setting(False)
    evaluate_every: int | None = _count(None, flag="eval_every")
    checkpoint_every: int | str | None = setting(None)
    eval_train: bool = setting(False)
    tensorboard: bool = setting(False)
    tensorboard_every: int = _count(5, metavar="N")
    on_nan: str = setting("stop", choices=("stop", "rollback"))

    strategy: Any = setting("auto", choices=("auto", "none", "mirrored", "multiworker", "tpu"))
    replicas: int | None = _count(None, high=1024, metavar="N")
    sync_bn: bool = setting(False)

    augment_sha256: str | None = setting(None)
    model_sha256: str | None = setting(None)

    @property
    def builder(self) -> dict[str, Any]:
        """The options that the network's builder is asked for."""
        builder = {"shortcut": self.shortcut, "width": self.width, "use_bias": self.use_bias}
        return builder | ({"identity_padding": self.identity_padding} if self.identity_padding else {})

    @property
    def checkpoint_interval(self) -> tuple[int | None, float | None]:
        """Steps and seconds between checkpoints; None for the one that does not decide."""
        return _checkpoint_interval(self.checkpoint_every)

    def settings(self) -> dict[str, Any]:
        """What decides the result, flat, by the keys of settings.json; precision and threads are added when known."""
        settings: dict[str, Any] = {"model": self.model, "dataset": self.dataset, "seed": self.seed}
        settings |= {f"builder.{key}": value for key, value in self.builder.items()}
        settings |= {f"recipe.{key}": value for key, value in self.recipe.as_dict().items() if key != "about"}
        settings |= {
            "evaluate_every": self.evaluate_every,
            "steps_per_call": self.steps_per_execution,
            "jit_compile": self.jit_compile,
            "deterministic": self.deterministic,
        }
        settings |= {name: getattr(self, name) for name in _OPTIONAL} | {"augment": name_of(self.augment)}
        return {key: value for key, value in settings.items() if key not in DEFAULTS or value != DEFAULTS[key]}


# Settings of a run that are written only where they are not the default: runs from before them have none.
_OPTIONAL = (
    *("augment", "augment_sha256", "input_size", "on_bad_image", "weights", "freeze", "unfreeze_at"),
    *("unfreeze_learning_rate", "train_bn", "sync_bn", "model_sha256"),
)
# The recipe's fields of the first version, which every run has written; all others are optional, too.
_WRITTEN = (
    *("batch_size", "iterations", "epochs", "learning_rate", "schedule", "drops", "drop_factor", "start_factor"),
    *("rise", "monitor", "patience", "warmup", "warmup_iterations", "warmup_learning_rate", "momentum", "nesterov"),
    *("weight_decay", "decay", "validation_size", "pad", "pad_mode", "shortcut"),
)
DEFAULTS: dict[str, Any] = {
    **{field.name: field.default for field in dataclasses.fields(TrainConfig) if field.name in _OPTIONAL},
    **{f"recipe.{field.name}": field.default for field in RECIPE_FIELDS if field.name not in _WRITTEN},
}

OPTIONS = tuple(field for field in dataclasses.fields(TrainConfig) if not field.name.endswith("_sha256"))
_RECIPE_NAMES = {field.name for field in RECIPE_FIELDS} - {"shortcut"}


def make_config(
    recipe: str | Recipe | None = None,
    *,
    scale_learning_rate: bool = False,
    data_given: bool = False,
    model_sha256: str | None = None,
    **options: Any,
) -> TrainConfig:
    """Settings of a training from keyword arguments: fields of `TrainConfig`, and of its recipe by their own names.

    Where the data set or the model is an object and not a name, `data_given` or `model_sha256` says so.

    Raises:
        UserError: there is no such option, or a value is not allowed; the message says what is.
    """
    options = {name: _plain(value) for name, value in options.items()}
    known = {field.name for field in OPTIONS} | _RECIPE_NAMES
    for name in options.keys() - known:
        of_train = {"validation", "test", "callbacks", "class_names", "steps_per_epoch", "verbose"}
        if name in of_train:
            raise UserError(f"{name}=… is for train() itself; leave it out", argument=name)
        known |= of_train
        raise UserError(f"train() has no option {name!r}; {did_you_mean(name, sorted(known))}", argument=name)
    changes = {name: options.pop(name) for name in list(options) if name in _RECIPE_NAMES}
    config = TrainConfig(**{"recipe": None, "model_sha256": model_sha256, **options})
    _check(config, data_given)
    own_images = not data_given and is_image_dataset(config.dataset)
    if recipe is None and (own_images or config.weights is not None) and not _is_of_paper(config):
        recipe = FINE_TUNING
    chosen = _recipe(config, recipe, changes, scale_learning_rate)
    if chosen.validation_size == 0 and not data_given and not is_image_dataset(config.dataset):
        check_validation(chosen, 0)
    digest = digest_of(config.augment)
    config = dataclasses.replace(config, recipe=chosen, shortcut=_shortcut(config, chosen), augment_sha256=digest)
    return _with_image_defaults(config) if own_images else config


def _is_of_paper(config: TrainConfig) -> bool:
    """Whether the run folder is one that was started while the paper's recipe was the default for everything."""
    path = Path(config.run_dir or os.devnull, "settings.json")
    if config.overwrite or not path.exists():
        return False
    started = read_json(path, {"recipe.name": str}, "give another run_dir=…, or overwrite=True to start anew")
    return bool(started["recipe.name"] == default_recipe(config.model))


def _plain(value: Any) -> Any:
    """A value as settings.json can hold it: numbers of NumPy and paths in Python's own types."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def default_augmentation(model: str) -> str:
    """How image folders and lists are varied for a network where nobody says."""
    return "cifar" if model in CIFAR_NETWORKS else "imagenet"


def _recipe(config: TrainConfig, recipe: str | Recipe | None, changes: dict[str, Any], scale: bool) -> Recipe:
    base = recipe if isinstance(recipe, Recipe) else get_recipe(recipe or default_recipe(config.model))
    changed = override(base, **changes)
    return scaled(changed, base.batch_size, changes.get("warmup_learning_rate")) if scale else changed


def _check(config: TrainConfig, data_given: bool) -> None:
    """Check the options against one another."""
    is_name = isinstance(config.strategy, str)
    check_fields(config if is_name else dataclasses.replace(config, strategy="auto"))
    _checkpoint_interval(config.checkpoint_every)
    augment = config.augment
    if not (augment is None or augment in AUGMENTATIONS or callable(augment) or is_function_name(augment)):
        allowed = ", ".join((*AUGMENTATIONS, "FILE.py:FUNCTION", "MODULE:FUNCTION"))
        raise UserError(f"augment={augment!r} is not known; allowed: {allowed}", argument="augment")
    if config.model_sha256 is None:
        model_options(config.model)
    if not data_given:
        check_name(config.dataset, config.data_dir)
    if re.fullmatch(r"none|all|stage\d+", config.freeze) is None:
        raise UserError(
            f"freeze={config.freeze!r} is not understood; allowed: none, all, or stageK such as stage3",
            argument="freeze",
        )
    if config.unfreeze_at is not None and config.freeze == "none":
        raise UserError(
            f"unfreeze_at={config.unfreeze_at} has nothing to unfreeze; add freeze='stageK' or freeze='all'",
            argument="unfreeze_at",
        )
    for name in ("unfreeze_learning_rate", "train_bn"):
        if getattr(config, name) not in (None, False) and config.unfreeze_at is None:
            raise UserError(
                f"{name}={getattr(config, name)} says what comes after the switch; add unfreeze_at=ITERATION",
                argument=name,
            )


def _shortcut(config: TrainConfig, recipe: Recipe) -> str | None:
    """The shortcut that is asked for; plain networks are those without."""
    if config.model_sha256 is not None:
        return None
    if model_options(config.model).get("shortcut") != "none":
        return config.shortcut or recipe.shortcut
    if config.shortcut not in (None, "none"):
        raise UserError(
            f"shortcut={config.shortcut!r} does not go with {config.model}, which is the network without shortcuts; "
            f"take model={config.model.replace('plain', 'resnet') + '_v1'!r}",
            argument="shortcut",
        )
    return None


def _with_image_defaults(config: TrainConfig) -> TrainConfig:
    """The network decides how the files of an image folder or list are treated, where nobody else does."""
    size = config.input_size or (32 if config.model in CIFAR_NETWORKS else 224)
    return dataclasses.replace(config, augment=config.augment or default_augmentation(config.model), input_size=size)


def _checkpoint_interval(every: int | str | None) -> tuple[int | None, float | None]:
    """Steps and seconds between checkpoints."""
    if every is None:
        return None, DEFAULT_CHECKPOINT_SECONDS
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", str(every))
    if match is None or float(match[1]) <= 0 or ("." in match[1] and not match[2]):
        raise UserError(
            f"checkpoint_every={every!r} is not understood; allowed: iterations (500) or minutes (5m)",
            argument="checkpoint_every",
        )
    return (None, 60 * float(match[1])) if match[2] else (int(match[1]), None)
