"""Check every image file once before training: unreadable files, copies, and classes without images."""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from resnet_tf.data.image_folder import ImageFiles
from resnet_tf.data.image_io import UnreadableImageError, cv2, decode_image, read_bytes
from resnet_tf.data.image_list import find_images
from resnet_tf.errors import UserError, some
from resnet_tf.files import write_text
from resnet_tf.pretrained.zoo import cache_folder
from resnet_tf.process import only_python_on_stderr

# Another decoder, or another version of these checks, may find otherwise.
_CACHE_HEADER = {"version": 3, "opencv": cv2.__version__, "heif": find_spec("pillow_heif") is not None}
_SHOWN = 10
# Of copies in several splits, the first of these keeps the image: what measures a network must not change.
_PRECEDENCE = ("test", "validation", "train")


@dataclass(frozen=True)
class FileCheck:
    """Why a file cannot be used (None where it can), and a digest of its content ("" where it could not be read)."""

    error: str | None
    digest: str


def check_image(path: str) -> FileCheck:
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
    """Checks by path, size and time of change, in a JSON file (None: nowhere) that may be missing or damaged."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Any] = {}  # size, time, digest and error
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8")) if path else {}
            if {**content, "files": None} == {**_CACHE_HEADER, "files": None}:
                self._known = dict(content["files"])

    def get(self, path: str) -> FileCheck | None:
        match self._known.get(os.path.abspath(path)):
            case [size, changed, str(digest), str() | None as error] if [size, changed] == _size_and_time(path):
                return FileCheck(error, digest)
        return None

    def save(self, checks: Mapping[str, FileCheck]) -> None:
        """Add checks by path and replace the file; a disk that refuses costs only time the next run."""
        if self._path is None:
            return
        for path, check in checks.items():
            stamp = _size_and_time(path)
            # A permission that is granted later leaves size and time as they are.
            if stamp is not None and check.digest:
                self._known[os.path.abspath(path)] = [*stamp, check.digest, check.error]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps({**_CACHE_HEADER, "files": self._known}, separators=(",", ":")))


def _size_and_time(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class ImageIssue:
    """A file, or a class ("class NAME"), and what is wrong with it: the kind and, for some kinds, a detail."""

    where: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        text = f"{self.where} ({self.kind}{' ' if self.detail else ''}{self.detail})"
        return text if text.isprintable() else ascii(text)[1:-1]


@dataclass(frozen=True)
class CheckResult:
    """The files that can be used, by split, what is wrong with the others, and a digest of each split's content."""

    kept: dict[str, ImageFiles]
    issues: tuple[ImageIssue, ...]
    fingerprints: dict[str, str]

    def counts(self) -> dict[str, int]:
        return dict(Counter(issue.kind for issue in self.issues))


def check_images(
    splits: Mapping[str, ImageFiles],
    *,
    on_bad: str = "stop",
    cache: Path | None = None,
    threads: int | None = None,
) -> CheckResult:
    """Decode every file once, in threads and behind a progress bar, and sort out what cannot be trained on.

    Where there are any issues, `on_bad` "stop" raises UserError; "skip" leaves out what cannot be decoded, all but one
    of each set of copies (see `_PRECEDENCE`) and classes without training images.
    """
    checks = _check_files({path for files in splits.values() for path in files.paths}, CheckCache(cache), threads)
    issues: list[ImageIssue] = []
    kept = _drop_copies(_drop_unreadable(splits, checks, issues), checks, issues)
    if "train" in kept:
        kept = _drop_empty_classes(kept, issues)
    if issues and on_bad == "stop":
        shown = "; ".join(map(str, issues[:_SHOWN])) + ("; …" if len(issues) > _SHOWN else "")
        raise UserError(
            f"{len(issues)} problems among {sum(map(len, splits.values()))} images: {shown}; fix or remove the files, "
            "or pass on_bad_image='skip'"
        )
    if "train" in kept and len(kept["train"].class_names) < 2:
        raise UserError(
            f"{len(kept['train'])} of {len(splits['train'])} training images can be used, of "
            f"{len(kept['train'].class_names)} classes; training needs two classes"
            + (f": {issues[0]}" if issues else "")
        )
    return CheckResult(kept, tuple(issues), {split: _fingerprint(files, checks) for split, files in kept.items()})


def _check_files(paths: set[str], cache: CheckCache, threads: int | None, chunk: int = 1024) -> dict[str, FileCheck]:
    known = {path: check for path in paths if (check := cache.get(path)) is not None}
    unknown = sorted(paths - known.keys())
    checks: dict[str, FileCheck] = {}

    def check_several(paths: Sequence[str]) -> int:
        for path in paths:
            checks[path] = check_image(path)  # in place: what an interrupted check has found is kept
        return len(paths)

    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="check")
    try:
        # libpng and libjpeg tell stderr what they bear with. No bar where it is not a terminal.
        with (
            only_python_on_stderr(),
            tqdm(total=len(unknown), desc="checking", unit=" images", disable=None if unknown else True) as bar,
        ):
            for start in range(0, len(unknown), chunk):  # a million futures would take memory
                some = unknown[start : start + chunk]
                # Several at a time: threads that wait for the interpreter after each small file take a third more.
                parts = [some[at : at + 16] for at in range(0, len(some), 16)]
                for count in pool.map(check_several, parts):
                    bar.update(count)
    finally:
        pool.shutdown(cancel_futures=True)
        # What an interrupted check has found is found.
        if checks:
            cache.save(checks)
    return known | checks


