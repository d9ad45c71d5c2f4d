"""Check every image file once before training."""

import contextlib
import hashlib
import itertools
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from resnet_tf.data.image_folder import ImageFiles
from resnet_tf.data.image_io import UnreadableImageError, cv2, decode_image, read_bytes
from resnet_tf.data.image_list import find_images
from resnet_tf.errors import UserError
from resnet_tf.files import write_text
from resnet_tf.pretrained.download import cache_folder

_VERSION = 1


@dataclass(frozen=True)
class FileCheck:
    """Why a file cannot be used (None where it can), and a digest of its content ("" where it could not be read)."""

    fault: str | None
    digest: str


def check_image(path: str) -> FileCheck:
    """Read and decode a file."""
    digest = ""
    try:
        data = read_bytes(path)
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        # A large JPEG at an eighth of its size: every byte is still read, and the memory is not taken.
        decode_image(data, min_side=1)
    except UnreadableImageError as error:
        return FileCheck(str(error), digest)
    return FileCheck(None, digest)


class CheckCache:
    """Verdicts by path, size and time of change, in a JSON file that may be missing or damaged."""

    def __init__(self, path: Path | None) -> None:
        """Read the cache at `path`; None remembers nothing."""
        self._path = path
        self._known: dict[str, tuple[list[int], FileCheck]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            self._known = _load(path) if path else {}

    def get(self, path: str) -> FileCheck | None:
        """The verdict on a file that has not changed since, or None."""
        known = self._known.get(os.path.abspath(path))
        return known[1] if known and known[0] == _stamp(path) else None

    def save(self, verdicts: Mapping[str, FileCheck]) -> None:
        """Add verdicts by path and replace the file; a disk that refuses costs only time the next run."""
        if self._path is None:
            return
        for path, verdict in verdicts.items():
            stamp = _stamp(path)
            # A right that is granted later leaves size and time as they are.
            if stamp is not None and verdict.digest:
                self._known[os.path.abspath(path)] = (stamp, verdict)
        files = {path: [*stamp, verdict.digest, verdict.fault] for path, (stamp, verdict) in self._known.items()}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({**_header(), "files": files}, separators=(",", ":")))


def _load(path: Path) -> dict[str, tuple[list[int], FileCheck]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if {key: content[key] for key in _header()} != _header():
        return {}
    known = {}
    for name, (size, changed, digest, fault) in content["files"].items():
        if not isinstance(digest, str) or not isinstance(fault, str | None):
            raise TypeError("a verdict is not made of texts")
        known[name] = ([size, changed], FileCheck(fault, digest))
    return known


def _header() -> dict[str, object]:
    # Another decoder may judge otherwise.
    return {"version": _VERSION, "opencv": cv2.__version__}


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


# libjpeg's words for picture data that are missing or wrong; its other warnings leave the picture as it was.
_DAMAGE = re.compile(rb"premature end|[Bb]ad Huffman code|instead of RST")


class Murmurs:
    """A context in which the process' stderr goes into a temporary file; what is printed meanwhile is not shown.

    A JPEG whose data are damaged in the middle decodes all the same, and this is the one place where that is told.
    """

    def __enter__(self) -> "Murmurs":
        """Divert stderr."""
        sys.stderr.flush()
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name) / "murmurs"
        self._terminal = os.dup(2)
        with self._path.open("wb") as file:
            os.dup2(file.fileno(), 2)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Give stderr back."""
        sys.stderr.flush()
        os.dup2(self._terminal, 2)
        os.close(self._terminal)
        self._folder.cleanup()

    @property
    def length(self) -> int:
        """Bytes printed so far."""
        return self._path.stat().st_size

    def tell_of_damage(self, start: int) -> bool:
        """Whether libjpeg has complained of damaged data beyond byte `start`."""
        with self._path.open("rb") as file:
            file.seek(start)
            return bool(_DAMAGE.search(file.read()))

    def terminal(self) -> IO[str]:
        """A way past the diversion, for a progress bar; to be closed by the caller."""
        return os.fdopen(os.dup(self._terminal), "w", encoding="utf-8", errors="replace")


# Files that a thread takes at a time.
_CHUNK = 16
_SHOWN = 10
# A copy in a split further left stays: the images that measure a network are those that nobody may change.
_PRECEDENCE = ("test", "validation", "train")


@dataclass(frozen=True)
class ImageIssue:
    """A file, or a class ("class NAME"), and what is wrong with it: the kind and, for some kinds, particulars."""

    where: str
    kind: str
    particulars: str = ""

    def __str__(self) -> str:
        """Return the problem as one line of printable text."""
        text = f"{self.where} ({self.kind}{' ' if self.particulars else ''}{self.particulars})"
        return text if text.isprintable() else ascii(text)[1:-1]


@dataclass(frozen=True)
class CheckResult:
    """The files that can be used, by split, what is wrong with the others, and a digest of each split's content."""

    kept: dict[str, ImageFiles]
    problems: tuple[ImageIssue, ...]
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
) -> CheckResult:
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
    verdicts = _file_checks({path for files in splits.values() for path in files.paths}, CheckCache(cache), threads)
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
    return CheckResult(kept, tuple(problems), {split: _fingerprint(files, verdicts) for split, files in kept.items()})


