"""`resnet-tf import-weights`: a PyTorch checkpoint as a Keras model, without PyTorch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_tf.cli.main import Parser
from resnet_tf.config import SHORTCUTS
from resnet_tf.errors import UserError
from resnet_tf.files import write_json, write_with
from resnet_tf.models.registry import CIFAR_NETWORKS, model_options
from resnet_tf.process import load_tensorflow
from resnet_tf.recipes import floats

if TYPE_CHECKING:
    import keras

    from resnet_tf.pretrained.torch_mapping import CheckpointFormat


def make_parser() -> Parser:
    """The parser of `resnet-tf import-weights`."""
    parser = Parser(
        prog="resnet-tf import-weights",
        description="Make a Keras model that takes raw pixels from a checkpoint of torchvision, timm (*.tv_in1k),\n"
        "akamaster/pytorch_resnet_cifar10 or chenyaofo/pytorch-cifar-models. Nothing in the checkpoint is executed.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth, .pt, .th or .safetensors file")
    parser.add_argument("--model", required=True, metavar="NAME", help="network, such as resnet50 or resnet20_v1")
    parser.add_argument("--shortcut", choices=SHORTCUTS, help="of a CIFAR network (default: what the tensors show)")
    head = parser.add_mutually_exclusive_group()
    head.add_argument("--classes", type=int, metavar="N", help="outputs of the checkpoint's classifier, if unusual")
    head.add_argument("--new-head", type=int, metavar="N", help="leave its classifier out; start one of N outputs")
    parser.add_argument("--mean", type=floats, metavar="R,G,B", help="0-255 units (default: by the checkpoint)")
    parser.add_argument("--std", type=floats, metavar="R,G,B", help="0-255 units (default: by the checkpoint)")
    parser.add_argument("--output", required=True, metavar="FILE", help=".keras file to write; a .json comes beside it")
    return parser


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Import a checkpoint and save the model with its sidecar.

    Args:
        argv: flags, see `--help`.

    Returns:
        The sidecar: class_names, preprocessing, model, builder, dataset and where the weights come from.

    Raises:
        UserError: a flag or the checkpoint is not as it must be; nothing is written.
    """
    arguments = make_parser().parse_args(argv)
    output = Path(arguments.output)
    if output.suffix != ".keras" or not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: give a name that ends in .keras, in a folder that exists")
    for flag in ("classes", "new_head"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value} is out of range; give 1 or more")
    _check_constants(arguments.mean, arguments.std)
    model_options(arguments.model)
    load_tensorflow()
    return _import(arguments, output)


def _check_constants(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    if (mean is None) != (std is None):
        raise UserError("--mean and --std go together; give both or neither")
    if std is not None and max(std) <= 1:
        raise UserError(f"--std {','.join(map(str, std))} looks like 0-1 units; give 0-255 units, 255 times as much")


def _import(arguments: Any, output: Path) -> dict[str, Any]:
    from resnet_tf.models.registry import build_model
    from resnet_tf.pretrained.keras_file import TorchWeights
    from resnet_tf.process import recursion_limit

    weights = TorchWeights(Path(arguments.checkpoint))
    options = {
        "classes": arguments.new_head or arguments.classes,
        "mean": arguments.mean or weights.mean,
        "std": arguments.std or weights.std,
        "shortcut": arguments.shortcut or (weights.shortcut if arguments.model in CIFAR_NETWORKS else None),
    }
    builder = {key: value for key, value in options.items() if value is not None}
    try:
        model = build_model(arguments.model, **builder)
    except ValueError as error:
        raise UserError(str(error)) from error
    weights.load_into(model, new_head=arguments.new_head is not None)
    sidecar = _sidecar(arguments, model, weights.format, builder)
    try:
        with recursion_limit(len(model.layers)):
            write_with(output, model.save)
        write_json(output.with_suffix(".json"), sidecar)
    except OSError as error:
        raise UserError(
            f"{output} could not be written ({error.strerror or error}); make room and try again"
        ) from error
    constants = sidecar["preprocessing"]
    print(
        f"{output}: {arguments.model}, {model.count_params():,} parameters of {weights.format.name}'s kind, "
        f"{model.output_shape[-1]} classes{' (a new head)' if arguments.new_head else ''}; takes raw RGB pixels, "
        f"mean {_rounded(constants['mean'])}, std {_rounded(constants['std'])} inside"
    )
    return sidecar


def _rounded(values: Sequence[float]) -> str:
    return " ".join(f"{value:.1f}" for value in values)


def _sidecar(
    arguments: Any, model: "keras.Model", source: "CheckpointFormat", builder: dict[str, Any]
) -> dict[str, Any]:
    names = None if arguments.new_head else class_names(source.dataset, model.output_shape[-1])
    return {
        **({} if names is None else {"class_names": names, "dataset": source.dataset}),
        "preprocessing": {
            "input": "RGB pixels 0-255, uint8 or float",
            "shape": list(model.input_shape[1:]),
            "resize": source.resize,
            "crop": source.crop,
            "mean": list(builder["mean"]),
            "std": list(builder["std"]),
            "normalization": "first layer of the model",
        },
        "model": arguments.model,
        "builder": {key: value for key, value in builder.items() if key not in ("mean", "std")},
        "weights": {"file": Path(arguments.checkpoint).name, "source": source.name},
    }


def class_names(dataset: str, outputs: int) -> list[str] | None:
    """The names of a data set's classes, or None where the outputs are not as many."""
    from resnet_tf.data.cifar_files import KINDS
    from resnet_tf.pretrained.zoo import imagenet_classes

    names = [known.name for known in imagenet_classes()] if dataset == "imagenet" else KINDS[dataset].class_names
    return list(names) if len(names) == outputs else None
