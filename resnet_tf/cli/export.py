"""`resnet-tf export`: parse, export, print."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_tf.cli.evaluate import MODEL_HELP
from resnet_tf.cli.main import Parser, add_train_flags
from resnet_tf.config import FORMATS
from resnet_tf.data.dataset import DATASETS
from resnet_tf.errors import UserError
from resnet_tf.pretrained.zoo import find_shipped
from resnet_tf.process import load_tensorflow
from resnet_tf.saving import model_path


def make_parser() -> Parser:
    """The parser of `resnet-tf export`."""
    parser = Parser(
        prog="resnet-tf export",
        description="Write a model in another format, read it back, and compare its outputs with the original's.",
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help=MODEL_HELP)
    parser.add_argument("--best", action="store_true", help="of a run: its best model by validation, not its final one")
    parser.add_argument("--format", choices=FORMATS, required=True, help="format to write")
    parser.add_argument("--output", metavar="PATH", help="default: beside the model, named after it")
    parser.add_argument(
        "--quantize",
        choices=("float16", "int8"),
        help="tflite: 16-bit weights, or 8-bit weights and activations calibrated on training images of --dataset",
    )
    parser.add_argument("--fold-bn", action="store_true", help="fold batch normalization into convolutions")
    parser.add_argument("--softmax", action="store_true", help="return probabilities, not logits")
    parser.add_argument("--uint8-input", action="store_true", help="take uint8 pixels, not float32")
    parser.add_argument(
        "--dataset",
        dest="data",
        help=f"{', '.join(DATASETS)}: compare on its test images, and print both accuracies on 1000",
    )
    add_train_flags(parser, "data_dir")
    return parser


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Export a model and print how far it is from the original.

    Returns output, difference, bound, agreement and, with --dataset, accuracy and original_accuracy (fractions).
    """
    arguments = make_parser().parse_args(argv)
    output = _output(arguments, model_path(arguments.model, arguments.best))
    load_tensorflow()
    from resnet_tf.export import COMPARED, TESTED, export_model

    result = export_model(path=output, **{name: value for name, value in vars(arguments).items() if name != "output"})
    bound = "no bound on 8 bits" if result.bound is None else f"allowed {result.bound:.3g}"
    print(
        f"{output}: read back; largest difference {result.difference:.3g} ({bound}; largest output "
        f"{result.largest:.3g}), same top class on {100 * result.agreement:.0f} % of {COMPARED} images"
    )
    found = {"output": str(output), "difference": result.difference, "bound": result.bound}
    found["agreement"] = result.agreement
    if result.accuracy is None or result.original_accuracy is None:
        return found
    print(
        f"top-1 on {TESTED} test images of {arguments.data}: {100 * result.accuracy:.2f} %, the original has "
        f"{100 * result.original_accuracy:.2f} %"
    )
    return found | {"accuracy": result.accuracy, "original_accuracy": result.original_accuracy}


def _output(arguments: Any, path: Path) -> Path:
    """Where the export goes; refuses another format's ending."""
    ending = {"saved_model": "", "keras": ".keras"}.get(arguments.format, f".{arguments.format}")
    kind = "".join(f"-{part}" for part in (arguments.quantize, "folded" if arguments.fold_bn else None) if part)
    name = f"{path.stem}{kind or ('-export' if ending == '.keras' else '')}{ending or '-saved_model'}"
    # Not into the installed package.
    beside = Path() if find_shipped(arguments.model) else path.parent
    output = Path(arguments.output) if arguments.output else beside / name
    if output.suffix != ending:
        raise UserError(f"output={str(output)!r} must end in {ending or 'no suffix'} for format={arguments.format!r}")
    return output
