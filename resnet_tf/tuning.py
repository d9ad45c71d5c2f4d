"""`tune()`: search for learning rate, weight decay, batch size and width by validation accuracy."""

import dataclasses
import gc
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from resnet_tf.config import make_config
from resnet_tf.data.cifar import load_dataset
from resnet_tf.data.dataset import is_image_dataset, short_name
from resnet_tf.data.prepare import DataArguments, fingerprint_of, open_data
from resnet_tf.errors import UserError, optional_import
from resnet_tf.fitting import train
from resnet_tf.recipes import Recipe
from resnet_tf.reports.runs import describe_diff
from resnet_tf.training.callbacks import StopTraining
from resnet_tf.training.run_dir import RunDir
from resnet_tf.training.trainer import Diverged

_SETTINGS = ("model", "dataset", "recipe", "epochs", "seed", "shortcut")


# Of the validation accuracy and the evaluation's number: whether to give up.
Prune = Callable[[float, int], bool]
Objective = Callable[[int, dict[str, Any], Prune], float | None]


@dataclasses.dataclass(frozen=True)
class TuningResult:
    """What a search found: settings of the best trial, its number and validation accuracy, and how many trials ran."""

    best: dict[str, Any]
    number: int
    accuracy: float
    trials: int
    pruned: int


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Where a search looks: ranges are drawn evenly on a logarithmic scale, the others are values to choose from."""

    learning_rate: tuple[float, float] = (0.01, 1.0)
    weight_decay: tuple[float, float] = (1e-5, 1e-3)
    batch_size: Sequence[int] = (64, 128, 256)
    width: Sequence[int] = (1,)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Settings of a trial; numbers have six digits, so that a printed one is the one that was used."""
        return {
            "learning_rate": _rounded(trial.suggest_float("learning_rate", *self.learning_rate, log=True)),
            "weight_decay": _rounded(trial.suggest_float("weight_decay", *self.weight_decay, log=True)),
            "batch_size": trial.suggest_categorical("batch_size", list(self.batch_size)),
            "width": trial.suggest_categorical("width", list(self.width)),
        }

    def first(self) -> dict[str, Any]:
        """Some settings of the space, to check other arguments with."""
        return {
            "learning_rate": self.learning_rate[0],
            "weight_decay": self.weight_decay[0],
            "batch_size": min(self.batch_size),
            "width": min(self.width),
        }


