"""`resnet-tf export`: a model in the format of another runtime, compared with the original."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_tf.cli.command import Parser, load_tensorflow
from resnet_tf.cli.evaluate import MODEL_HELP, load_model, model_path, read_sidecar
from resnet_tf.data.dataset import DATASETS, load_dataset
from resnet_tf.errors import UserError
from resnet_tf.files import write_json
from resnet_tf.pretrained.zoo import find_shipped

if TYPE_CHECKING:
    import keras

    from resnet_tf.data.dataset import Dataset

FORMATS = ("keras", "saved_model", "tflite", "onnx")
COMPARED, CALIBRATED, TESTED = 16, 300, 1000  # images


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
    parser.add_argument(
        "--dataset", help=f"{', '.join(DATASETS)}: compare on its test images, and print both accuracies on {TESTED}"
    )
    parser.add_argument("--data-dir", help="folder or archive with CIFAR; default: Keras' cache, then a download")
    return parser


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Export a model and print how far it is from the original.

    Args:
        argv: flags, see `--help`.

    Returns:
        output, difference, bound, agreement and, with --dataset, accuracy and original_accuracy (fractions).

    Raises:
        UserError: a flag, a file or a package is missing or does not fit, or the export differs too much.
    """
    arguments = make_parser().parse_args(argv)
    path = model_path(Path(arguments.model), arguments.best)
    output = _output(arguments, path)
    load_tensorflow()
    from resnet_tf.cli.scoring import check_input
    from resnet_tf.export import check_request, export_model
    from resnet_tf.folding import fold_batch_norm

    check_request(arguments.format, arguments.quantize, arguments.dataset is not None)
    original = load_model(path)
    data = None if arguments.dataset is None else load_dataset(arguments.dataset, arguments.data_dir)
    if data is not None:
        check_input(original, path, data.name, data.test.images.shape[1:])
    comparison = export_model(
        fold_batch_norm(original) if arguments.fold_bn else original,
        output,
        arguments.format,
        _images(original, data),
        quantize=arguments.quantize,
        calibration=None if data is None else _spread(data.train.images, CALIBRATED),
        reference=original,
    )
    bound = "no bound on 8 bits" if comparison.bound is None else f"allowed {comparison.bound:.3g}"
    print(
        f"{output}: read back; largest difference {comparison.difference:.3g} ({bound}; largest output "
        f"{comparison.largest:.3g}), same top class on {100 * comparison.agreement:.0f} % of {COMPARED} images"
    )
    sidecar = read_sidecar(path)
    if sidecar:
        write_json(output.with_name(f"{output.stem}.json"), sidecar)
    result = {"output": str(output), "difference": comparison.difference, "bound": comparison.bound}
    return result | {"agreement": comparison.agreement} | _accuracies(original, output, arguments.format, data)


def _output(arguments: Any, path: Path) -> Path:
    """Where the export goes.

    Raises:
        UserError: that is the model itself, or has another format's ending.
    """
    ending = {"saved_model": "", "keras": ".keras"}.get(arguments.format, f".{arguments.format}")
    kind = "".join(f"-{part}" for part in (arguments.quantize, "folded" if arguments.fold_bn else None) if part)
    name = f"{path.stem}{kind or ('-export' if ending == '.keras' else '')}{ending or '-saved_model'}"
    # Not into the installed package.
    beside = Path() if find_shipped(arguments.model) else path.parent
    output = Path(arguments.output) if arguments.output else beside / name
    if output.suffix != ending:
        raise UserError(f"--output {output} must end in {ending or 'no suffix'} for --format {arguments.format}")
    if output.absolute() == path.absolute():
        raise UserError(f"--output {output} is the model itself; give another file")
    return output


def _images(model: "keras.Model", data: "Dataset | None") -> np.ndarray:
    """Images to compare on: of the test part, or noise in the range of pixels."""
    if data is not None:
        return _spread(data.test.images, COMPARED)
    shape = [side or 64 for side in model.input_shape[1:]]
    return np.random.default_rng(0).integers(0, 256, (COMPARED, *shape)).astype(np.float32)


def _spread(images: np.ndarray, count: int) -> np.ndarray:
    """At most `count` images from all over the set, float32."""
    # Drawn, not every k-th one: sets that are sorted by class or repeat in a cycle would give few classes.
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return images[np.sort(chosen)].astype(np.float32)


def _accuracies(model: "keras.Model", output: Path, kind: str, data: "Dataset | None") -> dict[str, Any]:
    if data is None:
        return {}
    from resnet_tf.export import load_export
    from resnet_tf.fused import fused_view
    from resnet_tf.inference import compiled_forward, output_type, score

    exported = load_export(output, kind)
    images, labels = data.test.images[:TESTED], data.test.labels[:TESTED]
    top1 = []
    for forward in (lambda batch: exported(batch.astype(np.float32)), compiled_forward(fused_view(model))):
        result = score(forward, images, labels, kind=output_type(model), classes=len(data.class_names))
        top1.append(result.top1)
    print(
        f"top-1 on {len(images)} test images of {data.name} ({data.source}): {100 * top1[0]:.2f} %, "
        f"the original has {100 * top1[1]:.2f} %"
    )
    return {"accuracy": top1[0], "original_accuracy": top1[1]}
