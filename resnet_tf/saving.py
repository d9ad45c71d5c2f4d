"""Keras models on the disk: found by file, run directory or name, loaded safely, and saved with a JSON sidecar."""

import contextlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_tf.config import MAX_SIDE
from resnet_tf.data.dataset import DATASETS, IMAGE_FORMS
from resnet_tf.errors import UserError, did_you_mean, short
from resnet_tf.files import MAX_JSON, read_json, write_json, write_with
from resnet_tf.models.registry import IMAGENET_NETWORKS, build_model, list_models
from resnet_tf.pretrained.zoo import find_shipped
from resnet_tf.process import recursion_limit

if TYPE_CHECKING:
    import keras

SIDE = range(1, MAX_SIDE + 1)  # of an image as a network sees it, pixels
_PREPROCESSING = {
    "shape?": [(SIDE, None)],
    **dict.fromkeys(("resize?", "crop?"), (SIDE, None)),
    "framing?": {"resize": (SIDE, None), "height": SIDE, "width": SIDE},
}
_SIDECAR = {
    "class_names?": ([str], None),
    "preprocessing?": (_PREPROCESSING, None),
    **dict.fromkeys(("dataset?", "model?", "data_source?"), str | None),
    "on_bad_image?": frozenset(("stop", "skip")),
}
NO_DATASET = "{} does not say what it was trained on; give data=… (" + ", ".join((*DATASETS, *IMAGE_FORMS)) + ")"


def model_path(text: "str | os.PathLike[str]", best: bool = False) -> Path:
    """The model file that a file, a run directory or the name of weights that ship with the package stands for.

    Raises UserError where it does not exist, or is no Keras model.
    """
    if not str(text):
        raise UserError("a model has the empty name; name a .keras file or the folder of a run", argument="model")
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
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} is no file; name a .keras file or the folder of a run")
    return path


