"""What the workers other than the chief keep of a run: nothing, and the chief's checkpoints."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import keras

from resnet_tf.errors import UserError
from resnet_tf.training.checkpoint import read_archive, write_archive
from resnet_tf.training.contracts import Peers
from resnet_tf.training.history import IterationLog
from resnet_tf.training.keeper import Arrays, Keeper, State
from resnet_tf.training.run_folder import RunFolder

_ERROR = "error"


class ChiefKeeper(Keeper):
    """The keeper of the worker that writes; hands what it loads to the others."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None], peers: Peers) -> None:
        """Keep a run in a claimed folder."""
        super().__init__(folder, say)
        self._peers = peers

    def read(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Read the newest whole checkpoint; all workers do so at the same moment.

        Raises:
            UserError: no checkpoint is whole.
        """
        try:
            found = super().read()
        except UserError as error:
            self._peers.from_chief(_packed({}, {_ERROR: str(error)}))
            raise
        self._peers.from_chief(b"" if found is None else _packed(*found))
        return found


class FollowerKeeper(Keeper):
    """The keeper of a worker that writes nothing."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None], peers: Peers) -> None:
        """Keep nothing; `folder` is a throwaway one."""
        super().__init__(folder, say)
        self._peers = peers

    def open_log(self, step: int) -> None:
        """Take up a log that is never written."""
        self.log = IterationLog(self._path / "iterations.bin", 0)

    def save(self, variables: Mapping[str, keras.Variable], state: State) -> None:
        """Note that the chief saves at this step."""
        self.saved_step = state.step

    def read(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Take what the chief has read.

        Raises:
            UserError: the chief found no checkpoint whole.
        """
        payload = self._peers.from_chief(b"")
        if not payload:
            return None
        arrays, state = read_archive(io.BytesIO(payload))
        if _ERROR in state:
            raise UserError(state[_ERROR])
        return arrays, state


def make_keeper(folder: RunFolder, say: Callable[[str], None], peers: Peers) -> Keeper:
    """The keeper of this worker."""
    if peers.workers == 1:
        return Keeper(folder, say)
    return (ChiefKeeper if peers.is_chief else FollowerKeeper)(folder, say, peers)


def _packed(arrays: Arrays, state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    write_archive(file, arrays, state)
    return file.getvalue()
