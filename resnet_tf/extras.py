"""Optional packages: imported when they are needed, and named by their extra when they are missing."""

import importlib
from typing import Any

from resnet_tf.errors import UserError


def need(module: str, extra: str) -> Any:
    """Import an optional module.

    Args:
        module: dotted name, such as "matplotlib.figure".
        extra: the extra of this package that brings it.

    Returns:
        The module.

    Raises:
        UserError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{package} cannot be imported ({error}); install it with: pip install 'resnet_tf[{extra}]'"
        ) from error
