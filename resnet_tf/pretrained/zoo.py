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
_CHANNELS = ("mean", "std")


@dataclass(frozen=True)
class PretrainedEntry:
    """Weights of a network.

    Attributes:
        network: name of the network.
        name: what they are called among its weights.
        path: .keras file.
        about: the JSON beside it: classes, preprocessing, builder, recipe, data, metrics, training.
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
        channels = {key: tuple(self.about["preprocessing"][key]) for key in _CHANNELS}
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
    """The weights of this name for a network.

    Raises:
        UserError: there are none; the message names those that there are.
    """
    known = entries()
    text = f"{network}:{name}"
    if text not in known:
        there_are = f"there are {', '.join(known)}" if known else "this version comes with none"
        raise UserError(f"no weights {text} come with the package; {there_are}; or give the path of a file")
    return known[text]


def find_shipped(text: str) -> PretrainedEntry | None:
    """The weights that `network:name` stands for; None for a text of another form, or that is a file.

    Raises:
        UserError: there are none of this name; the message names those that there are.
    """
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


def checked_options(entry: PretrainedEntry, network: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The builder's options to load an entry with.

    Args:
        entry: the weights.
        network: options that the network's name stands for.
        asked: options that were asked for; None stands for nothing asked.

    Raises:
        UserError: they are not those of the weights.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    own = {**network, **entry.options()}
    unlike = [key for key, value in given.items() if key in own and _plain(value) != _plain(own[key])]
    if unlike:
        theirs = ", ".join(f"{key}={_plain(own[key])!r}" for key in unlike)
        wanted = ", ".join(f"{key}={_plain(given[key])!r}" for key in unlike)
        raise UserError(
            f"the weights {entry.text} are of a network with {theirs}, not {wanted}; "
            f"leave {' and '.join(unlike)} out, or build without weights"
        )
    return {**entry.options(), **given, "weights": str(entry.path)}


def _plain(value: Any) -> Any:
    return [float(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value


class ImageNetClass(NamedTuple):
    """A class: its WordNet id, such as "n02111889", and its first English name, made unique."""

    wnid: str
    name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The classes by index. Names are WordNet's; the two cranes and the two maillots are told apart."""
    text = resources.files("resnet_tf").joinpath("imagenet_classes.csv").read_text(encoding="utf-8")
    return tuple(ImageNetClass(row["wnid"], row["name"]) for row in csv.DictReader(text.splitlines()))
