"""`resnet-tf predict`: what a model says about image files."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_tf.cli.command import Parser, load_tensorflow
from resnet_tf.cli.inference import add_inference_flags, compiled_inference
from resnet_tf.errors import UserError
from resnet_tf.files import write_json, write_text
from resnet_tf.pretrained.zoo import imagenet_classes

if TYPE_CHECKING:
    import keras

    from resnet_tf.data.image_ops import ResizeCenterCrop
    from resnet_tf.prediction import Prediction

# What most ImageNet networks are tested with; smaller networks see the whole picture.
USUAL_RESIZE, USUAL_CROP = 256, 224
SMALL = 96


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
        help="a .keras file, the folder of a run, weights that come with the package (NETWORK:NAME), or a "
        "network that torchvision publishes ImageNet weights for",
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

    Args:
        argv: flags, see `--help`.

    Returns:
        What `--json` writes: predictions (file, classes with index, name, probability and, for ImageNet, wnid)
        and unreadable (file, reason); or the exit code 1 when files could not be read.

    Raises:
        UserError: a flag, the model or a pattern is not as it must be.
    """
    arguments = make_parser().parse_args(argv)
    for flag in ("top", "batch_size", "resize", "crop"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value} is out of range; give 1 or more")
    for flag in ("csv", "json"):
        file = getattr(arguments, flag)
        if file and not Path(file).absolute().parent.is_dir():
            raise UserError(f"--{flag} {file}: the folder does not exist; make it or give another file")
    from resnet_tf.prediction import find_images

    paths = find_images(arguments.images)
    load_tensorflow()
    model, sidecar = open_classifier(arguments.model)
    result = classify(model, sidecar, paths, arguments)
    try:
        if arguments.csv:
            write_text(Path(arguments.csv), as_csv(result))
        if arguments.json:
            write_json(Path(arguments.json), result)
    except OSError as error:
        raise UserError(f"the predictions cannot be written ({error}); give another file") from error
    if not result["unreadable"]:
        return result
    count = len(result["unreadable"])
    print(f"{count} of {len(paths)} files could not be read", file=sys.stderr)
    return 1


def open_classifier(text: str) -> tuple["keras.Model", dict[str, Any]]:
    """A saved model with its sidecar, or a network with its published weights.

    Raises:
        UserError: there is neither, or it cannot be loaded.
    """
    from resnet_tf.cli.evaluate import load_model, model_path, read_sidecar
    from resnet_tf.models.registry import IMAGENET_NETWORKS, build_model

    if text in IMAGENET_NETWORKS and not Path(text).exists():
        return build_model(text, weights="imagenet"), {}
    path = model_path(Path(text), best=False)
    return load_model(path), read_sidecar(path)


def classify(model: "keras.Model", sidecar: dict[str, Any], paths: Sequence[Path], arguments: Any) -> dict[str, Any]:
    """Predict all files, printing each as it comes.

    Raises:
        UserError: the model's input or output is not that of an image classifier.
    """
    from tqdm import tqdm

    from resnet_tf.prediction import predict_files

    shape, outputs = model.input_shape, model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[3] not in (1, 3):
        raise UserError(f"{arguments.model} takes {shape}; only images (height, width, 1 or 3 channels) will do")
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        raise UserError(f"{arguments.model} puts out {outputs}; only the (batch, classes) of a classifier will do")
    classes = class_table(sidecar, outputs[1])
    found = predict_files(
        paths,
        probabilities_of(model, arguments.precision, arguments.fold_bn),
        framing_of(shape, sidecar, arguments.resize, arguments.crop),
        channels=shape[3],
        top=arguments.top,
        batch_size=arguments.batch_size,
    )
    result: dict[str, Any] = {"predictions": [], "unreadable": []}
    bar = tqdm(found, total=len(paths), unit="image", disable=len(paths) < 2 or not sys.stderr.isatty())
    for prediction in bar:
        if prediction.unreadable is not None:
            result["unreadable"].append({"file": str(prediction.path), "reason": prediction.unreadable})
            tqdm.write(f"{prediction.path} is skipped: {prediction.unreadable}", file=sys.stderr)
        else:
            result["predictions"].append(_record(prediction, classes))
            tqdm.write(describe(result["predictions"][-1]), file=sys.stdout)
    return result


