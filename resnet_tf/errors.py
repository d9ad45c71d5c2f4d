"""The one exception that a command turns into a single line on stderr."""


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    The message says in one line what was wrong, what is allowed and what to do.
    Commands print it and exit with code 2; library callers can catch it.
    """
