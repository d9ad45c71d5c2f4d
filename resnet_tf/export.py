"""`export_model()`: a model in the format of another runtime, read back and compared before it is said to work."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from resnet_tf.config import FORMATS, QUANTIZATIONS
from resnet_tf.data.cifar import load_dataset
from resnet_tf.errors import UserError, optional_import
from resnet_tf.files import replacing, write_json
from resnet_tf.fused import fold_batch_norm, fused_view
from resnet_tf.inference import compiled_forward, evaluate_arrays, output_type
from resnet_tf.process import suppress_output
from resnet_tf.saving import open_model
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
    data: Any = None,
    data_dir: str | os.PathLike[str] | None = None,
    best: bool = False,
) -> Comparison:
    """Write a model in another format, read that back, and compare; a JSON sidecar comes beside it.

    Nothing is left at `path` (what was there stays) unless the comparison passes.

    Args:
        model: a functional keras.Model, a result of `train`, a .keras file, the directory of a run, or weights that
            ship with the package.
        path: file, or folder for "saved_model".
        format: "keras", "saved_model", "tflite" or "onnx".
        quantize: for "tflite": "float16" weights, or "int8" weights and activations, calibrated on training images of
            `data`; inputs and outputs stay float.
        fold_bn: fold batch normalization into convolutions.
        data: name of a data set or a `Dataset`: compare on its test images, and measure both accuracies on 1000.
        data_dir: folder or archive with CIFAR.
        best: of a run, the model with the best validation accuracy.

    Returns:
        The comparison, which passed.

    Raises:
        UserError: a package is missing, an argument does not fit, the export cannot be written or read back, or it
            differs too much.
    """
    check_request(format, quantize, data is not None)
    path = Path(path)
    original, sidecar, name = open_model(model, best=best)
    dataset: Any = load_dataset(data, data_dir) if isinstance(data, str) else data
    if dataset is not None and dataset.test is None:
        raise UserError(f"{dataset.name} has no test images to compare on", argument="data")
    if dataset is not None:
        check_input(original, name, dataset.name, dataset.test.images.shape[1:])
    comparison = write_export(
        fold_batch_norm(original) if fold_bn else original,
        path,
        format,
        _images(original, dataset),
        quantize=quantize,
        calibration=None if dataset is None else _spread(dataset.train.images, CALIBRATED),
        reference=original,
    )
    if sidecar:
        write_json(path.with_name(f"{path.stem}.json"), sidecar)
    accuracies = _accuracies(original, path, format, dataset)
    return Comparison(
        comparison.difference, comparison.largest, comparison.agreement, comparison.bound, path, *accuracies
    )


def write_export(
    model: keras.Model,
    path: Path,
    kind: str,
    images: NDArray[np.float32],
    *,
    quantize: str | None = None,
    calibration: NDArray[np.float32] | None = None,
    reference: keras.Model | None = None,
) -> Comparison:
    """Write a functional float32 model, and compare it on `images` (N, H, W, C) with `reference`, by default itself."""
    expected = np.asarray((reference or model).predict_on_batch(images), np.float32)
    with _replacing(path, folder=kind == "saved_model") as temporary:
        try:
            with suppress_output():
                _WRITERS[kind](model, temporary, quantize, calibration)
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
    chosen = np.random.default_rng(0).permutation(len(images))[:count]
    return images[np.sort(chosen)].astype(np.float32)


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
    same = expected.reshape(len(expected), -1).argmax(axis=1) == found.reshape(len(found), -1).argmax(axis=1)
    bound = None if tolerance is None else tolerance * max(1.0, largest)
    return Comparison(float(np.abs(expected - found).max()), largest, float(same.mean()), bound)


def load_export(path: Path, kind: str) -> Forward:
    """Read an export with its own runtime.

    Returns:
        Function from float32 images (N, H, W, C) to the float32 outputs of the network.

    Raises:
        UserError: the runtime is not installed.
    """
    return _READERS[kind](path)


def check_request(kind: str, quantize: str | None, calibrated: bool) -> None:
    """Find out before any work whether an export can be made.

    Args:
        kind: one of `FORMATS`.
        quantize: one of `QUANTIZATIONS`.
        calibrated: whether there are images to calibrate on.

    Raises:
        UserError: a value is not allowed, two do not go together, or a package is missing.
    """
    if kind not in FORMATS:
        raise UserError(f"format={kind!r} is not known; allowed: {', '.join(FORMATS)}")
    if quantize not in QUANTIZATIONS:
        raise UserError(f"quantize={quantize!r} is not known; allowed: float16, int8")
    if quantize and kind != "tflite":
        raise UserError(f"quantize={quantize!r} goes with format='tflite', not {kind}")
    if quantize == "int8" and not calibrated:
        raise UserError("quantize='int8' needs training images to calibrate on; give data=…")
    if kind == "onnx":
        for module in ("onnx", "tf2onnx", "onnxruntime"):
            optional_import(module, "onnx")


@contextlib.contextmanager
def _replacing(path: Path, folder: bool) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well.

    Raises:
        UserError: the place is taken by something else, or cannot be written.
    """
    if path.is_dir() and not (folder and (path / "saved_model.pb").exists()):
        raise UserError(f"{path} is a folder that is no export; give another output=…")
    if not path.absolute().parent.is_dir():
        raise UserError(f"output={str(path)!r}: its folder does not exist; make it or give another output=…")
    try:
        with _replacing_folder(path) if folder else replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); give another output=…") from error


@contextlib.contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    temporary, old = path.with_name(f".new-{path.name}"), path.with_name(f".old-{path.name}")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write_keras(model: keras.Model, path: Path, quantize: str | None, calibration: Any) -> None:
    model.save(path)


def _write_saved_model(model: keras.Model, path: Path, quantize: str | None, calibration: Any) -> None:
    fused_view(model).export(path, format="tf_saved_model", verbose=False)


def _write_tflite(model: keras.Model, path: Path, quantize: str | None, calibration: Any) -> None:
    converter = tf.lite.TFLiteConverter.from_keras_model(fused_view(model))
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    path.write_bytes(converter.convert())


def _write_onnx(model: keras.Model, path: Path, quantize: str | None, calibration: Any) -> None:
    view = fused_view(model)
    view(np.zeros((1, *(side or 32 for side in model.input_shape[1:])), np.float32))  # the exporter wants a used model
    view.export(path, format="onnx", verbose=False)


def _read_keras(path: Path) -> Forward:
    model = keras.models.load_model(path, compile=False)
    return lambda images: np.asarray(model.predict_on_batch(images), np.float32)


def _read_saved_model(path: Path) -> Forward:
    loaded = tf.saved_model.load(str(path))
    return lambda images: np.asarray(loaded.serve(tf.constant(images)), np.float32)


def _read_tflite(path: Path) -> Forward:
    interpreter = tf.lite.Interpreter(model_content=path.read_bytes())
    source = interpreter.get_input_details()[0]["index"]

    def forward(images: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs = []
        for image in images:  # some kernels plan for one image; one by one always works
            interpreter.resize_tensor_input(source, (1, *image.shape))
            interpreter.allocate_tensors()
            interpreter.set_tensor(source, image[None])
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
        return np.stack(outputs).astype(np.float32)

    return forward


def _read_onnx(path: Path) -> Forward:
    session = optional_import("onnxruntime", "onnx").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {source: images})[0], np.float32)


_WRITERS = {"keras": _write_keras, "saved_model": _write_saved_model, "tflite": _write_tflite, "onnx": _write_onnx}
_READERS = {"keras": _read_keras, "saved_model": _read_saved_model, "tflite": _read_tflite, "onnx": _read_onnx}
