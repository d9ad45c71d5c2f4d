"""What of a run folder is kept beside the code: its records, or all that it takes to go on with it elsewhere."""

import shutil
from pathlib import Path

from resnet_tf.cli.records import UNFINISHED, folder_name, read_run, train_command
from resnet_tf.errors import UserError
from resnet_tf.files import replacing, write_text
from resnet_tf.reports.curves import draw_curves
from resnet_tf.reports.plots import can_draw, save
from resnet_tf.training.logs import read_history
from resnet_tf.training.run_dir import REPORT, SETTINGS, RunDir

RECORDS = (SETTINGS, "metrics.csv", REPORT, "curves.png")
# The checkpoint first: what a run that goes on adds to the others meanwhile is cut off again.
TO_GO_ON = (SETTINGS, "iterations.bin", "metrics.jsonl", "metrics.csv", "best.keras", "best.json")


def collect(run: Path, place: Path, name: str | None = None) -> Path:
    """Copy what is kept of a run to a folder below `place`, with the command that makes it.

    Of a finished run: settings, metrics, report and curves; its folder among the unfinished ones goes. Of an
    unfinished one: its newest checkpoint and what belongs to it, into `place`/unfinished.

    Args:
        run: folder that `train` wrote.
        place: such as `results`.
        name: of the folder; None composes one.

    Returns:
        The folder.

    Raises:
        UserError: `run` is none, has nothing to keep yet, or is of settings that no flags ask for, `name` is no
            name, or the folder holds another run.
    """
    found = read_run(run)
    if found is None:
        raise UserError(f"{run} holds no run; name the folder that train wrote (--run-dir)")
    settings, report = found
    command = train_command(settings)
    if name is not None and (name == ".." or name != Path(name).name):
        raise UserError(f"--name {name} is no name of a folder; say where it is to be with --results")
    name = name or folder_name(settings)
    finished = report is not None
    target = place / name if finished else place / UNFINISHED / name
    if target.exists() and RunDir(target).settings() != settings:
        raise UserError(f"{target} holds a run of other settings; give another --name")
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not finished:
            _copy_checkpoint(run, target)
        for file in RECORDS if finished else TO_GO_ON:
            if (run / file).exists():
                _copy(run / file, target / file)
        if finished and not (target / "curves.png").exists() and can_draw():
            save(draw_curves(read_history(run)), target / "curves.png")
        write_text(target / "command.txt", f"{command if finished else f'{command} --run-dir runs/{name}'}\n")
        if finished and (place / UNFINISHED / name).is_dir():
            shutil.rmtree(place / UNFINISHED / name)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}); make room and try again") from error
    return target


def _copy_checkpoint(run: Path, target: Path) -> None:
    found = sorted((run / "checkpoints").glob("step-*.sha256"))
    if not found:
        raise UserError(f"{run} has no checkpoint yet; wait for the first one")
    newest = found[-1]
    (target / "checkpoints").mkdir(exist_ok=True)
    for path in (newest.with_suffix(".npz"), newest):
        _copy(path, target / "checkpoints" / path.name)
    for old in (target / "checkpoints").glob("step-*"):
        if old.stem != newest.stem:
            old.unlink()


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def restore_run(place: Path, run: Path) -> None:
    """Make a run folder of an unfinished run that is kept in `place`.

    Raises:
        UserError: the disk refuses.
    """
    try:
        shutil.copytree(place, run)
    except OSError as error:
        raise UserError(f"{run} cannot be written ({error}); make room, or give another --runs") from error
