"""The flags of `train`. Imports no TensorFlow."""

import argparse
import dataclasses

from resnet_tf.cli import inference
from resnet_tf.cli.command import Parser, floats, integers
from resnet_tf.data.custom_transform import is_function_name
from resnet_tf.data.dataset import DATASETS, ON_BAD, OWN_FORMS
from resnet_tf.recipes import CHOICES, RECIPES, Recipe

SHORTCUTS = ("identity", "projection", "projection_all", "none")
PRECISIONS = ("auto", *inference.PRECISIONS)
STRATEGIES = ("auto", "none", "mirrored", "multiworker", "tpu")
AUGMENTATIONS = ("cifar", "imagenet", "strong", "none")

_RECIPE_HELP = {
    "batch_size": "images a step",
    "iterations": "updates in all; drops and warm-up keep their proportions",
    "epochs": "length in epochs instead of iterations; a warm-up keeps its iterations",
    "learning_rate": "highest learning rate",
    "drops": "comma-separated fractions of the length, such as 0.5,0.75",
    "validation_size": "part of the training images kept for validation: fraction, or count; 0 trains on all",
    "weight_decay": "lambda of the gradient term lambda*w",
    "decay": "which variables decay",
    "warmup": "low learning rate at the start: constant, or (linear) growing",
    "clip_norm": "largest norm of all gradients together",
    "label_smoothing": "share of the target that is spread over all classes",
    "class_weights": "balanced: every class counts alike, however many images it has",
    "accumulate": "equal parts in which a batch is computed, for the memory's sake (default: 1)",
    "ema": "decay of a moving average of the weights, such as 0.999, that is validated and saved in their place",
    "early_stopping": "evaluations without a better validation accuracy after which it ends (0: never); from "
    "--unfreeze-at on, where that is given",
}


def _fraction_or_count(text: str) -> float:
    return int(text) if text.isdigit() else float(text)


def _augmentation(text: str) -> str:
    if text not in AUGMENTATIONS and not is_function_name(text):
        allowed = ", ".join((*AUGMENTATIONS, "FILE.py:FUNCTION", "MODULE:FUNCTION"))
        raise argparse.ArgumentTypeError(f"{text} is not known; allowed: {allowed}")
    return text


def make_parser() -> Parser:
    """The parser of `resnet-tf train`."""
    parser = Parser(
        prog="resnet-tf train",
        description="Train a network by a recipe. The same command goes on with a run that was stopped.",
    )
    parser.add_argument("--model", default="resnet20_v2", help="network by name (default: %(default)s)")
    parser.add_argument(
        "--dataset", default="cifar10", help=f"{', '.join((*DATASETS, *OWN_FORMS))} (default: %(default)s)"
    )
    parser.add_argument("--data-dir", help="folder or archive with CIFAR; default: Keras' cache, then a download")
    parser.add_argument("--recipe", help=f"{', '.join(RECIPES)} (default: he2016 for v2 networks, else he2015)")
    parser.add_argument("--list-recipes", action="store_true", help="print the recipes and exit")
    parser.add_argument("--list-models", action="store_true", help="print the networks and exit")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default: 0)")
    parser.add_argument("--seeds", type=integers, metavar="K,K,…", help="several runs in turn, one folder each")
    _add_builder_flags(parser)
    _add_image_flags(parser)
    _add_finetuning_flags(parser)
    _add_run_flags(parser)
    _add_device_flags(parser)
    _add_recipe_flags(parser)
    return parser


def _add_builder_flags(parser: Parser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--shortcut", choices=SHORTCUTS, help="default: the network's or the recipe's own")
    group.add_argument("--width", type=int, default=1, help="multiplies the channels (default: 1)")
    group.add_argument("--use-bias", action="store_true", help="give the convolutions a bias")


def _add_image_flags(parser: Parser) -> None:
    group = parser.add_argument_group("images")
    group.add_argument(
        "--augment",
        type=_augmentation,
        metavar="|".join((*AUGMENTATIONS, "FILE.py:FUNCTION")),
        help="how training images are varied, and all others framed (default: cifar; imagenet where own images train "
        "a network of ImageNet's); or your own function(image uint8 (H, W, C), numpy.random.Generator) of the input "
        "size, from a file or as MODULE:FUNCTION; the others are then framed as by default",
    )
    group.add_argument(
        "--input-size",
        type=int,
        metavar="PIXELS",
        help="side that all images get on the fly (default: the data's; of own images 32, or 224 for networks of "
        "ImageNet's)",
    )
    group.add_argument(
        "--on-bad-image",
        choices=ON_BAD,
        default="stop",
        help="what happens where own images are unreadable, damaged or there twice (default: %(default)s)",
    )


def _add_finetuning_flags(parser: Parser) -> None:
    group = parser.add_argument_group("fine-tuning")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="start from these, under a new classifier: a PyTorch checkpoint, a .keras or .weights.h5 file, the folder "
        "of a run, weights that come with the package (NETWORK:NAME), or imagenet",
    )
    group.add_argument(
        "--freeze",
        default="none",
        metavar="none|stageK|all",
        help="what does not train: nothing, the stem up to and including stage K, or all but the classifier",
    )
    group.add_argument("--unfreeze-at", type=int, metavar="ITERATION", help="from here on everything trains")
    group.add_argument(
        "--unfreeze-learning-rate", type=float, metavar="RATE", help="highest from then on (default: as before)"
    )
    group.add_argument(
        "--train-bn", action="store_true", help="unfreeze batch normalization too, which otherwise stays frozen"
    )