def _is_saved_model(path: Path) -> bool:
    return (path / "saved_model.pb").exists()


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON beside a model file, or nothing; raises UserError where it is not what is written there."""
    sidecar = path.absolute().with_suffix(".json")
    if not sidecar.exists():
        return {}
    advice = "remove it, or save the model again"
    about = read_json(sidecar, _SIDECAR, advice)
    unknown = ((about.get("preprocessing") or {}).get("framing") or {}).keys() - _PREPROCESSING["framing?"]
    if unknown:
        raise UserError(f"{sidecar} has a framing with {', '.join(sorted(unknown))}, which is not known; {advice}")
    return about


def input_files(text: str, best: bool = False) -> list[Path]:
    """The files that a model is read from; none of a network by name."""
    if text in IMAGENET_NETWORKS and not Path(text).exists():
        return []
    path = model_path(text, best)
    return [path, path.with_suffix(".json")]


def check_sidecar(output: Path, model: Path | None = None) -> None:
    """Refuse an output whose sidecar would replace a JSON file of something else than `model` or an export of it."""
    sidecar, other = output.with_suffix(".json"), output.with_suffix(".keras")
    foreign = sidecar.exists() and "preprocessing" not in read_sidecar(output)
    if foreign or (sidecar.exists() and output != other and other.exists() and other != model):
        raise UserError(
            f"output={str(output)!r} would replace {sidecar}, which belongs to something else; give another"
        )


def load_model(path: Path) -> "keras.Model":
    """Load a .keras or .h5 file without running any code in it, or a SavedModel folder as a model of one layer.

    Raises UserError where it is damaged, needs such code, holds weights alone, or is of another Keras that this one
    cannot read.
    """
    import keras

    from resnet_tf.models.foreign import plain_functional
    from resnet_tf.pretrained.keras_file import read_keras_file

    version, has_network = _writer(path)
    if not has_network:
        raise UserError(f"{path} holds weights without their network; build that one with weights={str(path)!r}")
    try:
        return _load_saved_model(path) if path.is_dir() else plain_functional(read_keras_file(path))
    except Exception as error:  # Keras raises whatever its readers raise on a damaged file
        if own := re.search(r"Could not locate (?:class|function) '(\w+)'", str(error)):
            raise UserError(
                f"{path} holds {own[1]}, which is not Keras' own; import it first, decorated with "
                "@keras.saving.register_keras_serializable(), or call this in keras.saving.custom_object_scope"
                f"({{{own[1]!r}: {own[1]}}})"
            ) from error
        advice = (
            f"; Keras {version} wrote it, this is Keras {keras.__version__}: load it there (Keras 2: pip install "
            "tf_keras), and give the folder that model.export(FOLDER) writes"
        )
        raise UserError(
            f"{path} cannot be loaded as a Keras model ({short(error, 200)})"
            f"{advice if version not in (None, keras.__version__) else ''}"
        ) from error


def _writer(path: Path) -> tuple[str | None, bool]:
    """The version of Keras that wrote a file, None where it does not say, and whether there is a network in it."""
    with contextlib.suppress(Exception):  # whoever loads it will say what is wrong
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("metadata.json") as file:
                return json.loads(file.read(MAX_JSON))["keras_version"], True
        if path.is_file():
            import h5py

            with h5py.File(path) as data:
                return data.attrs.get("keras_version"), "model_config" in data.attrs
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

    from resnet_tf.models.foreign import plain_functional

    if isinstance(model, keras.Model):
        names = getattr(model, "class_names", None)
        return plain_functional(model), {} if names is None else {"class_names": list(names)}, model.name
    if hasattr(model, "sidecar"):  # a TrainingResult
        return model.model, model.sidecar, model.model.name
    if not isinstance(model, str | os.PathLike):
        expected = "a keras.Model, a result of train, a path or a name"
        raise UserError(f"model is {type(model).__name__}; expected {expected}", argument="model")
    if published and str(model) in IMAGENET_NETWORKS and not Path(model).exists():
        return build_model(str(model), weights="imagenet"), {}, str(model)
    path = model_path(model, best)
    return load_model(path), read_sidecar(path), str(model)


def class_names(model: Any) -> tuple[str, ...]:
    """Names of the classes in the order of a model's outputs.

    Args:
        model: what `build_model` or `train` returned, a .keras file with its JSON, the folder of a run, or weights that
            come with the package ("resnet20_v1:cifar10").

    Returns:
        The names.

    Raises:
        UserError: there is no such file, or the model was built for classes that nobody has named.
    """
    if isinstance(model, str | os.PathLike):
        names, name = read_sidecar(model_path(model)).get("class_names"), str(model)
    else:
        names, name = getattr(model, "class_names", None), getattr(model, "name", type(model).__name__)
    if names is None:
        raise UserError(f"{name} does not know the names of its classes; train it, or give it weights that do")
    return tuple(names)


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
            f"{text} is neither a file nor a network; name a .keras file, a run folder or a network; "
            f"{did_you_mean(text, list_models())}"
        )
    try:
        return build_model(text, **given)
    except (TypeError, ValueError) as error:
        raise UserError(f"{text} cannot be built so: {error}") from error


def save_model(model: "keras.Model", path: Path, sidecar: dict[str, Any]) -> None:
    """Write a model and, beside it, what a plain Keras file has no room for; raises OSError where the disk refuses."""
    write_with(path, lambda temporary: write_keras(model, temporary))
    write_json(path.with_suffix(".json"), sidecar)


def write_keras(model: "keras.Model", path: Path) -> None:
    """Write a .keras file whose bytes depend on nothing but the model; Keras writes addresses and times into it."""
    made, ids = path.with_name(f"{path.stem}-made.keras"), dict[str, int]()
    try:
        with recursion_limit(len(model.layers)):
            model.save(made)
        with zipfile.ZipFile(made) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.infolist():
                info = zipfile.ZipInfo(entry.filename)
                info.file_size = entry.file_size  # decides on the large kind of entry
                with source.open(entry) as read, target.open(info, "w") as written:
                    if not entry.filename.endswith(".json"):
                        shutil.copyfileobj(read, written)
                        continue
                    text = re.sub(r'("date_saved": )"[^"]*"', r'\1"1980-01-01@00:00:00"', read.read().decode())
                    address = re.compile(r'(?<="shared_object_id": )\d+')
                    written.write(address.sub(lambda found: str(ids.setdefault(found[0], len(ids))), text).encode())
    finally:
        made.unlink(missing_ok=True)
