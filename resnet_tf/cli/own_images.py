"""A user's own image files, found, checked, and told apart from those of another time."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_tf.data.image_files import ImageFiles
from resnet_tf.data.own_images import find_own
from resnet_tf.data.scan import Scan, scan
from resnet_tf.errors import UserError
from resnet_tf.transfer.published import cache_folder

OnBad = Literal["stop", "skip"]

_SHOWN = 10


@dataclass(frozen=True, eq=False)
class OwnImages:
    """Files that can be decoded, by split ("train", and "validation" and "test" where there are such).

    `source` says in words where they are from; `fingerprint` is one of the content of what is trained and validated on.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    files: dict[str, ImageFiles]
    fingerprint: str


def open_own(name: str, on_bad: OnBad, say: Callable[[str], None]) -> OwnImages:
    """Find the images to train on and decode each once.

    Args:
        name: "folder:PATH" or "list:TRAIN[,VALID[,TEST]]".
        on_bad: "stop" raises where anything is wrong with them, "skip" leaves out what is.
        say: told how many there are, and what was left out.

    Raises:
        UserError: there are none, they cannot be used, or `on_bad` is "stop" and something is wrong with one.
    """
    checked = _scan(find_own(name), on_bad)
    _report(checked, say)
    parts = [checked.fingerprints[split] for split in ("train", "validation") if split in checked.fingerprints]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    return OwnImages(name, "own images", checked.kept["train"].class_names, checked.kept, digest)


def images_to_test(name: str, named: bool, on_bad: OnBad, class_names: Sequence[str] | None) -> ImageFiles:
    """Find the images that a model is to be evaluated on, and decode each once.

    Those are the test images; where a user names images without splits, they are all of them.

    Args:
        name: "folder:PATH" or "list:…".
        named: whether the user named them for this evaluation, and not for the training.
        on_bad: as in `open_own`.
        class_names: the model's classes, or None where nobody has written them down.

    Raises:
        UserError: as in `open_own`, or there are no test images.
    """
    splits = _as_trained(name, class_names) if on_bad == "skip" and not named else find_own(name, class_names)
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
        UserError: as in `open_own`, or the classes are no longer the model's.
    """
    splits = find_own(name)
    if class_names is None or splits["train"].class_names == tuple(class_names):
        return splits
    kept = _scan(splits, "skip").kept
    if kept["train"].class_names != tuple(class_names):
        raise UserError(
            f"the images of {name} are of {len(kept['train'].class_names)} classes by now, those that the model was "
            f"trained on of {len(class_names)}, or of others; name images of its classes with --dataset"
        )
    return kept


def _scan(splits: dict[str, ImageFiles], on_bad: OnBad) -> Scan:
    """Decode each file once, and remember for the next time what came of it."""
    return scan(splits, on_bad=on_bad, cache=cache_folder() / "verdicts.json")


def _report(checked: Scan, say: Callable[[str], None]) -> None:
    counts = ", ".join(f"{len(files)} for {split}" for split, files in checked.kept.items())
    say(f"own images: {counts}; {len(checked.kept['train'].class_names)} classes")
    if not checked.problems:
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in checked.counts().items())
    say(f"left out or doubtful, by --on-bad-image skip: {len(checked.problems)} ({kinds})")
    for problem in checked.problems[:_SHOWN]:
        say(f"  {problem}")
    if len(checked.problems) > _SHOWN:
        say(f"  … and {len(checked.problems) - _SHOWN} more")