def _add_run_flags(parser: Parser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--run-dir", help="default: runs/<model>[-<shortcut>]-<dataset>-<recipe>-seed<k>")
    group.add_argument("--overwrite", action="store_true", help="start anew where a run exists")
    group.add_argument("--device", default="auto", help="auto, cpu, gpu or gpu:N (default: auto)")
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help="default: fastest native one")
    group.add_argument("--threads", type=int, default=0, help="threads an operation may use (default: one per core)")
    group.add_argument("--steps-per-call", type=int, help="updates in one compiled call (default: 1, on GPUs 10)")
    group.add_argument(
        "--keep-on-device",
        choices=("auto", "always", "never"),
        default="auto",
        help="hold images in the device's memory and vary them there (default: CIFAR's on GPUs)",
    )
    group.add_argument("--jit-compile", action="store_true", help="compile the step with XLA (slower on CPUs)")
    group.add_argument("--deterministic", action="store_true", help="deterministic kernels only")
    group.add_argument("--eval-every", type=int, help="iterations between evaluations (default: an epoch)")
    group.add_argument(
        "--checkpoint-every",
        help="iterations (500) or minutes (5m) between checkpoints (default: each evaluation and every 5 minutes)",
    )
    group.add_argument("--eval-train", action="store_true", help="evaluate on the training images as well")
    group.add_argument("--tensorboard", action="store_true", help="write event files to RUN/tensorboard")
    group.add_argument(
        "--tensorboard-every",
        type=int,
        default=5,
        metavar="N",
        help="evaluations between its pictures and histograms (default: %(default)s)",
    )
    group.add_argument("--on-nan", choices=("stop", "rollback"), default="stop", help="what a diverging run does")


def _add_device_flags(parser: Parser) -> None:
    group = parser.add_argument_group("several devices, which share each batch (docs/distributed.md)")
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="auto",
        help="mirrored: the GPUs of this machine; multiworker: the processes that TF_CONFIG names, see resnet-tf "
        "launch (default: multiworker where TF_CONFIG names several, mirrored where there are several GPUs, else none)",
    )
    group.add_argument(
        "--replicas", type=int, metavar="N", help="GPUs that mirrored uses (default: all); or parts of the CPU"
    )
    group.add_argument(
        "--sync-bn", action="store_true", help="batch normalization over all replicas (default: over each one's share)"
    )


def _add_recipe_flags(parser: Parser) -> None:
    group = parser.add_argument_group("recipe fields, overriding the recipe's own")
    group.add_argument(
        "--scale-learning-rate",
        action="store_true",
        help="times --batch-size over the recipe's own batch size; --warmup linear then starts at the unscaled one",
    )
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    for name, default in defaults.items():
        if name in ("name", "about", "shortcut"):
            continue
        flag, text = f"--{name.replace('_', '-')}", _RECIPE_HELP.get(name)
        if isinstance(default, bool):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif name == "drops":
            group.add_argument(flag, type=floats, help=text)
        elif name == "validation_size":
            group.add_argument(flag, type=_fraction_or_count, help=text)
        else:
            kind = int if isinstance(default, int) or name == "iterations" else type(default or 0.0)
            group.add_argument(flag, type=kind, choices=CHOICES.get(name), help=text)


def describe_recipes() -> str:
    """All recipes with the fields in which they differ from the class's defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    lines = []
    for recipe in RECIPES.values():
        lines.append(f"{recipe.name}: {recipe.about}")
        lines.append(f"    {describe_recipe(recipe)}")
    shared = {key: value for key, value in defaults.items() if key not in ("name", "about") and value is not None}
    lines.append("where nothing else is said: " + ", ".join(f"{key}={value}" for key, value in shared.items()))
    return "\n".join(lines)


def describe_recipe(recipe: Recipe) -> str:
    """The fields of a recipe that differ from the defaults, in one line."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    own = {key: value for key, value in dataclasses.asdict(recipe).items() if key not in ("name", "about")}
    return ", ".join(f"{key}={value}" for key, value in own.items() if value != defaults[key])
