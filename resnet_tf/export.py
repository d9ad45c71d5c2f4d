"""`export_model()`: a model in the format of another runtime, read back and compared before it is said to work."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from resnet_tf.config import FORMATS, QUANTIZATIONS
from resnet_tf.data.cifar import load_dataset
from resnet_tf.data.dataset import Dataset
from resnet_tf.data.prepare import as_dataset
from resnet_tf.errors import UserError, optional_import
from resnet_tf.files import check_outputs, replacing, replacing_folder, write_json, write_text
from resnet_tf.folding import fold_batch_norm
from resnet_tf.fused import fused_view
from resnet_tf.inference import compiled_forward, evaluate_arrays
from resnet_tf.models.foreign import output_type
from resnet_tf.prediction import class_table
from resnet_tf.process import recursion_limit, suppress_output
from resnet_tf.saving import check_sidecar, input_files, open_model, write_keras
from resnet_tf.scoring import check_input

# Largest difference allowed, as a share of max(1, largest output of the original). A float16 weight is off by up to
# 2^-11 of itself, and a few dozen layers add some of that up. Eight bits are judged by accuracy, not by this.
TOLERANCES = {None: 1e-4, "float16": 1e-2, "int8": None}
COMPARED, CALIBRATED, TESTED = 16, 300, 1000  # images
Forward = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Comparison:
    """How far an export is from its original on the same images.

    Attributes:
        difference: largest absolute difference of an output.
        largest: largest absolute output of the original.
        agreement: fraction of images with the same highest output.
        bound: largest difference allowed; None where there is no bound.
        path: the export.
        accuracy: top-1 of the export on test images, a fraction, or None where no data was given.
        original_accuracy: likewise of the original.
    """

    difference: float
    largest: float
    agreement: float
    bound: float | None
    path: Path | None = None
    accuracy: float | None = None
    original_accuracy: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the difference is a number within its bound."""
        return bool(np.isfinite(self.difference)) and (self.bound is None or self.difference <= self.bound)


def export_model(
    model: Any,
    path: str | os.PathLike[str],
    format: str,
    *,
    quantize: str | None = None,
    fold_bn: bool = False,
    softmax: bool = False,
    uint8_input: bool = False,
    data: Any = None,
    data_dir: str | os.PathLike[str] | None = None,
    best: bool = False,
) -> Comparison:
    """Write a model in another format, read that back, and compare; a JSON sidecar comes beside it.

    The input is called "images" (raw pixels, 0-255), the output "logits" or "probabilities". The names of the classes
    are in the metadata of ONNX (a JSON list under "labels"), and in NAME.labels.txt beside TFLite and SavedModel.

    Nothing is left at `path` (what was there stays) unless the comparison passes.

    Args:
        model: a functional keras.Model, a result of `train`, a .keras file, the directory of a run, or weights that
            ship with the package.
        path: file, or folder for "saved_model".
        format: "keras", "saved_model", "tflite" or "onnx".
        quantize: for "tflite": "float16" weights, or "int8" weights and activations, calibrated on training images of
            `data`; inputs and outputs stay float.
        fold_bn: fold batch normalization into convolutions.
        softmax: return probabilities where the model returns logits.
        uint8_input: take uint8 pixels, not float32; a .keras file takes both.
        data: name of a data set, a `Dataset` or (images, labels): compare on the test images, and measure both
            accuracies on 1000.
        data_dir: folder or archive with CIFAR.
        best: of a run, the model with the best validation accuracy.

    Returns:
        The comparison, which passed.

    Raises:
        UserError: a package is missing, an argument does not fit, the export cannot be written or read back, or it
            differs too much.
    """
    _check_request(format, quantize, data is not None, uint8_input)
    path = Path(path)
    check_place(path, format, model, best)
    original, sidecar, name = open_model(model, best=best)
    if len(original.inputs) > 1 or len(original.outputs) > 1:
        raise UserError(f"{name} has several inputs or outputs; only models of one each are exported", argument="model")
    if softmax and output_type(original) == "logits":
        probabilities = layers.Softmax(dtype="float32", name="probabilities")(original.outputs[0])
        original = keras.Model(original.inputs[0], probabilities, name=original.name)
    labels = [] if _output_name(original) == "outputs" else class_table(sidecar, int(original.output_shape[-1]))[0]
    dataset: Any = load_dataset(data, data_dir) if isinstance(data, str) else data
    if dataset is not None:
        dataset = as_dataset(dataset, outputs=int(original.output_shape[-1]))
        if not isinstance(data, str | Dataset):  # arrays are there to calibrate and to compare on
            dataset = replace(dataset, test=dataset.train)
        if dataset.test is None:
            raise UserError(f"{dataset.name} has no test images to compare on", argument="data")
        check_input(original, name, dataset.name, dataset.test.images.shape[1:])
    calibration = None if dataset is None else _spread(dataset.train.images, CALIBRATED)
    written = fold_batch_norm(original) if fold_bn else original
    options: dict[str, Any] = {"quantize": quantize, "uint8_input": uint8_input, "labels": labels}
    options |= {"calibration": calibration, "reference": original}
    comparison = write_export(written, path, format, _images(original, dataset), **options)
    if sidecar:
        write_json(path.with_name(f"{path.stem}.json"), sidecar)
    if labels and format in ("saved_model", "tflite"):
        write_text(path.with_suffix(".labels.txt"), "\n".join(labels) + "\n")
    accuracy, original_accuracy = _accuracies(original, path, format, dataset)
    return replace(comparison, path=path, accuracy=accuracy, original_accuracy=original_accuracy)


