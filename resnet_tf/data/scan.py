"""All image files decoded once before any training, and what is wrong with them said at once."""

import hashlib
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resnet_tf.data.image_files import ImageFiles
from resnet_tf.data.murmurs import Murmurs
from resnet_tf.data.verdicts import Verdict, VerdictCache, judge
from resnet_tf.errors import UserError

# Files that a thread takes at a time.
_CHUNK = 16
_SHOWN = 10
# A copy in a split further left stays: the images that measure a network are those that nobody may change.
_PRECEDENCE = ("test", "validation", "train")


@dataclass(frozen=True)
class Problem:
    """A file, or a class ("class NAME"), and what is wrong with it: the kind and, for some kinds, particulars."""

    where: str
    kind: str
    particulars: str = ""

    def __str__(self) -> str:
        """Return the problem as one line of printable text."""
        text = f"{self.where} ({self.kind}{' ' if self.particulars else ''}{self.particulars})"
        return text if text.isprintable() else ascii(text)[1:-1]


@dataclass(frozen=True)
class Scan:
    """The files that can be used, by split, what is wrong with the others, and a digest of each split's content."""

    kept: dict[str, ImageFiles]
    problems: tuple[Problem, ...]
    fingerprints: dict[str, str]

    def counts(self) -> dict[str, int]:
        """Return how many problems there are of each kind."""
        return dict(Counter(problem.kind for problem in self.problems))


def scan(
    splits: Mapping[str, ImageFiles],
    *,
    on_bad: Literal["stop", "skip"] = "stop",
    cache: Path | None = None,
    threads: int | None = None,
) -> Scan:
    """Decode every file once, in threads and behind a progress bar, and sort out what cannot be trained on.

    Problems are files that cannot be read, are empty, no image, damaged, truncated or too large; files with the
    content of another, of whatever split; and classes of the training images with no image that can be used, or one.
    With "skip", such files are left out (of copies all but one stay out: the first of the test images, else of the
    validation images, else of the training images), classes without training images are dropped with what other
    splits have of them, and classes of one image stay.

    Args:
        splits: files by split ("train", "validation", "test").
        on_bad: "stop" raises where there is any problem, "skip" goes on without.
        cache: file that keeps the verdicts; a file of unchanged path, size and time is not decoded again. A damaged
            cache is ignored.
        threads: threads that decode; None takes one per core.

    Returns:
        What is kept, in the order it came in, and all problems.

    Raises:
        UserError: `on_bad` is "stop" and there is a problem (the message counts all and names the first ten), or the
            images that are left to train on are not of two classes at least.
    """
    verdicts = _verdicts({path for files in splits.values() for path in files.paths}, VerdictCache(cache), threads)
    kept, problems = _without_copies(*_without_faults(splits, verdicts), verdicts)
    if "train" in kept:
        kept, of_classes = _without_empty_classes(kept)
        problems += of_classes
    if problems and on_bad == "stop":
        raise UserError(_complaint(problems, sum(map(len, splits.values()))))
    if "train" in kept and len(kept["train"].class_names) < 2:
        raise UserError(
            f"of {len(splits['train'])} training images, {len(kept['train'])} can be used, of "
            f"{len(kept['train'].class_names)} classes; training needs images of two classes or more"
            + (f": {problems[0]}" if problems else "")
        )
    return Scan(kept, tuple(problems), {split: _fingerprint(files, verdicts) for split, files in kept.items()})


def _verdicts(paths: set[str], cache: VerdictCache, threads: int | None) -> dict[str, Verdict]:
    known = {path: cache.get(path) for path in paths}
    verdicts = {path: verdict for path, verdict in known.items() if verdict is not None}
    new = sorted(paths - verdicts.keys())
    if not new:
        return verdicts
    fresh: dict[str, Verdict] = {}
    try:
        with Murmurs() as murmurs:
            suspects = _judge_all(new, fresh, murmurs, threads or os.cpu_count() or 1)
            for path in suspects:
                fresh[path] = _judge_alone(path, murmurs)
    finally:
        # What an interrupted scan has found is found.
        cache.save(fresh)
    return verdicts | fresh


