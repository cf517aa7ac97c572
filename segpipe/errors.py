"""The one exception type whose message is written for the user, and how any exception is told in a line."""

import difflib
import re

LONGEST = 300


class InputError(Exception):
    """Something the user gave is wrong. The message is one line: what is wrong, where, and how to mend it."""


def redact(text: str) -> str:
    """A text whose URIs hold no user and password any more."""
    return re.sub(r"://\S+@", "://***@", re.sub(r"([?&]\w*password=)[^&\s]+", r"\1***", text))


def one_line(error: BaseException) -> str:
    """An exception as one short line, without a traceback or a password."""
    text = redact(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def nearest(name: str, known: list[str]) -> str:
    """` (nearest: X)` for a misspelt name, or nothing where none is near."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (nearest: {match[0]})" if match else ""
