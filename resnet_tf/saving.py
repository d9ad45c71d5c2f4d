"""Keras models on the disk: found by file, run directory or name, loaded safely, and saved with a JSON sidecar."""

import contextlib
import hashlib
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_tf.data.dataset import DATASETS, IMAGE_FORMS
from resnet_tf.errors import UserError
from resnet_tf.files import write_json, write_with
from resnet_tf.models.registry import IMAGENET_NETWORKS, build_model, list_models
from resnet_tf.pretrained.zoo import find_shipped
from resnet_tf.process import recursion_limit

if TYPE_CHECKING:
    import keras

NO_DATASET = "{} does not say what it was trained on; give dataset=… (" + ", ".join((*DATASETS, *IMAGE_FORMS)) + ")"


def model_path(text: "str | os.PathLike[str]", best: bool = False) -> Path:
    """The model file that a file, a run directory or the name of weights that ship with the package stands for.

    Raises UserError where it does not exist, or is no Keras model.
    """
    path, entry = Path(text), find_shipped(str(text))
    if entry is not None and not best:
        return entry.path
    if path.is_dir() and not _is_saved_model(path):
        path = path / ("best.keras" if best else "final.keras")
        if not path.exists():
            raise UserError(f"{path} does not exist; finish the run first, or name a .keras file")
    elif best:
        raise UserError(f"best=True goes with the folder of a run, and {path} is none", argument="best")
    if not path.exists():
        raise UserError(f"{path} does not exist; name a .keras file or the folder of a run")
    if path.suffix not in (".keras", ".h5", ".hdf5") and not path.is_dir():
        source = "the PyTorch weights that it was exported from" if path.suffix == ".onnx" else "PyTorch weights"
        raise UserError(
            f"{path} is no Keras model (.keras, .h5, .hdf5 or a SavedModel folder); make one from {source} with "
            "resnet-tf import-weights"
        )
    return path