def write_export(
    model: keras.Model,
    path: Path,
    kind: str,
    images: NDArray[np.float32],
    *,
    quantize: str | None = None,
    calibration: NDArray[np.float32] | None = None,
    reference: keras.Model | None = None,
    uint8_input: bool = False,
    labels: Sequence[str] = (),
) -> Comparison:
    """Write a functional float32 model, and compare it on `images` (N, H, W, C) with `reference`, by default itself."""
    images = np.rint(images.clip(0, 255)) if uint8_input else images
    expected = np.asarray((reference or model).predict_on_batch(images), np.float32)
    with _replacing(path, folder=kind == "saved_model") as temporary:
        try:
            with suppress_output():
                _write(model, temporary, kind, uint8_input, quantize, calibration, labels)
                forward = load_export(temporary, kind)
                found = forward(images)
        except UserError:
            raise
        except Exception as error:  # converters raise whatever they please
            reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
            raise UserError(f"{model.name} cannot be exported as {kind}: {reason}; try fold_bn=True") from error
        result = compare(expected, found, TOLERANCES[quantize])
        if not result.passed:
            raise UserError(
                f"the {kind} export of {model.name} differs from the original by {result.difference:.3g}, allowed is "
                f"{result.bound}; nothing was written"
            )
    return result


def _images(model: keras.Model, data: Any) -> NDArray[np.float32]:
    """Images to compare on: of the test part, or noise in the range of pixels."""
    if data is not None:
        return _spread(data.test.images, COMPARED)
    shape = [side or 64 for side in model.input_shape[1:]]
    return np.random.default_rng(0).integers(0, 256, (COMPARED, *shape)).astype(np.float32)


