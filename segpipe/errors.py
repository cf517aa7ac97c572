"""The one exception type whose message is written for the user."""


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what is wrong, where, and how to mend it."""