def tune(
    model: str = "resnet20_v2",
    data: Any = "cifar10",
    *,
    trials: int,
    study_dir: str | os.PathLike[str] | None = None,
    learning_rate: tuple[float, float] = (0.01, 1.0),
    weight_decay: tuple[float, float] = (1e-5, 1e-3),
    batch_size: Sequence[int] = (64, 128, 256),
    width: Sequence[int] = (1,),
    recipe: str | Recipe = "quick",
    data_dir: str | os.PathLike[str] | None = None,
    verbose: bool = True,
    log: Callable[[str], None] | None = None,
    **options: Any,
) -> TuningResult:
    """Search for good settings by validation accuracy; the test set is not read.

    Args:
        model: name of a network.
        data: what `train` takes, but a tf.data.Dataset: a part of it is held out to search by.
        trials: finished trials to come to, those of earlier calls in the same directory included.
        study_dir: directory of the search, which goes on where it was stopped; default runs/tune-<model>-<dataset>.
        learning_rate: lowest and highest.
        weight_decay: lowest and highest.
        batch_size: values to choose from.
        width: values to choose from.
        recipe: name of a recipe, or a `Recipe`: all that is not searched for.
        data_dir: folder or archive with CIFAR.
        verbose: print the progress of each training.
        log: called with lines on the trials.
        **options: further arguments of `train` for every trial (epochs=5, seed=0, shortcut, device, precision, …).

    Returns:
        The settings of the best trial and its validation accuracy.

    Raises:
        UserError: optuna is missing, an argument is not as it must be, or the directory belongs to another search.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    log = log or (lambda line: None)
    space = _checked(SearchSpace(learning_rate, weight_decay, batch_size, width), trials)
    optional_import("optuna", "tune")
    if not isinstance(model, str):
        raise UserError(f"model is {type(model).__name__}; expected a name of list_models()", argument="model")
    if isinstance(data, tf.data.Dataset):
        raise UserError("a tf.data.Dataset has no part to hold out and search by; give arrays", argument="data")
    named = isinstance(data, str | Path)
    name = str(data) if named else getattr(data, "name", "arrays")
    shared = {"model": model, "recipe": recipe, **{key: value for key, value in options.items() if value is not None}}
    config = make_config(**shared, **space.first(), dataset=name, data_dir=data_dir, data_given=not named)
    if config.recipe.validation_size == 0:
        raise UserError(f"recipe={config.recipe.name!r} keeps no validation images to search by; give another one")
    shared["verbose"] = verbose
    raw: Any = name if named else open_data(DataArguments(data), config, log)
    run_dir = RunDir(Path(study_dir or f"runs/tune-{model}-{short_name(name)}"), "study_dir")
    known_by = recipe if isinstance(recipe, str) else recipe.as_dict()
    given = {"model": model, "dataset": name, "recipe": known_by, **options, "seed": config.seed}
    settings = {key: given.get(key) for key in _SETTINGS}
    settings |= {f"space.{key}": value for key, value in vars(space).items()}
    settings |= {} if named else {"data.fingerprint": fingerprint_of(raw)}
    settings = json.loads(json.dumps(settings))  # as it is read again
    known = run_dir.settings()
    if known is not None and known != settings:
        raise UserError(f"{run_dir.path} belongs to another search: {describe_diff(known, settings)}; {run_dir.advice}")
    if named and not is_image_dataset(name):  # once for all trials; image files each finds in the cache of their checks
        raw = load_dataset(name, data_dir)
    run_dir.lock()
    try:
        if known is None:
            run_dir.create(settings)
        study = open_study(run_dir.path / "study.db", config.seed)
        if before := len(finished(study)):
            log(f"going on after {before} finished trials")

        def objective(number: int, chosen: dict[str, Any], prune: Prune) -> float | None:
            log(f"trial {number}: {_words(chosen)}")
            accuracy = _run_trial({**shared, **chosen}, raw, run_dir.path / f"trial{number:04d}", prune)
            log(f"trial {number}: " + ("pruned" if accuracy is None else f"validation accuracy {100 * accuracy:.2f} %"))
            return accuracy

        run_study(study, space, trials, objective)
    finally:
        run_dir.release()
    done = finished(study)
    complete = [trial for trial in done if trial.state.name == "COMPLETE"]
    best = max(complete, key=lambda trial: trial.value)
    found = {key: _rounded(value) if isinstance(value, float) else value for key, value in best.params.items()}
    return TuningResult(found, best.number, best.value, len(done), len(done) - len(complete))


def _words(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in chosen.items())


def _run_trial(options: dict[str, Any], data: Any, folder: Path, prune: Prune) -> float | None:
    """Validation accuracy at the end, 0 where the training diverged, None where it was pruned."""
    pruned = False

    def callback(history: list[dict[str, Any]]) -> None:
        nonlocal pruned
        if prune(history[-1]["validation_accuracy"], len(history)):
            pruned = True
            raise StopTraining

    keras.utils.clear_session()
    gc.collect()
    try:
        result = train(data=data, run_dir=folder, test=False, callbacks=[callback], command="resnet-tf tune", **options)
    except Diverged:
        return 0.0
    finally:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return None if pruned else float(result.history[-1]["validation_accuracy"])


def _checked(space: SearchSpace, trials: int) -> SearchSpace:
    for name in ("learning_rate", "weight_decay"):
        low, high = getattr(space, name)
        if not 0 < low < high:
            raise UserError(f"{name}={low:g},{high:g} is no range; give two numbers, 0 < low < high", argument=name)
    if trials < 1:
        raise UserError(f"trials={trials} is out of range; give 1 or more", argument="trials")
    return space


def open_study(path: Path, seed: int) -> Any:
    """Open or start the study in a SQLite file; trials that a killed process left behind are queued again."""
    optuna = optional_import("optuna", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="tune",
        storage=f"sqlite:///{path.absolute().as_posix()}",
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
    )
    # The sampler starts anew with the process: with the same seed it would draw the first trials once more.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def finished(study: Any) -> list[Any]:
    """The trials that ran to their end or were pruned."""
    states = optional_import("optuna", "tune").trial.TrialState
    return study.get_trials(states=[states.COMPLETE, states.PRUNED])


def run_study(study: Any, space: SearchSpace, trials: int, objective: Objective) -> None:
    """Run trials until `trials` of them are finished; one whose objective raises is left to the next process."""
    states = optional_import("optuna", "tune").trial.TrialState
    while len(finished(study)) < trials:
        trial = study.ask()

        def prune(accuracy: float, epoch: int, trial: Any = trial) -> bool:
            trial.report(accuracy, epoch)
            return bool(trial.should_prune())

        accuracy = objective(trial.number, space.suggest(trial), prune)
        if accuracy is None:
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, accuracy)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
