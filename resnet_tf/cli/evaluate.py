"""`resnet-tf evaluate`: parse, evaluate, print."""

from collections.abc import Sequence
from typing import Any

from resnet_tf.cli.main import Parser, add_inference_flags, add_train_flags, check_output_file, writing
from resnet_tf.data.dataset import DATASETS, IMAGE_FORMS, check_name
from resnet_tf.errors import UserError
from resnet_tf.files import write_json
from resnet_tf.process import load_tensorflow, only_python_on_stderr
from resnet_tf.saving import NO_DATASET, input_files, model_path, read_sidecar

MODEL_HELP = "a .keras or .h5 file, a SavedModel or run folder, or weights that come with the package (NETWORK:NAME)"
_PRINTED = ("json", "report", "examples")  # flags of what becomes of the numbers


def make_parser() -> Parser:
    """The parser of `resnet-tf evaluate`."""
    parser = Parser(
        prog="resnet-tf evaluate",
        description="Loss, accuracies and confusion matrix of a Keras model on a test set, every image counted once.",
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help=MODEL_HELP)
    parser.add_argument("--best", action="store_true", help="of a run: its best model by validation, not its final one")
    parser.add_argument(
        "--dataset", help=f"{', '.join((*DATASETS, *IMAGE_FORMS))} (default: what the model was trained on)"
    )
    add_train_flags(parser, "data_dir")
    parser.add_argument("--on-bad-image", choices=("stop", "skip"), help="image files (default: as it was trained)")
    parser.add_argument("--batch-size", type=int, help="images at once (default: 500, fewer of large ones)")
    add_inference_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    parser.add_argument("--report", metavar="DIR", help="write pictures, tables and report.html to this folder")
    parser.add_argument(
        "--examples", choices=("wrong", "right", "random"), default="wrong", help="images it shows (default: wrong)"
    )
    return parser


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Evaluate a model and print the metrics; returns them as written by `--json`."""
    arguments = make_parser().parse_args(argv)
    path = model_path(arguments.model, arguments.best)
    if arguments.dataset is None and "dataset" not in read_sidecar(path):
        raise UserError(NO_DATASET.format(path))
    if arguments.dataset is not None:
        check_name(arguments.dataset, arguments.data_dir)
    files = input_files(arguments.model, arguments.best)
    check_output_file("json", arguments.json, inputs=files)
    if arguments.report:
        from resnet_tf.reports.html import check_report

        check_report(arguments.report, [*files, *filter(None, [arguments.json])])
    load_tensorflow()
    from resnet_tf.reports.plots import WITHOUT_PLOTS, can_draw
    from resnet_tf.scoring import evaluate

    options = {name: value for name, value in vars(arguments).items() if name not in _PRINTED}
    with only_python_on_stderr():
        metrics = evaluate(data=options.pop("dataset"), **options, log=print)
    result = {**metrics.as_dict(), "data_source": metrics.data_source}
    print(f"{metrics.name} ({metrics.data_source})")
    print(metrics.describe())
    if arguments.json:
        with writing("json", arguments.json) as file:
            write_json(file, result)
    if arguments.report:
        page = metrics.report(arguments.report, arguments.examples)
        if not can_draw():
            print(WITHOUT_PLOTS)
        print(f"report in {page}")
    return result