def _spread(images: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """At most `count` images from all over the set."""
    # Drawn, not every k-th one: sets that are sorted by class or repeat in a cycle would give few classes.
    return images[np.sort(np.random.default_rng(0).permutation(len(images))[:count])].astype(np.float32)


def _accuracies(model: keras.Model, path: Path, kind: str, data: Any) -> tuple[float | None, float | None]:
    """Top-1 of the export and of the original on test images."""
    if data is None:
        return None, None
    exported, original = load_export(path, kind), compiled_forward(fused_view(model))
    images, labels = data.test.images[:TESTED], data.test.labels[:TESTED]
    options: dict[str, Any] = {"kind": output_type(model), "classes": len(data.class_names)}
    theirs = evaluate_arrays(lambda batch: exported(batch.astype(np.float32)), images, labels, **options)
    return theirs.top1, evaluate_arrays(original, images, labels, **options).top1


def compare(expected: NDArray[Any], found: NDArray[Any], tolerance: float | None) -> Comparison:
    """Compare outputs (N, C) of an original and its export; the bound is tolerance · max(1, largest output)."""
    if expected.shape != found.shape:
        raise UserError(f"the export gives outputs of the shape {found.shape} where the original has {expected.shape}")
    largest = float(np.abs(expected).max())
    best, theirs = (outputs.reshape(len(outputs), -1).argmax(axis=1) for outputs in (expected, found))
    bound = None if tolerance is None else tolerance * max(1.0, largest)
    return Comparison(float(np.abs(expected - found).max()), largest, float((best == theirs).mean()), bound)


def _check_request(kind: str, quantize: str | None, calibrated: bool, uint8_input: bool) -> None:
    """Raise UserError before any work where a value is not allowed, two do not go together, or a package is missing."""
    if kind not in FORMATS:
        raise UserError(f"format={kind!r} is not known; allowed: {', '.join(FORMATS)}")
    if quantize not in QUANTIZATIONS:
        raise UserError(f"quantize={quantize!r} is not known; allowed: float16, int8")
    if quantize and kind != "tflite":
        raise UserError(f"quantize={quantize!r} goes with format='tflite', not {kind}")
    if quantize == "int8" and not calibrated:
        raise UserError("quantize='int8' needs training images to calibrate on; give data=…")
    if uint8_input and kind == "keras":
        raise UserError("uint8_input=True does not go with format='keras', which takes uint8 as it is; leave it out")
    if kind == "onnx":
        for module in ("onnx", "tf2onnx", "onnxruntime"):
            optional_import(module, "onnx")


def check_place(path: Path, kind: str, model: Any = None, best: bool = False) -> None:
    """Refuse, before any work, a place that is taken by something else, or by what `model` is read from."""
    files = input_files(str(model), best) if isinstance(model, str | os.PathLike) else []
    if kind == "saved_model" and path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise UserError(f"output={str(path)!r} is a folder that is no export; give another one", argument="output")
    elif kind == "saved_model" and path.exists():
        raise UserError(f"output={str(path)!r} is no folder; give another one", argument="output")
    else:
        check_outputs({"output": path}, files)
    check_sidecar(path, files[0] if files else None)


@contextlib.contextmanager
def _replacing(path: Path, folder: bool) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well; UserError where that cannot be."""
    try:
        with replacing_folder(path) if folder else replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); give another output=…") from error


def _output_name(model: keras.Model) -> str:
    try:
        return {"logits": "logits", "softmax": "probabilities"}[output_type(model)]
    except UserError:  # no classifier
        return "outputs"


def _serving_model(model: keras.Model, uint8_input: bool) -> keras.Model:
    """The fused view of a model with the names and types that a server sees."""
    images = keras.Input(model.input_shape[1:], dtype="uint8" if uint8_input else "float32", name="images")
    pixels = keras.ops.cast(images, "float32") if uint8_input else images
    with recursion_limit(len(model.layers)):
        return keras.Model(images, {_output_name(model): fused_view(model)(pixels)}, name=model.name)


def _write(
    model: keras.Model, path: Path, kind: str, uint8_input: bool, quantize: str | None, calibration: Any, labels: Any
) -> None:
    if kind == "keras":
        write_keras(model, path)
        return
    serving = _serving_model(model, uint8_input)
    if kind == "saved_model":
        serving.export(path, format="tf_saved_model", verbose=False)
    elif kind == "onnx":
        serving(np.zeros((1, *(side or 32 for side in model.input_shape[1:])), np.uint8))  # it exports used models only
        serving.export(path, format="onnx", verbose=False)
        onnx = optional_import("onnx", "onnx")
        written = onnx.load(path)
        onnx.helper.set_model_props(written, {"labels": json.dumps(list(labels))} if labels else {})
        onnx.save(written, path)
    else:
        converter = tf.lite.TFLiteConverter.from_keras_model(serving)
        if quantize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if quantize == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if quantize == "int8":
            samples = calibration.astype(serving.input.dtype)
            converter.representative_dataset = lambda: ([image[None]] for image in samples)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        path.write_bytes(converter.convert())


def _read_keras(path: Path) -> Forward:
    model = keras.models.load_model(path, compile=False)
    return lambda images: np.asarray(model.predict_on_batch(images), np.float32)


def _read_saved_model(path: Path) -> Forward:
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    dtype = serve.structured_input_signature[1]["images"].dtype
    return lambda images: next(iter(serve(images=tf.cast(images, dtype)).values())).numpy()


def _read_tflite(path: Path) -> Forward:
    try:
        litert = optional_import("ai_edge_litert.interpreter", "litert")
    except UserError:  # TensorFlow has the same interpreter, and is going to drop it
        litert = tf.lite
    interpreter = litert.Interpreter(model_content=path.read_bytes())
    run, dtype = interpreter.get_signature_runner(), interpreter.get_input_details()[0]["dtype"]

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        # Some kernels plan for one image; one by one always works.
        return np.concatenate([next(iter(run(images=image[None].astype(dtype)).values())).copy() for image in images])

    return forward


def _read_onnx(path: Path) -> Forward:
    session = optional_import("onnxruntime", "onnx").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32
    return lambda images: np.asarray(session.run(None, {"images": images.astype(dtype)})[0], np.float32)


def load_export(path: Path, kind: str) -> Forward:
    """Read an export with its own runtime: a function from float32 images (N, H, W, C) to the network's outputs."""
    readers = {"keras": _read_keras, "saved_model": _read_saved_model, "tflite": _read_tflite, "onnx": _read_onnx}
    return readers[kind](path)