def _judge_all(paths: list[str], into: dict[str, Verdict], murmurs: Murmurs, threads: int) -> list[str]:
    """Judge in threads; returns the files that a decoder may have complained of and decoded all the same."""
    suspects: list[str] = []

    def judge_chunk(chunk: tuple[str, ...]) -> tuple[dict[str, Verdict], bool]:
        start = murmurs.length
        return {path: judge(path) for path in chunk}, murmurs.tell_of_damage(start)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="scan")
    quiet = not sys.stderr.isatty()
    with murmurs.terminal() as terminal, tqdm(total=len(paths), unit=" images", file=terminal, disable=quiet) as bar:
        bar.set_description("checking")
        try:
            for judged, damage in pool.map(judge_chunk, _chunks(paths)):
                doubtful = [path for path, verdict in judged.items() if damage and verdict.fault is None]
                into.update((path, verdict) for path, verdict in judged.items() if path not in doubtful)
                suspects += doubtful
                bar.update(len(judged))
        finally:
            pool.shutdown(cancel_futures=True)
    return suspects


def _chunks(paths: Iterable[str]) -> Iterator[tuple[str, ...]]:
    rest = iter(paths)
    while chunk := tuple(itertools.islice(rest, _CHUNK)):
        yield chunk


def _judge_alone(path: str, murmurs: Murmurs) -> Verdict:
    start = murmurs.length
    verdict = judge(path)
    return Verdict("damaged", verdict.digest) if murmurs.tell_of_damage(start) else verdict


def _without_faults(
    splits: Mapping[str, ImageFiles], verdicts: Mapping[str, Verdict]
) -> tuple[dict[str, ImageFiles], list[Problem]]:
    kept, problems = {}, []
    for split, files in splits.items():
        faults = [verdicts[path].fault for path in files.paths]
        kept[split] = files.take([i for i, fault in enumerate(faults) if fault is None])
        for path, fault in zip(files.paths, faults, strict=True):
            if fault is not None:
                kind, _, particulars = fault.partition(": ")
                problems.append(Problem(path, kind, particulars))
    return kept, problems


def _without_copies(
    splits: dict[str, ImageFiles], problems: list[Problem], verdicts: Mapping[str, Verdict]
) -> tuple[dict[str, ImageFiles], list[Problem]]:
    originals: dict[str, tuple[str, str]] = {}
    indices: dict[str, list[int]] = {split: [] for split in splits}
    for split in sorted(splits, key=_PRECEDENCE.index):
        files = splits[split]
        for i, (path, label) in enumerate(zip(files.paths, files.labels.tolist(), strict=True)):
            digest, name = verdicts[path].digest, files.class_names[label]
            if digest not in originals:
                originals[digest] = (path, name)
                indices[split].append(i)
                continue
            original, its_class = originals[digest]
            other = "" if its_class == name else f", which is of class {its_class}"
            problems.append(Problem(path, "copy", f"of {original}{other}"))
    return {split: files.take(indices[split]) for split, files in splits.items()}, problems


def _without_empty_classes(splits: dict[str, ImageFiles]) -> tuple[dict[str, ImageFiles], list[Problem]]:
    train = splits["train"]
    members = np.bincount(train.labels, minlength=len(train.class_names))
    problems = [
        Problem(f"class {train.class_names[i]}", "without training images") for i in np.flatnonzero(members == 0)
    ]
    for i in np.flatnonzero(members == 1):
        path = train.paths[int(np.flatnonzero(train.labels == i)[0])]
        problems.append(Problem(path, "the only training image", f"of class {train.class_names[i]}"))
    return {split: _of_classes(files, members > 0) for split, files in splits.items()}, problems


def _of_classes(files: ImageFiles, used: NDArray[np.bool_]) -> ImageFiles:
    """The files of the classes that are used, which are numbered anew."""
    names = tuple(name for name, keep in zip(files.class_names, used.tolist(), strict=True) if keep)
    files = files.take(np.flatnonzero(used[files.labels]))
    return ImageFiles(files.paths, (np.cumsum(used, dtype=np.int32) - 1)[files.labels].astype(np.int32), names)


def _fingerprint(files: ImageFiles, verdicts: Mapping[str, Verdict]) -> str:
    """SHA-256, in hex, of the class names, the labels and the content of the files; paths and times do not count."""
    digest = hashlib.sha256(repr(files.class_names).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(files.labels, "<i4").data)
    digest.update("".join(verdicts[path].digest for path in files.paths).encode())
    return digest.hexdigest()


def _complaint(problems: list[Problem], total: int) -> str:
    shown = "; ".join(map(str, problems[:_SHOWN])) + ("; …" if len(problems) > _SHOWN else "")
    return (
        f"{len(problems)} problems among {total} images: {shown}; mend or remove them, or give --on-bad-image skip to "
        "go on without"
    )
