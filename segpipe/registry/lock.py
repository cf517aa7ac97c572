"""Turns at a registered model, whose aliases know no compare-and-swap."""

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager

from mlflow import MlflowClient

from segpipe.runtime import processes
from segpipe.tracking.one_at_a_time import Contender, Entry, exclusive

PREFIX = "segpipe.turn."


class ModelTags:
    """Tags of a registered model as a board: `HOST PID STARTED BEAT`."""

    def __init__(self, name: str) -> None:
        self.name, self.client, self.own = name, MlflowClient(), PREFIX + uuid.uuid4().hex

    def look(self) -> tuple[bool, dict[str, Entry]]:
        tags = self.client.get_registered_model(self.name).tags
        entries = {tag: Entry(value, _process(value)) for tag, value in tags.items() if tag.startswith(PREFIX)}
        return entries.pop(self.own, None) is not None, entries

    def write(self, beat: int) -> None:
        self.client.set_registered_model_tag(self.name, self.own, " ".join([*processes.here().values(), str(beat)]))

    def remove(self) -> None:
        """Remove the own entry. The next one gets another name: somebody may still be about to discard this one."""
        self.discard(self.own)
        self.own = PREFIX + uuid.uuid4().hex

    def discard(self, other: str) -> None:
        self.client.delete_registered_model_tag(self.name, other)


def _process(value: str) -> dict[str, str]:
    """The tags of the process that wrote an entry; none for one of segpipe 0.5, or made by hand."""
    names, parts = (processes.HOST, processes.PID, processes.STARTED), value.split(" ")
    return dict(zip(names, parts, strict=False)) if len(parts) == len(names) + 1 else {}


def turn(
    name: str, say: Callable[[str], None], hurry: Callable[[BaseException], None] = lambda _error: None
) -> AbstractContextManager[Contender]:
    """One's turn at an existing registered model: nobody else who asks for one is inside, on any machine.

    What is done inside asks `check()` before each write.
    """
    return exclusive(
        ModelTags(name),
        lambda _, other: say(f"waiting for another registration of {name} ({other.owner()})"),
        hurry=hurry,
    )
