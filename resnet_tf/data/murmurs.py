"""What image decoders print on stderr, kept off the terminal and at hand."""

import os
import re
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO

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
