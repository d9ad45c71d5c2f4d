"""The 1000 classes of ILSVRC 2012, in the order that everybody's classifiers have them."""

import csv
import functools
from importlib import resources
from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """A class: its WordNet id, such as "n02111889", and its first English name, made unique."""

    wnid: str
    name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The classes by index. Names are WordNet's; the two cranes and the two maillots are told apart."""
    text = resources.files("resnet_tf").joinpath("imagenet_classes.csv").read_text(encoding="utf-8")
    return tuple(ImageNetClass(row["wnid"], row["name"]) for row in csv.DictReader(text.splitlines()))
