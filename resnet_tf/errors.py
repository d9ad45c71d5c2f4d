"""The error that a command prints as one line, and helpers for such messages."""

import difflib
import importlib
from collections.abc import Collection, Sequence
from typing import Any


def printable(text: str) -> str:
    """A text of somebody else's for the terminal: what would control it, and what is no text, as escapes."""
    return (
        text if text.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
    )


class UserError(ValueError):
    """An error the user can fix: bad argument, missing file, unsupported value.

    The message says in one line what was wrong, what is allowed and what to do. Commands print it and exit with
    code 2.

    Attributes:
        argument: name of the Python argument at fault, None where it is not one argument.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(printable(message))
        self.argument = argument


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def short(error: BaseException, most: int = 160) -> str:
    """What an error of somebody else's says, in one line; Keras prints configurations before the reason."""
    reason = str(error).rpartition("Exception encountered: ")[2]
    return " ".join(reason[:1000].split())[:most] or type(error).__name__


def counted(count: int, noun: str) -> str:
    """A number of things, in the singular where it is one."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """What to do about an unknown name, for a message: up to three that it abbreviates or resembles, or else all."""
    plain = name.lower().replace("-", "")
    longer = sorted((other for other in known if plain and other.startswith(plain)), key=len)
    abbreviated = [other for other in known if plain == "".join(word[:1] for word in other.split("_"))]
    close = longer or abbreviated or difflib.get_close_matches(plain, known)
    return f"did you mean {' or '.join(close[:3])}?" if close else f"allowed: {', '.join(known)}"


def optional_import(module: str, extra: str) -> Any:
    """Import an optional module; raises UserError that names the extra to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"{package} cannot be imported ({error}); install it with: pip install 'resnet_tf[{extra}]'"
        ) from error
