"""Figures without pyplot: no global state, no display, the same look everywhere."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_tf.errors import UserError
from resnet_tf.extras import need
from resnet_tf.files import replacing

WITHOUT_PLOTS = "pictures are left out: matplotlib is not installed; pip install 'resnet_tf[plots]'"

# Dark to light, so that the order survives a black-and-white print; lines differ in dashes and markers as well.
INK, SECOND, THIRD, PALE = "#10243e", "#c2410c", "#3b82b6", "#a8b3c2"

# Without dates and versions in it, an unchanged picture is an unchanged file.
_UNDATED = {".pdf": {"CreationDate": None}, ".png": {"Software": None}, ".svg": {"Date": None}}


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        need("matplotlib.figure", "plots")
    except UserError:
        return False
    return True


def figure(width: float, height: float) -> Any:
    """An empty figure of this size in inches.

    Raises:
        UserError: matplotlib is not installed.
    """
    made = need("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")
    need("matplotlib.backends.backend_agg", "plots").FigureCanvasAgg(made)
    return made


def literal(name: str) -> str:
    """A name as matplotlib writes it letter by letter: between two dollar signs it would read a formula."""
    return name.replace("$", r"\$")


def save(made: Any, path: Path, dpi: int = 110) -> None:
    """Replace a picture as a whole; the suffix gives the format.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as temporary:
        made.savefig(temporary, dpi=dpi, metadata=_UNDATED.get(path.suffix))


def pixels(made: Any, dpi: int = 80) -> NDArray[np.uint8]:
    """The figure as RGB pixels, uint8 (H, W, 3)."""
    made.set_dpi(dpi)
    made.canvas.draw()
    return np.asarray(made.canvas.buffer_rgba())[..., :3].copy()
