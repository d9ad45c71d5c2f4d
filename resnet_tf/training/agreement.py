"""When the workers of a run look up from their steps, and what they then do: the same, at the same step."""

import time

from resnet_tf.training.contracts import Peers

BLOCK = 25  # iterations between two looks at the results, so that the device need not wait for the host
_PERIOD = 1.0  # seconds that several workers aim at between two looks: a signal takes effect then


class Agreement:
    """Makes one decision of what each worker's clock and signals say.

    Clocks differ, and a signal reaches the workers at different moments; but a worker that stops or saves alone is
    missed in the next step. So they compare notes, where no one has to wait for it: at steps that all know to be a
    look, every so many steps as the chief says.

    Attributes:
        alone: whether there is only one worker.
    """

    def __init__(self, peers: Peers) -> None:
        """Take the workers of a run."""
        self._peers = peers
        self.alone = peers.workers == 1
        self._block = BLOCK if self.alone else 1
        self._began = time.monotonic()

    def due(self, steps: int, certain: bool, own: bool) -> bool:
        """Whether to look up `steps` updates after the last look.

        Args:
            steps: updates since then.
            certain: whether something is to be done that all workers know of.
            own: whether there is something that this worker alone knows of.
        """
        return certain or steps >= self._block or (own and self.alone)

    def reach(self, steps: int, signal: int | None, save: bool) -> tuple[int | None, bool]:
        """The signal that stops all workers, if one has come to any, and whether all save: as the chief's clock says.

        Args:
            steps: updates since the last look.
            signal: that has come to this worker.
            save: whether a checkpoint is due here.
        """
        if self.alone:
            return signal, save
        took = (time.monotonic() - self._began) / max(1, steps)
        block = max(1, min(BLOCK, int(_PERIOD / max(took, 1e-9))))
        notes = self._peers.gather([float(signal or 0), float(save), float(block)])
        self._block = int(notes[0, 2])
        return int(notes[:, 0].max()) or None, bool(notes[0, 1])

    def go_on(self) -> None:
        """Note that the next step begins."""
        self._began = time.monotonic()
