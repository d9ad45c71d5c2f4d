"""What a network says about image files: found, decoded ahead of it in threads, and classified in batches."""

import glob
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_tf.data.image_io import SUFFIXES, Pixels, UnreadableImageError, read_image
from resnet_tf.data.image_ops import ResizeCenterCrop
from resnet_tf.errors import UserError

BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a file with their probabilities, likeliest first, or why it could not be read."""

    path: Path
    classes: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    unreadable: str | None = None


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The files that names, folders and glob patterns stand for, each once, in the order given.

    Folders are searched for image files at any depth; a name that is neither a folder nor a pattern is taken as it is.

    Raises:
        UserError: a folder or a pattern gives no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        if Path(pattern).is_dir():
            files = sorted(p for p in Path(pattern).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif glob.has_magic(pattern) and not Path(pattern).exists():
            files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
        else:
            files = [Path(pattern)]
        if not files:
            raise UserError(f"{pattern} holds no image files ({', '.join(SUFFIXES)}); name files, folders or patterns")
        found.update(dict.fromkeys(files))
    return list(found)


def predict_files(
    paths: Sequence[Path],
    probabilities: Callable[[Pixels], np.ndarray],
    framing: ResizeCenterCrop,
    *,
    channels: int = 3,
    top: int = 5,
    batch_size: int = 32,
    threads: int = 2,
) -> Iterator[Prediction]:
    """Classify files in batches, while threads decode those of the batches to come.

    Args:
        paths: image files.
        probabilities: maps pixels (B, height, width, channels) uint8 to probabilities (B, classes).
        framing: which part of a picture the network sees.
        channels: 3 for RGB, 1 for gray.
        top: classes to report of each file, or all where there are fewer.
        batch_size: images that the network sees at once; the last batch may be smaller.
        threads: threads that decode.

    Yields:
        A `Prediction` for each file, in order; unreadable ones take no place in a batch.
    """

    def load(path: Path) -> Pixels:
        return framing(read_image(path, channels))

    for batch in _batches(_loaded_ahead(paths, load, batch_size * BATCHES_AHEAD, threads), batch_size):
        readable = [pixels for _, pixels in batch if not isinstance(pixels, UnreadableImageError)]
        rows = iter(np.asarray(probabilities(np.stack(readable))) if readable else ())
        for path, pixels in batch:
            if isinstance(pixels, UnreadableImageError):
                yield Prediction(path, unreadable=str(pixels))
            else:
                yield _best(path, next(rows), top)


def _loaded_ahead(
    paths: Iterable[Path], load: Callable[[Path], Pixels], ahead: int, threads: int
) -> Iterator[tuple[Path, Pixels | UnreadableImageError]]:
    """Files with their pixels, or with why they have none, at most `ahead` of them loaded and waiting."""
    waiting: deque[tuple[Path, Future[Pixels]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            waiting.append((path, pool.submit(load, path)))
            if len(waiting) > ahead:
                yield _outcome(*waiting.popleft())
        while waiting:
            yield _outcome(*waiting.popleft())


def _outcome(path: Path, loading: Future[Pixels]) -> tuple[Path, Pixels | UnreadableImageError]:
    try:
        return path, loading.result()
    except UnreadableImageError as error:
        return path, error


def _batches(items: Iterable[tuple[Path, Any]], size: int) -> Iterator[list[tuple[Path, Any]]]:
    """Groups of items of which `size` have pixels; the last may have fewer."""
    batch: list[tuple[Path, Any]] = []
    readable = 0
    for item in items:
        batch.append(item)
        readable += not isinstance(item[1], UnreadableImageError)
        if readable == size:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch


def _best(path: Path, row: np.ndarray, top: int) -> Prediction:
    order = np.argsort(-row, kind="stable")[:top]
    return Prediction(path, tuple(order.tolist()), tuple(row[order].astype(float).tolist()))