def _drop_unreadable(
    splits: Mapping[str, ImageFiles], checks: Mapping[str, FileCheck], issues: list[ImageIssue]
) -> dict[str, ImageFiles]:
    for files in splits.values():
        for path in files.paths:
            if (error := checks[path].error) is not None:
                kind, _, detail = error.partition(": ")
                issues.append(ImageIssue(path, kind, detail))
    return {
        split: files.take([i for i, path in enumerate(files.paths) if checks[path].error is None])
        for split, files in splits.items()
    }


def _drop_copies(
    splits: dict[str, ImageFiles], checks: Mapping[str, FileCheck], issues: list[ImageIssue]
) -> dict[str, ImageFiles]:
    originals: dict[str, tuple[str, str]] = {}
    indices: dict[str, list[int]] = {split: [] for split in splits}
    for split in sorted(splits, key=_PRECEDENCE.index):
        files = splits[split]
        for i, (path, label) in enumerate(zip(files.paths, files.labels.tolist(), strict=True)):
            digest, name = checks[path].digest, files.class_names[label]
            if digest not in originals:
                originals[digest] = (path, name)
                indices[split].append(i)
                continue
            original, its_class = originals[digest]
            other = "" if its_class == name else f", which is of class {its_class}"
            issues.append(ImageIssue(path, "copy", f"of {original}{other}"))
    return {split: files.take(indices[split]) for split, files in splits.items()}


def _drop_empty_classes(splits: dict[str, ImageFiles], issues: list[ImageIssue]) -> dict[str, ImageFiles]:
    """Drop classes without training images from all splits, and number the others anew; classes of one image stay."""
    train = splits["train"]
    members = np.bincount(train.labels, minlength=len(train.class_names))
    for i in np.flatnonzero(members == 0):
        issues.append(ImageIssue(f"class {train.class_names[i]}", "without training images"))
    for i in np.flatnonzero(members == 1):
        path = train.paths[int(np.flatnonzero(train.labels == i)[0])]
        issues.append(ImageIssue(path, "the only training image", f"of class {train.class_names[i]}"))
    used = members > 0
    names = tuple(name for name, keep in zip(train.class_names, used.tolist(), strict=True) if keep)
    new_labels = (np.cumsum(used) - 1).astype(np.int32)
    kept = {split: files.take(np.flatnonzero(used[files.labels])) for split, files in splits.items()}
    return {split: ImageFiles(files.paths, new_labels[files.labels], names) for split, files in kept.items()}


def _fingerprint(files: ImageFiles, checks: Mapping[str, FileCheck]) -> str:
    """SHA-256, in hex, of the class names, the labels and the content of the files; paths and times do not count."""
    digest = hashlib.sha256(repr(files.class_names).encode("utf-8", "surrogateescape"))
    digest.update(np.ascontiguousarray(files.labels, "<i4").data)
    digest.update("".join(checks[path].digest for path in files.paths).encode())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Files that can be decoded, by split, and a digest of the content of what is trained and validated on."""

    name: str
    source: str  # in words
    class_names: tuple[str, ...]
    files: dict[str, ImageFiles]
    fingerprint: str


def open_image_dataset(name: str, on_bad: str, log: Callable[[str], None]) -> ImageDataset:
    """Find the images of "folder:PATH" or "list:…" and check them; `log` is told how many, and what was left out."""
    result = _check_with_cache(find_images(name), on_bad)
    classes = result.kept["train"].class_names
    log(
        f"own images: {', '.join(f'{len(files)} for {split}' for split, files in result.kept.items())}; "
        f"{len(classes)} classes ({some(classes, 20)})"
    )
    if result.issues:
        kinds = ", ".join(f"{count} {kind}" for kind, count in result.counts().items())
        log(f"left out or doubtful: {len(result.issues)} ({kinds})")
        for issue in result.issues[:_SHOWN]:
            log(f"  {issue}")
        if len(result.issues) > _SHOWN:
            log(f"  … and {len(result.issues) - _SHOWN} more")
    digests = [result.fingerprints[split] for split in ("train", "validation") if split in result.fingerprints]
    fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()
    return ImageDataset(name, "own images", classes, result.kept, fingerprint)


def images_to_test(name: str, named: bool, on_bad: str, class_names: Sequence[str] | None) -> ImageFiles:
    """Find and check the images to test a model of `class_names` on (None: not known).

    These are the test images; where the user `named` images for this evaluation that have no splits, all of them.
    """
    splits = _as_trained(name, class_names) if on_bad == "skip" and not named else find_images(name, class_names)
    split = "train" if named and set(splits) == {"train"} else "test"
    if split not in splits:
        raise UserError(f"{name} has no test images; name others with data='folder:PATH' or data='list:FILE'")
    kept = _check_with_cache({"test": splits[split]}, on_bad).kept["test"]
    if not len(kept):
        raise UserError(f"none of the {len(splits[split])} images of {name} can be used; fix them")
    return kept


def _as_trained(name: str, class_names: Sequence[str] | None) -> dict[str, ImageFiles]:
    """The images that a model was trained on, without the classes that were left out for want of training images."""
    splits = find_images(name)
    if class_names is None or splits["train"].class_names == tuple(class_names):
        return splits
    kept = _check_with_cache(splits, "skip").kept
    if kept["train"].class_names != tuple(class_names):
        raise UserError(
            f"{name} no longer has the {len(class_names)} classes of the model; name images of its classes with data=…"
        )
    return kept


def _check_with_cache(splits: dict[str, ImageFiles], on_bad: str) -> CheckResult:
    return check_images(splits, on_bad=on_bad, cache=cache_folder() / "verdicts.json")