def _file_checks(paths: set[str], cache: CheckCache, threads: int | None) -> dict[str, FileCheck]:
    known = {path: cache.get(path) for path in paths}
    verdicts = {path: verdict for path, verdict in known.items() if verdict is not None}
    new = sorted(paths - verdicts.keys())
    if not new:
        return verdicts
    fresh: dict[str, FileCheck] = {}
    try:
        with Murmurs() as murmurs:
            suspects = _judge_all(new, fresh, murmurs, threads or os.cpu_count() or 1)
            for path in suspects:
                fresh[path] = _judge_alone(path, murmurs)
    finally:
        # What an interrupted scan has found is found.
        cache.save(fresh)
    return verdicts | fresh


def _judge_all(paths: list[str], into: dict[str, FileCheck], murmurs: Murmurs, threads: int) -> list[str]:
    """Judge in threads; returns the files that a decoder may have complained of and decoded all the same."""
    suspects: list[str] = []

    def judge_chunk(chunk: tuple[str, ...]) -> tuple[dict[str, FileCheck], bool]:
        start = murmurs.length
        return {path: check_image(path) for path in chunk}, murmurs.tell_of_damage(start)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="scan")
    quiet = not sys.stderr.isatty()
    with murmurs.terminal() as terminal, tqdm(total=len(paths), unit=" images", file=terminal, disable=quiet) as bar:
        bar.set_description("checking")
        try:
            for eval_model, damage in pool.map(judge_chunk, _chunks(paths)):
                doubtful = [path for path, verdict in eval_model.items() if damage and verdict.fault is None]
                into.update((path, verdict) for path, verdict in eval_model.items() if path not in doubtful)
                suspects += doubtful
                bar.update(len(eval_model))
        finally:
            pool.shutdown(cancel_futures=True)
    return suspects


def _chunks(paths: Iterable[str]) -> Iterator[tuple[str, ...]]:
    rest = iter(paths)
    while chunk := tuple(itertools.islice(rest, _CHUNK)):
        yield chunk


def _judge_alone(path: str, murmurs: Murmurs) -> FileCheck:
    start = murmurs.length
    verdict = check_image(path)
    return FileCheck("damaged", verdict.digest) if murmurs.tell_of_damage(start) else verdict


def _without_faults(
    splits: Mapping[str, ImageFiles], verdicts: Mapping[str, FileCheck]
) -> tuple[dict[str, ImageFiles], list[ImageIssue]]:
    kept, problems = {}, []
    for split, files in splits.items():
        faults = [verdicts[path].fault for path in files.paths]
        kept[split] = files.take([i for i, fault in enumerate(faults) if fault is None])
        for path, fault in zip(files.paths, faults, strict=True):
            if fault is not None:
                kind, _, particulars = fault.partition(": ")
                problems.append(ImageIssue(path, kind, particulars))
    return kept, problems


def _without_copies(
    splits: dict[str, ImageFiles], problems: list[ImageIssue], verdicts: Mapping[str, FileCheck]
) -> tuple[dict[str, ImageFiles], list[ImageIssue]]:
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
            problems.append(ImageIssue(path, "copy", f"of {original}{other}"))
    return {split: files.take(indices[split]) for split, files in splits.items()}, problems


def _without_empty_classes(splits: dict[str, ImageFiles]) -> tuple[dict[str, ImageFiles], list[ImageIssue]]:
    train = splits["train"]
    members = np.bincount(train.labels, minlength=len(train.class_names))
    problems = [
        ImageIssue(f"class {train.class_names[i]}", "without training images") for i in np.flatnonzero(members == 0)
    ]
    for i in np.flatnonzero(members == 1):
        path = train.paths[int(np.flatnonzero(train.labels == i)[0])]
        problems.append(ImageIssue(path, "the only training image", f"of class {train.class_names[i]}"))
    return {split: _of_classes(files, members > 0) for split, files in splits.items()}, problems


def _of_classes(files: ImageFiles, used: NDArray[np.bool_]) -> ImageFiles:
    """The files of the classes that are used, which are numbered anew."""
    names = tuple(name for name, keep in zip(files.class_names, used.tolist(), strict=True) if keep)
    files = files.take(np.flatnonzero(used[files.labels]))
    return ImageFiles(files.paths, (np.cumsum(used, dtype=np.int32) - 1)[files.labels].astype(np.int32), names)


