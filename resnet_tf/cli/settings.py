"""The settings of a run: what the same command must ask for again to go on with it. Imports no TensorFlow."""

from typing import Any

from resnet_tf.errors import UserError
from resnet_tf.training.run_folder import RunFolder, difference

# Settings that came later, with what runs had before: where a setting has that value, it is not written down.
LATER: dict[str, Any] = {
    "augment": None,
    "augment_sha256": None,
    "input_size": None,
    "on_bad_image": "stop",
    "weights": None,
    "freeze": "none",
    "unfreeze_at": None,
    "unfreeze_learning_rate": None,
    "train_bn": False,
    "sync_bn": False,
    "recipe.optimizer": "sgd",
    "recipe.clip_norm": None,
    "recipe.label_smoothing": 0.0,
    "recipe.class_weights": "none",
    "recipe.early_stopping": 0,
    "recipe.accumulate": 1,
    "recipe.ema": None,
}

Settings = dict[str, Any]
Channels = tuple[float, ...]

_OR_ANEW = "or --overwrite to start anew"


def check_flags(folder: RunFolder, known: Settings, asked: Settings) -> None:
    """Find out whether flags are those of the run in a folder.

    Args:
        folder: of the run.
        known: the run's settings.
        asked: those that the flags decide.

    Raises:
        UserError: some differ.
    """
    known, asked = LATER | known, LATER | asked
    differs = difference({key: known.get(key) for key in asked}, asked)
    if differs:
        raise UserError(
            f"run folder {folder.path} belongs to a run of other settings: {differs}; "
            f"give another --run-dir, {_OR_ANEW}"
        )


def check_files(folder: RunFolder, known: Settings, here: Settings) -> None:
    """Find out whether the files that a run was started on are what they were.

    Args:
        folder: of the run.
        known: the run's settings.
        here: those of the same flags and of what the files hold now.

    Raises:
        UserError: the weights or the data are others.
    """
    if known.get("weights.sha256") != here.get("weights.sha256"):
        raise UserError(
            f"run folder {folder.path} was started from other weights than {here.get('weights')} holds now; "
            f"give another --run-dir, {_OR_ANEW}"
        )
    if known["data.fingerprint"] != here["data.fingerprint"]:
        raise UserError(
            f"run folder {folder.path} was started on other data ({known['data.source']}, here "
            f"{here['data.source']}); give that --data-dir, another --run-dir, {_OR_ANEW}"
        )


def kept_statistics(known: Settings) -> tuple[Channels, Channels] | None:
    """Mean and standard deviation that a run's images are normalised with; None where it did not write them down.

    To take them again is a pass over all images.
    """
    if "data.mean" not in known or "data.std" not in known:
        return None
    return tuple(known["data.mean"]), tuple(known["data.std"])
