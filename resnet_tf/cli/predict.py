"""`resnet-tf predict`: parse, predict, print."""

import csv
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resnet_tf.cli.evaluate import MODEL_HELP
from resnet_tf.cli.main import Parser, add_inference_flags, writing
from resnet_tf.errors import UserError
from resnet_tf.files import check_outputs, write_json, write_text
from resnet_tf.process import load_tensorflow, only_python_on_stderr

if TYPE_CHECKING:
    from resnet_tf.prediction import Prediction


def make_parser() -> Parser:
    """The parser of `resnet-tf predict`."""
    parser = Parser(
        prog="resnet-tf predict",
        description="Class names and probabilities of image files, by a Keras model that takes raw pixels.",
        epilog="Exit code 1 when files could not be read; they are named and skipped.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{MODEL_HELP}, or a network that torchvision publishes ImageNet weights for",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="file, folder (searched to any depth) or pattern")
    parser.add_argument("--top", type=int, default=5, help="classes to print of each image (default: %(default)s)")
    parser.add_argument("--resize", type=int, help="pixels of the shorter side (default: by the model's input)")
    parser.add_argument("--crop", type=int, help="side of the square cut from the center (default: the model's input)")
    parser.add_argument("--batch-size", type=int, default=32, help="images at once (default: %(default)s)")
    add_inference_flags(parser)
    parser.add_argument("--csv", metavar="FILE", help="write a row for each image and class to this file")
    parser.add_argument("--json", metavar="FILE", help="write the predictions to this file")
    return parser


def main(argv: Sequence[str]) -> dict[str, Any] | int:
    """Classify images and print the likeliest classes of each.

    Returns what `--json` writes: predictions (file, classes) and unreadable (file, reason); or the exit code 1 when
    files could not be read.
    """
    arguments = make_parser().parse_args(argv)
    for flag in ("top", "batch_size", "resize", "crop"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"{flag}={value} is out of range; give 1 or more")
    outputs = {"csv": arguments.csv, "json": arguments.json}
    check_outputs(outputs)
    load_tensorflow()
    from tqdm import tqdm

    from resnet_tf.inference import with_scaling
    from resnet_tf.prediction import expand_patterns, iter_predictions
    from resnet_tf.saving import input_files, open_model

    paths = expand_patterns(arguments.images)
    check_outputs(outputs, [*paths, *input_files(arguments.model)])
    options = {key: getattr(arguments, key) for key in ("top", "resize", "crop", "batch_size", "precision", "fold_bn")}
    scaling = arguments.mean, arguments.std, arguments.input_scale
    found = iter_predictions(*with_scaling(open_model(arguments.model, published=True), *scaling), paths, **options)
    predictions: list[Prediction] = []
    # The libraries for PNG and JPEG print what they think of a file, whose name they do not know.
    with only_python_on_stderr():
        for prediction in tqdm(
            found, total=len(paths), unit="image", disable=len(paths) < 2 or not sys.stderr.isatty()
        ):
            predictions.append(prediction)
            tqdm.write(str(prediction), file=sys.stdout if prediction.unreadable is None else sys.stderr)
    readable = [prediction for prediction in predictions if prediction.unreadable is None]
    unreadable = [{"file": p.file, "reason": p.unreadable} for p in predictions if p.unreadable is not None]
    result = {"predictions": [prediction.as_dict() for prediction in readable], "unreadable": unreadable}
    if arguments.csv:
        with writing("csv", arguments.csv) as file:
            write_text(file, as_csv(readable))
    if arguments.json:
        with writing("json", arguments.json) as file:
            write_json(file, result)
    if not unreadable:
        return result
    print(f"{len(unreadable)} of {len(paths)} files could not be read", file=sys.stderr)
    return 1


def as_csv(predictions: "Sequence[Prediction]") -> str:
    """A row for each file and class: file, rank (from 1), index, wnid (ImageNet only), name, probability."""
    text = io.StringIO()
    columns = ["file", "rank", "index", "wnid", "name", "probability"]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for prediction in predictions:
        for rank, row in enumerate(prediction.as_dict()["classes"], start=1):
            writer.writerow({"file": prediction.file, "rank": rank, **row, "probability": f"{row['probability']:.6f}"})
    return text.getvalue()