def _is_saved_model(path: Path) -> bool:
    return (path / "saved_model.pb").exists()


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a model file, or nothing; raises UserError where it is damaged."""
    sidecar = path.absolute().with_suffix(".json")
    if not sidecar.exists():
        return {}
    try:
        value = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{sidecar} cannot be read ({error}); remove it, or save the model again") from error
    return value if isinstance(value, dict) else {}


def load_model(path: Path) -> "keras.Model":
    """Load a .keras or .h5 file without running any code in it, or a SavedModel folder as a model of one layer.

    Raises UserError where it is damaged, needs such code, holds weights alone, or is of another Keras that this one
    cannot read.
    """
    import keras

    from resnet_tf.models.layers import single_input

    version, has_network = _writer(path)
    if not has_network:
        raise UserError(f"{path} holds weights without their network; build that one with weights={str(path)!r}")
    try:
        with recursion_limit(1000):
            return (
                _load_saved_model(path) if path.is_dir() else single_input(keras.models.load_model(path, compile=False))
            )
    except Exception as error:  # Keras raises whatever its readers raise on a damaged file
        reason = str(error).strip().splitlines()
        advice = (
            f"; Keras {version} wrote it, this is Keras {keras.__version__}: load it there (Keras 2: pip install "
            "tf_keras), and give the folder that model.export(FOLDER) writes"
        )
        raise UserError(
            f"{path} cannot be loaded as a Keras model ({reason[0][:200] if reason else error!r})"
            f"{advice if version not in (None, keras.__version__) else ''}"
        ) from error


def _writer(path: Path) -> tuple[str | None, bool]:
    """The version of Keras that wrote a file, None where it does not say, and whether there is a network in it."""
    with contextlib.suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("metadata.json"))["keras_version"], True
        if path.is_file():
            import h5py

            with h5py.File(path) as file:
                return file.attrs.get("keras_version"), "model_config" in file.attrs
    return None, True


def _load_saved_model(path: Path) -> "keras.Model":
    import keras

    layer = keras.layers.TFSMLayer(str(path), call_endpoint="serving_default", name="saved_model")
    specs = list(layer.call_endpoint_fn.structured_input_signature[1].values())
    if len(specs) != 1:
        raise ValueError(f"it takes {len(specs)} inputs")
    inputs = keras.Input(specs[0].shape[1:], dtype=specs[0].dtype.name, name="images")
    outputs = list(layer(inputs).values())
    return keras.Model(inputs, outputs[0] if len(outputs) == 1 else outputs, name=path.absolute().name)


def open_model(model: Any, *, best: bool = False, published: bool = False) -> "tuple[keras.Model, dict[str, Any], str]":
    """A model with its sidecar and what to call it, from a keras.Model, a training's result, a path or a name.

    `published` also takes networks that torchvision publishes ImageNet weights for.
    """
    import keras

    if isinstance(model, keras.Model):
        return model, {}, model.name
    if hasattr(model, "sidecar"):  # a TrainingResult
        return model.model, model.sidecar, model.model.name
    if published and str(model) in IMAGENET_NETWORKS and not Path(model).exists():
        return build_model(str(model), weights="imagenet"), {}, str(model)
    path = model_path(model, best)
    return load_model(path), read_sidecar(path), str(model)


def build_or_load(text: str, **options: Any) -> "keras.Model":
    """The model of a file or run directory, or a network by name with fresh weights.

    Options are those of the builder, None leaves the network's own; they do not go with a file.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if Path(text).exists() or find_shipped(text) is not None:
        if given:
            arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise UserError(f"{arguments} builds a network by name, and {text} is a file: leave it out")
        return load_model(model_path(text))
    if text not in list_models():
        raise UserError(
            f"{text} is neither a file nor a network; name a .keras file, a run folder or one of "
            f"{', '.join(list_models())}"
        )
    try:
        return build_model(text, **given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{text} cannot be built so: {error}") from error


def save_model(model: "keras.Model", path: Path, sidecar: dict[str, Any]) -> None:
    """Write a model and, beside it, what a plain Keras file has no room for; raises OSError where the disk refuses."""
    with recursion_limit(len(model.layers)):
        write_with(path, model.save)
    write_json(path.with_suffix(".json"), sidecar)


def check_trainable(model: "keras.Model") -> str:
    """Refuse a Keras model that cannot be trained as it is; returns a digest of its architecture."""
    from resnet_tf.inference import output_type
    from resnet_tf.models.layers import begins_normalized

    if not hasattr(model, "operations") or not isinstance(model.input_shape, tuple) or len(model.input_shape) != 4:
        raise UserError(
            f"model is {type(model).__name__} with the input {getattr(model, 'input_shape', None)}; expected a "
            "functional keras.Model of images (None, height, width, channels)",
            argument="model",
        )
    if output_type(model) != "logits":
        raise UserError(
            f"model {model.name} returns probabilities; expected logits: build it with a last layer without activation",
            argument="model",
        )
    if not begins_normalized(model):
        warnings.warn(
            f"model {model.name} does not begin with a Rescaling or Normalization layer: it is trained on raw pixels "
            "0-255; begin it with keras.layers.Rescaling(1 / 127.5, offset=-1)",
            stacklevel=3,
        )
    return hashlib.sha256(model.to_json().encode()).hexdigest()


def check_classes(model: "keras.Model", shape: tuple[int, ...], classes: int) -> None:
    """Refuse a Keras model whose input or output does not fit the data."""
    sides = model.input_shape[1:]
    if any(side not in (None, given) for side, given in zip(sides, shape, strict=True)):
        raise UserError(f"model {model.name} takes images {sides}, the data has {tuple(shape)}", argument="model")
    if model.output_shape[-1] < classes:
        raise UserError(
            f"model {model.name} has {model.output_shape[-1]} outputs, the data has {classes} classes", argument="model"
        )
