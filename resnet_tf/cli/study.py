"""A search over settings that survives being killed: Optuna's study in a SQLite file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_tf.errors import optional_import

Report = Callable[[float, int], bool]
Objective = Callable[[int, dict[str, Any], Report], float | None]


@dataclass(frozen=True)
class SearchSpace:
    """Where a search looks.

    Attributes:
        learning_rate: lowest and highest, drawn evenly on a logarithmic scale.
        weight_decay: lowest and highest, likewise.
        batch_size: values to choose from.
        width: values to choose from.
    """

    learning_rate: tuple[float, float] = (0.01, 1.0)
    weight_decay: tuple[float, float] = (1e-5, 1e-3)
    batch_size: Sequence[int] = (64, 128, 256)
    width: Sequence[int] = (1,)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Settings of a trial; rates have six digits, so that a printed one is the one that was used."""
        return {
            "learning_rate": _rounded(trial.suggest_float("learning_rate", *self.learning_rate, log=True)),
            "weight_decay": _rounded(trial.suggest_float("weight_decay", *self.weight_decay, log=True)),
            "batch_size": trial.suggest_categorical("batch_size", list(self.batch_size)),
            "width": trial.suggest_categorical("width", list(self.width)),
        }


def open_study(path: Path, seed: int) -> Any:
    """Open the study in a SQLite file, or start it; trials that a killed process left behind are queued again.

    Args:
        path: the file.
        seed: of the search.

    Returns:
        `optuna.Study` that maximizes, with median pruning.

    Raises:
        UserError: optuna is not installed.
    """
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
    """Run trials until `trials` of them are finished, those of earlier processes included.

    Args:
        study: from `open_study`.
        space: where to look.
        trials: number of finished trials to come to.
        objective: gets the trial's number, its settings and a function (accuracy, epoch) -> whether to give up;
            returns the accuracy, or None where it gave up. An exception leaves the trial to the next process.
    """
    states = optional_import("optuna", "tune").trial.TrialState
    while len(finished(study)) < trials:
        trial = study.ask()

        def report(value: float, epoch: int, trial: Any = trial) -> bool:
            trial.report(value, epoch)
            return bool(trial.should_prune())

        value = objective(trial.number, space.suggest(trial), report)
        if value is None:
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, value)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
