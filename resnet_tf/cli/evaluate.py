"""`resnet-tf evaluate`: the score of a saved model on a test set."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_tf.cli.command import Parser, load_tensorflow
from resnet_tf.cli.inference import add_inference_flags
from resnet_tf.data.dataset import DATASETS, ON_BAD, OWN_FORMS, check_name
from resnet_tf.errors import UserError
from resnet_tf.files import write_json
from resnet_tf.pretrained.zoo import find_shipped
from resnet_tf.reports.metrics import CHOICES

if TYPE_CHECKING:
    import keras

    from resnet_tf.cli.scoring import LabelledDataset


MODEL_HELP = "a .keras file, the folder of a run, or weights that come with the package (NETWORK:NAME)"


def make_parser() -> Parser:
    """The parser of `resnet-tf evaluate`."""
    parser = Parser(
        prog="resnet-tf evaluate",
        description="Loss, accuracies and confusion matrix of a Keras model on a test set, every image counted once.",
    )
    parser.add_argument("model", metavar="MODEL_OR_RUN", help=MODEL_HELP)
    parser.add_argument("--best", action="store_true", help="of a run: its best model by validation, not its final one")
    parser.add_argument(
        "--dataset", help=f"{', '.join((*DATASETS, *OWN_FORMS))} (default: what the model was trained on)"
    )
    parser.add_argument("--data-dir", help="folder or archive with CIFAR; default: Keras' cache, then a download")
    parser.add_argument("--on-bad-image", choices=ON_BAD, help="own images (default: as the model was trained)")
    parser.add_argument("--batch-size", type=int, help="images at once (default: 500, fewer of large ones)")
    add_inference_flags(parser)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file")
    parser.add_argument("--report", metavar="DIR", help="write pictures, tables and report.html to this folder")
    parser.add_argument("--examples", choices=CHOICES, default="wrong", help="images it shows (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Score a model and print the result.

    Args:
        argv: flags, see `--help`.

    Returns:
        The numbers as written by `--json`: loss, top1, top5 (fractions), images, per_class, confusion, ….

    Raises:
        UserError: the model, the data or a flag is not as it must be.
    """
    arguments = make_parser().parse_args(argv)
    path = model_path(Path(arguments.model), arguments.best)
    sidecar = read_sidecar(path)
    dataset = arguments.dataset or sidecar.get("dataset")
    if dataset is None:
        raise UserError(
            f"{path} does not say what it was trained on; give --dataset ({', '.join((*DATASETS, *OWN_FORMS))})"
        )
    check_name(dataset, arguments.data_dir)
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size} is out of range; give 1 or more")
    if arguments.json and not Path(arguments.json).absolute().parent.is_dir():
        raise UserError(f"--json {arguments.json}: the folder does not exist; make it or give another file")
    if arguments.json and Path(arguments.json).is_dir():
        raise UserError(f"--json {arguments.json} is a folder; give a file")
    load_tensorflow()
    from resnet_tf.cli.scoring import find_tests, score_model

    model = load_model(path)
    tests = find_tests(model, sidecar, dataset, arguments)
    probabilities: list[np.ndarray] = []
    result = score_model(
        model,
        path,
        tests,
        arguments.batch_size,
        log=print,
        keep=probabilities.append,
        precision=arguments.precision,
        fold_bn=arguments.fold_bn,
    ).as_dict()
    result["data_source"] = tests.source
    print(f"{arguments.model} on the test set of {dataset} ({tests.source})")
    print(describe(result, tests.class_names))
    if arguments.json:
        try:
            write_json(Path(arguments.json), result)
        except OSError as error:
            raise UserError(f"--json {arguments.json} cannot be written ({error}); give another file") from error
    if arguments.report:
        write_report_of(path, tests, np.concatenate(probabilities), result, Path(arguments.report), arguments.examples)
    return result


def model_path(path: Path, best: bool) -> Path:
    """The model file that a file's or a run folder's name stands for, or that of weights that come with the package.

    Raises:
        UserError: it does not exist, or is no Keras file.
    """
    entry = find_shipped(str(path))
    if entry is not None and not best:
        return entry.path
    if path.is_dir():
        path = path / ("best.keras" if best else "final.keras")
        if not path.exists():
            raise UserError(f"{path} does not exist; finish the run first, or name a .keras file")
    elif best:
        raise UserError(f"--best goes with the folder of a run, and {path} is none")
    if not path.exists():
        raise UserError(f"{path} does not exist; name a .keras file or the folder of a run")
    if path.suffix != ".keras":
        raise UserError(f"{path} is no .keras file; save it with model.save('{path.stem}.keras') first")
    return path


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a model file, or nothing.

    Raises:
        UserError: it is there and damaged.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        return {}
    try:
        value = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{sidecar} cannot be read ({error}); remove it, or save the model again") from error
    return value if isinstance(value, dict) else {}


def load_model(path: Path) -> "keras.Model":
    """Load a .keras file without running any code in it.

    Raises:
        UserError: it is damaged, or needs code that a plain Keras file does not.
    """
    import keras

    from resnet_tf.process import recursion_limit

    try:
        with recursion_limit(1000):
            return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever its readers raise on a damaged file
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{path} cannot be loaded as a Keras model ({reason[0][:200] if reason else error!r})"
        ) from error


def write_report_of(
    path: Path, tests: "LabelledDataset", probabilities: np.ndarray, result: dict[str, Any], folder: Path, examples: str
) -> None:
    """Write the report of a scored model, with the curves of its run where those lie beside it.

    Raises:
        UserError: the folder cannot be written, or the model's outputs are not finite.
    """
    from resnet_tf.reports.html import write_report
    from resnet_tf.reports.metrics import from_probabilities
    from resnet_tf.reports.plots import WITHOUT_PLOTS, can_draw

    curves = path.parent / "curves.png"
    try:
        predictions = from_probabilities(probabilities, tests.part.labels, tuple(tests.class_names))
        write_report(
            folder,
            predictions,
            tests.part,
            result,
            title=f"{path} on the test set of {tests.name}",
            examples=examples,
            more_pictures=[("Course of the training", curves)] if curves.exists() else [],
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} cannot be reported on: {error}; train it with a lower learning rate") from error
    except OSError as error:
        raise UserError(f"--report {folder} cannot be written ({error.strerror}); give another folder") from error
    if not can_draw():
        print(WITHOUT_PLOTS)
    print(f"report in {folder / 'report.html'}")


def describe(result: dict[str, Any], class_names: Sequence[str]) -> str:
    """The numbers as a person reads them."""
    lines = [
        f"loss {result['loss']:.4f}, top-1 {100 * result['top1']:.2f} %, top-5 {100 * result['top5']:.2f} %, "
        f"{result['images']} images, {result['images_per_second']:.0f} images/s"
    ]
    width = max(len(name) for name in class_names)
    for name, share, row in zip(class_names, result["per_class"], result["confusion"], strict=True):
        percent = "   -  " if share is None else f"{100 * share:6.2f}"
        lines.append(
            f"{name:>{width}} {percent} %" + (" " + " ".join(f"{n:5d}" for n in row) if len(row) <= 20 else "")
        )
    return "\n".join(lines)