def _fingerprint(files: ImageFiles, verdicts: Mapping[str, FileCheck]) -> str:
    """SHA-256, in hex, of the class names, the labels and the content of the files; paths and times do not count."""
    digest = hashlib.sha256(repr(files.class_names).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(files.labels, "<i4").data)
    digest.update("".join(verdicts[path].digest for path in files.paths).encode())
    return digest.hexdigest()


def _complaint(problems: list[ImageIssue], total: int) -> str:
    shown = "; ".join(map(str, problems[:_SHOWN])) + ("; …" if len(problems) > _SHOWN else "")
    return (
        f"{len(problems)} problems among {total} images: {shown}; mend or remove them, or give --on-bad-image skip to "
        "go on without"
    )


OnBad = Literal["stop", "skip"]

_SHOWN_own_images = 10


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Files that can be decoded, by split ("train", and "validation" and "test" where there are such).

    `source` says in words where they are from; `fingerprint` is one of the content of what is trained and validated on.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    files: dict[str, ImageFiles]
    fingerprint: str


def open_image_dataset(name: str, on_bad: OnBad, log: Callable[[str], None]) -> ImageDataset:
    """Find the images to train on and decode each once.

    Args:
        name: "folder:PATH" or "list:TRAIN[,VALID[,TEST]]".
        on_bad: "stop" raises where anything is wrong with them, "skip" leaves out what is.
        say: told how many there are, and what was left out.

    Raises:
        UserError: there are none, they cannot be used, or `on_bad` is "stop" and something is wrong with one.
    """
    checked = _scan(find_images(name), on_bad)
    _report(checked, log)
    parts = [checked.fingerprints[split] for split in ("train", "validation") if split in checked.fingerprints]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    return ImageDataset(name, "own images", checked.kept["train"].class_names, checked.kept, digest)


def images_to_test(name: str, named: bool, on_bad: OnBad, class_names: Sequence[str] | None) -> ImageFiles:
    """Find the images that a model is to be evaluated on, and decode each once.

    Those are the test images; where a user names images without splits, they are all of them.

    Args:
        name: "folder:PATH" or "list:…".
        named: whether the user named them for this evaluation, and not for the training.
        on_bad: as in `open_image_dataset`.
        class_names: the model's classes, or None where nobody has written them down.

    Raises:
        UserError: as in `open_image_dataset`, or there are no test images.
    """
    splits = _as_trained(name, class_names) if on_bad == "skip" and not named else find_images(name, class_names)
    split = "train" if named and set(splits) == {"train"} else "test"
    if split not in splits:
        raise UserError(
            f"{name} has no test images; name images that the model was not trained on with --dataset "
            "folder:PATH or --dataset list:FILE"
        )
    checked = _scan({"test": splits[split]}, on_bad)
    if not len(checked.kept["test"]):
        raise UserError(f"none of the {len(splits[split])} images of {name} can be used; mend them")
    return checked.kept["test"]


def _as_trained(name: str, class_names: Sequence[str] | None) -> dict[str, ImageFiles]:
    """The images that a model was trained on, without the classes that were left out for want of training images.

    Raises:
        UserError: as in `open_image_dataset`, or the classes are no longer the model's.
    """
    splits = find_images(name)
    if class_names is None or splits["train"].class_names == tuple(class_names):
        return splits
    kept = _scan(splits, "skip").kept
    if kept["train"].class_names != tuple(class_names):
        raise UserError(
            f"the images of {name} are of {len(kept['train'].class_names)} classes by now, those that the model was "
            f"trained on of {len(class_names)}, or of others; name images of its classes with --dataset"
        )
    return kept


def _scan(splits: dict[str, ImageFiles], on_bad: OnBad) -> CheckResult:
    """Decode each file once, and remember for the next time what came of it."""
    return scan(splits, on_bad=on_bad, cache=cache_folder() / "verdicts.json")


def _report(checked: CheckResult, log: Callable[[str], None]) -> None:
    counts = ", ".join(f"{len(files)} for {split}" for split, files in checked.kept.items())
    log(f"own images: {counts}; {len(checked.kept['train'].class_names)} classes")
    if not checked.problems:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in checked.counts().items())
    log(f"left out or doubtful, by --on-bad-image skip: {len(checked.problems)} ({kinds})")
    for problem in checked.problems[:_SHOWN_own_images]:
        log(f"  {problem}")
    if len(checked.problems) > _SHOWN_own_images:
        log(f"  … and {len(checked.problems) - _SHOWN_own_images} more")
