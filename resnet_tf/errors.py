"""The one exception that a command turns into a single line on stderr, and what such lines are made with."""

from collections.abc import Sequence


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    The message says in one line what was wrong, what is allowed and what to do.
    Commands print it and exit with code 2; library callers can catch it.
    """


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
