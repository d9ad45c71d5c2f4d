"""`resnet-tf import-weights`: a PyTorch checkpoint as a Keras model, without PyTorch."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.main import Parser
from resnet_tf.config import IDENTITY_PADDINGS, MAX_CLASSES, SHORTCUTS
from resnet_tf.errors import UserError
from resnet_tf.files import check_outputs
from resnet_tf.models.registry import model_options
from resnet_tf.pretrained.zoo import PREPROCESSING
from resnet_tf.process import load_tensorflow
from resnet_tf.recipes import floats
from resnet_tf.saving import check_sidecar, save_model


def make_parser() -> Parser:
    """The parser of `resnet-tf import-weights`."""
    parser = Parser(
        prog="resnet-tf import-weights",
        description="Make a Keras model that takes raw pixels from a PyTorch checkpoint of a residual network.\n"
        "Nothing in the checkpoint is executed.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file of torch.save or .safetensors")
    parser.add_argument("--model", metavar="NAME", help="network, such as resnet20_v1 (default: by the shapes)")
    parser.add_argument("--shortcut", choices=SHORTCUTS, help="of a CIFAR network (default: what the tensors show)")
    parser.add_argument(
        "--identity-padding", choices=IDENTITY_PADDINGS, help="zero channels of option A (default: so, too)"
    )
    parser.add_argument(
        "--rename",
        metavar="OLD=NEW",
        type=_renaming,
        action="append",
        default=[],
        help="name of a tensor or module, and what torchvision would call it, as --rename stem.conv=conv1; repeatable",
    )
    head = parser.add_mutually_exclusive_group()
    head.add_argument("--classes", type=int, metavar="N", help="outputs of the checkpoint's classifier, if unusual")
    head.add_argument("--new-head", type=int, metavar="N", help="leave its classifier out; start one of N outputs")
    parser.add_argument("--mean", type=floats, metavar="R,G,B", help="0-255 units (default: a guess by the checkpoint)")
    parser.add_argument("--std", type=floats, metavar="R,G,B", help="0-255 units (default: a guess by the checkpoint)")
    parser.add_argument(
        "--preprocessing",
        choices=tuple(PREPROCESSING),
        help="mean and std by name: ImageNet's, CIFAR-10's, 127.5 and 127.5, or none but the division by 255",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help=".keras file to write; a .json comes beside it")
    return parser


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Import a checkpoint and save the model with its sidecar, which is returned."""
    arguments = make_parser().parse_args(argv)
    output = Path(arguments.output)
    if output.suffix != ".keras":
        raise UserError(f"--output {output}: give a name that ends in .keras")
    check_outputs({"output": output, "sidecar": output.with_suffix(".json")}, [arguments.checkpoint])
    check_sidecar(output)
    for flag in ("classes", "new_head"):
        value = getattr(arguments, flag)
        if value is not None and not 1 <= value <= MAX_CLASSES:
            raise UserError(f"--{flag.replace('_', '-')} {value} is out of range; allowed: 1 to {MAX_CLASSES}")
    _check_constants(arguments)
    if arguments.model is not None:
        model_options(arguments.model)
    load_tensorflow()
    from resnet_tf.pretrained.importer import import_checkpoint

    mean, std = PREPROCESSING.get(arguments.preprocessing, (arguments.mean, arguments.std))
    model, network, sidecar, notes = import_checkpoint(
        Path(arguments.checkpoint),
        arguments.model,
        constants=None if mean is None else (mean, std),
        renames=arguments.rename,
        **{name: getattr(arguments, name) for name in ("classes", "new_head", "shortcut", "identity_padding")},
    )
    try:
        save_model(model, output, sidecar)
    except OSError as error:
        raise UserError(
            f"{output} could not be written ({error.strerror or error}); make room and try again"
        ) from error
    constants = sidecar["preprocessing"]
    parameters = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    print(
        f"{output}: {network}, {parameters:,} parameters, {model.output_shape[-1]} classes"
        f"{' (a new head)' if arguments.new_head else ''}; takes raw RGB pixels, mean {_rounded(constants['mean'])}, "
        f"std {_rounded(constants['std'])} inside",
        *notes,
        sep="\n  ",
    )
    return sidecar


def _rounded(values: Sequence[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _check_constants(arguments: Any) -> None:
    mean, std = arguments.mean, arguments.std
    if arguments.preprocessing and (mean or std):
        raise UserError("--preprocessing stands for --mean and --std; give it or them")
    if (mean is None) != (std is None):
        raise UserError("--mean and --std go together; give both or neither")
    if std is not None and max(std) <= 1:
        raise UserError(f"--std {','.join(map(str, std))} looks like 0-1 units; give 0-255 units, 255 times as much")
