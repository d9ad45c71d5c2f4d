"""The error that a command prints as one line, and what such messages are made with."""

import importlib
from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    The message says in one line what was wrong, what is allowed and what to do.
    Commands print it and exit with code 2; library callers can catch it.
    """


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def optional_import(module: str, extra: str) -> Any:
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
