"""What a decoder says of image files, and a cache of it."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resnet_tf.files import write_text
from resnet_tf.images import UnreadableImageError, decode_image, read_bytes
from resnet_tf.opencv import cv2

_VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """Why a file cannot be used (None where it can), and a digest of its content ("" where it could not be read)."""

    fault: str | None
    digest: str


def judge(path: str) -> Verdict:
    """Read and decode a file."""
    digest = ""
    try:
        data = read_bytes(path)
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        # A large JPEG at an eighth of its size: every byte is still read, and the memory is not taken.
        decode_image(data, least=1)
    except UnreadableImageError as error:
        return Verdict(str(error), digest)
    return Verdict(None, digest)


class VerdictCache:
    """Verdicts by path, size and time of change, in a JSON file that may be missing or damaged."""

    def __init__(self, path: Path | None) -> None:
        """Read the cache at `path`; None remembers nothing."""
        self._path = path
        self._known: dict[str, tuple[list[int], Verdict]] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            self._known = _load(path) if path else {}

    def get(self, path: str) -> Verdict | None:
        """The verdict on a file that has not changed since, or None."""
        known = self._known.get(os.path.abspath(path))
        return known[1] if known and known[0] == _stamp(path) else None

    def save(self, verdicts: Mapping[str, Verdict]) -> None:
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


def _load(path: Path) -> dict[str, tuple[list[int], Verdict]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if {key: content[key] for key in _header()} != _header():
        return {}
    known = {}
    for name, (size, changed, digest, fault) in content["files"].items():
        if not isinstance(digest, str) or not isinstance(fault, str | None):
            raise TypeError("a verdict is not made of texts")
        known[name] = ([size, changed], Verdict(fault, digest))
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
