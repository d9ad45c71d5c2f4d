"""Test errors of finished runs beside the papers', as a table that compares like with like only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean
from typing import Any

from resnet_tf.evaluation.compare import spread_of
from resnet_tf.papers import FIGURES

HEAD = (
    "network",
    "shortcut",
    "parameters",
    "recipe",
    "split",
    "data",
    "seeds",
    "test error %, last step",
    "test error %, best by validation",
    "the paper's error %",
    "difference",
)
_DATA = ("cifar10", "cifar100")
_SOURCES = ("original", "JPEG copy")


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        place: of its folder, relative to the page that links to it.
        settings: what decided the result, but for the seed; equal for runs that only differ in it.
        network: name.
        shortcut: the one that it was built with.
        own: whether that, the width and the biases are the named network's own.
        parameters: trainable ones.
        recipe: name.
        changes: settings in which the run departs from that recipe, as `field=value`.
        papers_recipe: whether the recipe is the papers' own for this network, and nothing was changed.
        train_images, validation_images, test_images: how many.
        dataset: name.
        source: which variant of the data, in words.
        seed: of the run.
        precision: policy.
        last: test error in percent after the last update.
        best: test error in percent of the model that was best by validation, None without one.
    """

    place: str
    settings: dict[str, Any]
    network: str
    shortcut: str
    own: bool
    parameters: int
    recipe: str
    changes: tuple[str, ...]
    papers_recipe: bool
    train_images: int
    validation_images: int
    test_images: int
    dataset: str
    source: str
    seed: int
    precision: str
    last: float
    best: float | None

    @property
    def data(self) -> str:
        """The data in words."""
        names = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "shapes": "`shapes`"}
        return f"{names.get(self.dataset, self.dataset)}, {self.source}"

    @property
    def split(self) -> str:
        """Images to train on and to validate on."""
        return f"{self.train_images:,} / {self.validation_images:,}"

    @property
    def recipe_cell(self) -> str:
        """The recipe, what was changed of it, and the precision."""
        return ", ".join([f"`{self.recipe}`", *self.changes, self.precision])


def groups(results: Iterable[Result]) -> list[list[Result]]:
    """Runs that differ in nothing but their seeds, together: original data first, then by network and recipe."""
    ordered = sorted(results, key=lambda result: (*_order(result), result.seed, result.place))
    return [list(group) for _, group in groupby(ordered, key=_order)]


def results_table(results: Iterable[Result], more: Sequence[Sequence[str]] = ()) -> str:
    """A Markdown table with a line per group, and the rows in `more` below."""
    return markdown_table(HEAD, [*(_row(group) for group in groups(results)), *more])


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a cell must not hold a vertical bar."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _order(result: Result) -> tuple[Any, ...]:
    return (
        _place(result.dataset, _DATA),
        _place(result.source, _SOURCES),
        len(result.network),
        result.network,
        result.shortcut,
        result.recipe,
        result.changes,
        -result.train_images,
        str(sorted(result.settings.items())),
    )


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def _row(group: Sequence[Result]) -> tuple[str, ...]:
    first = group[0]
    return (
        first.network,
        first.shortcut,
        f"{first.parameters:,}",
        first.recipe_cell,
        first.split,
        first.data,
        ", ".join(f"[{result.seed}]({result.place})" for result in group),
        spread([result.last for result in group]),
        spread([result.best for result in group if result.best is not None]),
        *_paper(group),
    )


def spread(values: Sequence[float]) -> str:
    """The mean, with the standard deviation of the sample where there are several values."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return spread_of(values, 2)


def _paper(group: Sequence[Result]) -> tuple[str, str]:
    """The paper's error, and the difference from it where the two are errors of the same thing."""
    first = group[0]
    if first.dataset != "cifar10":
        return "–", "–"
    figure = FIGURES.get(first.network)
    if figure is None:
        return "not given", "–"
    reasons = [first.source] if first.source != "original" else []
    reasons += ["recipe"] if not first.papers_recipe else []
    reasons += ["network changed"] if not first.own else []
    published = f"{figure.error:.2f} ({figure.runs}{'' if first.source == 'original' else '; original data'})"
    if reasons:
        return published, f"not comparable ({', '.join(reasons)})"
    return published, signed(mean(result.last for result in group) - figure.error)


def signed(points: float) -> str:
    """A difference with its sign, two digits."""
    return f"{round(points, 2) + 0.0:+.2f}".replace("-", "−")