def probabilities_of(model: "keras.Model", precision: str = "float32", fold_bn: bool = False) -> Any:
    """A compiled function from pixels (B, height, width, channels) uint8 to probabilities (B, classes)."""
    from resnet_tf.inference import output_type
    from resnet_tf.reports.metrics import log_softmax

    kind = output_type(model)
    forward = compiled_inference(model, precision, fold_bn)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        outputs = np.asarray(forward(pixels))
        return np.exp(log_softmax(outputs)) if kind == "logits" else outputs

    return probabilities


def framing_of(
    shape: Sequence[int | None], sidecar: dict[str, Any], resize: int | None, crop: int | None
) -> "ResizeCenterCrop":
    """Which part of a picture a model sees: as asked, as its sidecar says, or as is usual for its size.

    Args:
        shape: the model's input (batch, height, width, channels), sides None where they are free.
        sidecar: the JSON beside the model.
        resize: pixels of the shorter side, if asked for.
        crop: side of the crop, if asked for.

    Raises:
        UserError: the crop does not fit the model, or is larger than the resized picture.
    """
    from resnet_tf.data.image_ops import ResizeCenterCrop

    known = sidecar.get("preprocessing") or {}
    if "framing" in known and resize is None and crop is None:
        return ResizeCenterCrop(**known["framing"])
    usual = crop or known.get("crop") or (known.get("shape") or [USUAL_CROP])[0] or USUAL_CROP
    height, width = (crop or side or usual for side in shape[1:3])
    if any(side not in (None, given) for side, given in zip(shape[1:3], (height, width), strict=True)):
        raise UserError(f"--crop {crop} does not fit the model, which takes {shape[1]}x{shape[2]} pixels; leave it out")
    larger = max(height, width)
    if resize is None and crop is None:
        resize = known.get("resize")
    if resize is None:
        resize = larger if larger < SMALL else round(larger * USUAL_RESIZE / USUAL_CROP)
    if resize < larger:
        raise UserError(f"--resize {resize} is smaller than the crop of {height}x{width}; give {larger} or more")
    return ResizeCenterCrop(resize, height, width)


def class_table(sidecar: dict[str, Any], outputs: int) -> list[dict[str, Any]]:
    """What is known of each class: index, name and, for ImageNet, WordNet id.

    The names are the sidecar's; without any, 1000 outputs are taken for ImageNet's.

    Raises:
        UserError: the sidecar has another number of names.
    """
    names = sidecar.get("class_names")
    imagenet = imagenet_classes() if outputs == 1000 else ()
    if names is None:
        names = [known.name for known in imagenet] or [f"class {index}" for index in range(outputs)]
    if len(names) != outputs:
        raise UserError(f"the JSON file beside the model names {len(names)} classes, the model has {outputs}; mend it")
    table: list[dict[str, Any]] = [{"index": index, "name": name} for index, name in enumerate(names)]
    for row, known in zip(table, imagenet, strict=False):
        if row["name"] == known.name:
            row["wnid"] = known.wnid
    return table


def _record(prediction: "Prediction", classes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    likeliest = zip(prediction.classes, prediction.probabilities, strict=True)
    return {
        "file": str(prediction.path),
        "classes": [{**classes[index], "probability": probability} for index, probability in likeliest],
    }


def describe(record: dict[str, Any]) -> str:
    """A file and its classes as a person reads them."""
    return "\n".join([record["file"], *(f"  {row['name']} {row['probability']:.3f}" for row in record["classes"])])


def as_csv(result: dict[str, Any]) -> str:
    """A row for each file and class: file, rank (from 1), index, wnid (ImageNet only), name, probability."""
    text = io.StringIO()
    columns = ["file", "rank", "index", "wnid", "name", "probability"]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for record in result["predictions"]:
        for rank, row in enumerate(record["classes"], start=1):
            writer.writerow({"file": record["file"], "rank": rank, **row, "probability": f"{row['probability']:.6f}"})
    return text.getvalue()
