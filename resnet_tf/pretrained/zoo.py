"""Weights that ship with the package, and the class names of ImageNet. Imports no framework."""

import csv
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from resnet_tf.errors import UserError

FOLDER = Path(__file__).parents[1] / "weights"

_WORD = r"[A-Za-z0-9_]+"


@dataclass(frozen=True)
class PretrainedEntry:
    """Weights `name` of a network: a .keras file, and the content of the JSON beside it (`about`).

    The JSON has classes, preprocessing, builder, recipe, data, metrics and training.
    """

    network: str
    name: str
    path: Path
    about: dict[str, Any]

    @property
    def text(self) -> str:
        """Network and name, as commands take them."""
        return f"{self.network}:{self.name}"

    def options(self) -> dict[str, Any]:
        """The builder's options of the network that the weights are of."""
        channels = {key: tuple(self.about["preprocessing"][key]) for key in ("mean", "std")}
        return {**self.about["builder"], **channels}


def entries() -> dict[str, PretrainedEntry]:
    """What ships, by `network:name`."""
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        network = about["model"]
        entry = PretrainedEntry(network, path.stem.removeprefix(f"{network}-"), path.with_suffix(".keras"), about)
        found[entry.text] = entry
    return found


def list_weights() -> list[str]:
    """Weights that come with the package, as `network:name`; `build_model(network, weights=name)` loads them."""
    return list(entries())


def find_entry(network: str, name: str) -> PretrainedEntry:
    """The weights of this name for a network; UserError that lists the known ones if there are none."""
    known = entries()
    text = f"{network}:{name}"
    if text not in known:
        there_are = f"there are {', '.join(known)}" if known else "this version comes with none"
        raise UserError(
            f"no weights {text} come with the package; {there_are}; or give the path of a file", argument="weights"
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
    """The builder's options to load an entry with; UserError if `given` ones (None: not given) are not the weights'.

    `network` are the options that the network's name stands for.
    """
    given = {key: value for key, value in given.items() if value is not None}
    expected = {**network, **entry.options()}
    unlike = [key for key in given if key in expected and _as_list(given[key]) != _as_list(expected[key])]
    if unlike:
        theirs = ", ".join(f"{key}={_as_list(expected[key])!r}" for key in unlike)
        ours = ", ".join(f"{key}={_as_list(given[key])!r}" for key in unlike)
        raise UserError(
            f"the weights {entry.text} are of a network with {theirs}, not {ours}; "
            f"leave {' and '.join(unlike)} out, or build without weights",
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
