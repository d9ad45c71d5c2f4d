"""Weights that ship with the package, torchvision's published ones, and the class names of ImageNet."""

import csv
import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from resnet_tf.errors import UserError
from resnet_tf.files import read_json, replacing, sha256_of

FOLDER = Path(__file__).parents[1] / "weights"

_WORD = r"[A-Za-z0-9_]+"

Constants = tuple[tuple[float, ...], tuple[float, ...]]


def pixels(*values: float) -> tuple[float, ...]:
    """0-1 units in 0-255 units."""
    return tuple(255 * value for value in values)


# Mean and standard deviation in 0-255 units that checkpoints go with; "none" is ToTensor() alone, which divides by 255.
PREPROCESSING: dict[str, Constants] = {
    "imagenet": (pixels(0.485, 0.456, 0.406), pixels(0.229, 0.224, 0.225)),
    "cifar10": (pixels(0.4914, 0.4822, 0.4465), pixels(0.2470, 0.2435, 0.2616)),
    "half": (pixels(0.5, 0.5, 0.5), pixels(0.5, 0.5, 0.5)),
    "none": (pixels(0, 0, 0), pixels(1, 1, 1)),
}


@dataclass(frozen=True)
class PretrainedEntry:
    """Weights `name` of a network: a .keras file, and the content of the JSON beside it."""

    network: str
    name: str
    path: Path
    about: dict[str, Any]

    @property
    def text(self) -> str:
        return f"{self.network}:{self.name}"

    def options(self) -> dict[str, Any]:
        """The builder's arguments that it was trained with."""
        known = {**self.about["builder"], "classes": len(self.about["class_names"])}
        known |= {
            ("input_shape" if k == "shape" else k): self.about["preprocessing"][k] for k in ("mean", "std", "shape")
        }
        return {key: tuple(v) if isinstance(v, list) else v for key, v in known.items() if v is not None}


def run_entry(weights: object) -> PretrainedEntry | None:
    """The final model of a run folder, with what it was trained with; None for anything else."""
    path = Path(weights) / "final.keras" if isinstance(weights, str | os.PathLike) else None
    if path is None or not path.is_file() or not path.with_suffix(".json").is_file():
        return None
    shape = {"model": str, "class_names": [str], "builder": {}, "preprocessing": {"mean": [float], "std": [float]}}
    about = read_json(path.with_suffix(".json"), shape, "remove it, or give the model file itself")
    return PretrainedEntry(about["model"], path.parent.name, path, about)


def entries() -> dict[str, PretrainedEntry]:
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        network = about["model"]
        found.append(PretrainedEntry(network, path.stem.removeprefix(f"{network}-"), path.with_suffix(".keras"), about))
    return {entry.text: entry for entry in found}


def list_weights() -> list[str]:
    """Weights that come with the package, as `network:name`; `build_model(network, weights=name)` loads them."""
    return list(entries())


def find_entry(network: str, name: str) -> PretrainedEntry:
    """The weights of this name for a network; UserError that lists the known ones if there are none."""
    known = entries()
    text = f"{network}:{name}"
    if text not in known:
        there_are = ", ".join(known) or "none"
        raise UserError(
            f"no weights {text} come with the package; there are {there_are}; or give the path of a file",
            argument="weights",
        )
    return known[text]


def find_shipped(text: str) -> PretrainedEntry | None:
    """The weights that `network:name` stands for (UserError if unknown); None for other texts, and for a file."""
    match = re.fullmatch(f"({_WORD}):({_WORD})", text)
    if match is None or Path(text).exists():
        return None
    return find_entry(match[1], match[2])


def is_entry_name(weights: object) -> bool:
    """Whether `weights=` can only be the name of weights that come with the package."""
    return (
        isinstance(weights, str)
        and re.fullmatch(_WORD, weights) is not None
        and weights != "imagenet"
        and not Path(weights).is_file()  # a folder of that name may hold the data
    )


def checked_options(entry: PretrainedEntry, network: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The builder's options to load an entry with; UserError if `given` ones (None: not given) are not the weights'."""
    given = {key: value for key, value in given.items() if value is not None}
    expected = {**network, **entry.options()}
    # The network fits images of any size, and a classifier for other classes is a new one.
    checked = [key for key in given if key in expected and key not in ("classes", "input_shape")]
    unlike = [key for key in checked if _as_list(given[key]) != _as_list(expected[key])]
    if unlike:
        theirs, ours = (", ".join(f"{k}={_as_list(of[k])!r}" for k in unlike) for of in (expected, given))
        raise UserError(
            f"the weights {entry.text} are of a network with {theirs}, not {ours}; leave {' and '.join(unlike)} out",
            argument=unlike[0],
        )
    return {**entry.options(), **given, "weights": str(entry.path)}


def _as_list(value: Any) -> Any:
    """A sequence of numbers as a list of floats, so that tuples and lists compare; anything else as it is."""
    return [float(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


class ImageNetClass(NamedTuple):
    """A class: its WordNet id, such as "n02111889", and its first English name, made unique."""

    wnid: str
    name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The classes by index. Names are WordNet's; the two cranes and the two maillots are told apart."""
    text = resources.files("resnet_tf").joinpath("imagenet_classes.csv").read_text(encoding="utf-8")
    return tuple(ImageNetClass(line["wnid"], line["name"]) for line in csv.DictReader(text.splitlines()))


ADDRESS = "https://download.pytorch.org/models/"

# torchvision/models/resnet.py, IMAGENET1K_V1: trained by the plain recipe of 90 epochs, all but the last.
# The digits behind the dash are the beginning of the file's SHA-256.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_64x4d": "resnext101_64x4d-173b62eb.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet101_2": "wide_resnet101_2-32ee1156.pth",
}

_TIMEOUT = 30  # seconds without a byte


def published_file(network: str | None) -> Path:
    """torchvision's file for a network in `FILES`, from the cache or, the first time, from the network."""
    if network not in FILES:
        raise UserError(
            f"weights='imagenet' exists for {', '.join(FILES)} with stride_on='3x3' only; give a file",
            argument="weights",
        )
    name = FILES[network]
    path = cache_folder() / name
    if not path.exists():
        _fetch(name, path)
    elif not _has_checksum(path, name):
        raise UserError(f"{path} does not have the checksum in its name; remove it, and fetch {ADDRESS}{name} again")
    return path


def cache_folder() -> Path:
    """Where published files are kept: the folder resnet_tf in Keras' own ($KERAS_HOME or ~/.keras)."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "resnet_tf"


def _has_checksum(path: Path, name: str) -> bool:
    return sha256_of(path).startswith(Path(name).stem.rpartition("-")[2])


def _fetch(name: str, path: Path) -> None:
    import urllib.request  # here, since --help knows the networks and downloads nothing

    from tqdm import tqdm

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(ADDRESS + name, timeout=_TIMEOUT) as response, replacing(path) as temporary:
            size = int(response.headers.get("Content-Length") or 0) or None
            bar = {"total": size, "desc": name, "disable": not sys.stderr.isatty()}
            with open(temporary, "wb") as file, tqdm.wrapattr(response, "read", **bar) as body:
                shutil.copyfileobj(body, file, 2**20)
            if not _has_checksum(temporary, name):
                raise UserError(f"the file from {ADDRESS}{name} does not have the checksum in its name; try again")
    except OSError as error:
        raise UserError(
            f"{name} could not be fetched ({getattr(error, 'reason', None) or error}); put {ADDRESS}{name} at {path}"
        ) from error
