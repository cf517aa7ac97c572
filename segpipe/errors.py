"""The exceptions whose message is one line for the user, by who is to act, and how any exception is told in a line."""

import difflib
import re
from collections.abc import Sequence

LONGEST = 300


class SegpipeError(Exception):
    """What ends a command with one line: what is wrong, where, and how to mend it. `exit_code` is the command's."""

    exit_code = 1


class InputError(SegpipeError):
    """Something the user gave is wrong: a file, a knob, the name of a run or a model."""


class FaultsError(InputError):
    """Files that the user gave are wrong: `faults` has a line for each, the message their number and the first."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        number = f"{len(self.faults)} faults, the first: " if len(self.faults) > 1 else ""
        super().__init__(f"{number}{self.faults[0]}")


class UsageError(InputError):
    """The command line is wrong; nothing has run."""

    exit_code = 2


class StepError(SegpipeError):
    """Work has failed that was begun: a step, a process of it, a check of its result."""


class StoreError(SegpipeError):
    """The tracking store is away, or refuses."""


class ConflictError(SegpipeError):
    """Another process is at work on the same, or was first."""


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
