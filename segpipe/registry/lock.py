"""Taking turns at a registered model, whose aliases know no compare-and-swap: Lamport's bakery (1974) over its tags."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from mlflow import MlflowClient

from segpipe.errors import InputError

PREFIX, CHOOSING = "segpipe.turn.", "choosing"
PAUSE, BEAT = 0.3, 1.0  # seconds between two looks, and between two signs of life
DEAD_AFTER = 30.0  # seconds without a sign of life until others remove an entry
TRUSTED = DEAD_AFTER / 2  # seconds for which its owner relies on it after a sign of life: the rest is for slow servers

Clock = Callable[[], float]


def awake_or_not() -> float:
    """Seconds on a clock that goes on while the machine is suspended, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Board(Protocol):
    """Where contenders show themselves: an entry each, which only its owner writes and anybody may remove."""

    def read(self) -> dict[str, str]:
        """All entries, by owner."""

    def write(self, who: str, value: str) -> None:
        """Set an entry."""

    def remove(self, who: str) -> None:
        """Remove an entry, if it is there."""


class Tags:
    """The tags of a registered model as a board."""

    def __init__(self, name: str) -> None:
        self.name, self.client = name, MlflowClient()

    def read(self) -> dict[str, str]:
        tags = self.client.get_registered_model(self.name).tags
        return {key.removeprefix(PREFIX): value for key, value in tags.items() if key.startswith(PREFIX)}

    def write(self, who: str, value: str) -> None:
        self.client.set_registered_model_tag(self.name, PREFIX + who, value)

    def remove(self, who: str) -> None:
        self.client.delete_registered_model_tag(self.name, PREFIX + who)


class _OversleptError(Exception):
    """The own entry is gone, or so old that others may be about to remove it."""


class Contender:
    """One who wants a turn: `TICKET:BEAT` or `choosing:BEAT` on the board."""

    def __init__(self, board: Board, clock: Clock) -> None:
        self.board, self.clock = board, clock
        self.who, self.beats, self.shown = uuid.uuid4().hex, 0, clock()
        self.known: dict[str, tuple[str, float]] = {}

    def show(self, state: str) -> None:
        """Write the own entry with the next beat. Raises _OversleptError where that may bring back a removed one."""
        began, before = self.clock(), self.shown
        self.board.write(self.who, f"{state}:{self.beats}")
        self.beats, self.shown = self.beats + 1, began
        if self.clock() - before > TRUSTED:
            raise _OversleptError

    def look(self) -> dict[str, str]:
        """All entries. Raises _OversleptError."""
        entries = self.board.read()
        if self.who not in entries or self.clock() - self.shown > TRUSTED:
            raise _OversleptError
        return entries

    def draw(self) -> int:
        """Draw a ticket above all others and show it."""
        self.show(CHOOSING)
        ticket = 1 + max(_ticket(value) for value in self.look().values())
        self.show(str(ticket))
        return ticket

    def must_wait(self, ticket: int) -> bool:
        """Whether somebody is choosing or comes first. Removes who has not changed for DEAD_AFTER, seen from here."""
        began = self.clock()
        entries = self.look()
        entries.pop(self.who)
        arrived = self.clock()
        same = {who for who, value in entries.items() if self.known.get(who, ("", 0.0))[0] == value}
        self.known = {who: self.known[who] if who in same else (value, arrived) for who, value in entries.items()}
        for who, (_, since) in self.known.items():
            if began - since > DEAD_AFTER:
                self.board.remove(who)
        return any((_ticket(value), who) < (ticket, self.who) for who, value in entries.items())

    def check(self) -> None:
        """Ask before each write inside. Raises InputError where the turn may have gone to somebody else."""
        try:
            self.look()
        except _OversleptError:
            raise InputError("took too long, and the turn may be another's; run it again") from None


def _ticket(value: str) -> int:
    """The number of an entry; 0, before all others, for one who is choosing."""
    number = value.partition(":")[0]
    return int(number) if number.isdecimal() else 0


@contextmanager
def take(
    board: Board,
    waiting: Callable[[], None],
    clock: Clock = awake_or_not,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Contender]:
    """Wait for a turn; the block is it. Calls `waiting` once where somebody else comes first."""
    with ExitStack() as stack:
        told = False
        while True:
            contender = Contender(board, clock)
            stack.callback(board.remove, contender.who)
            try:
                ticket = contender.draw()
                while contender.must_wait(ticket):
                    if not told:
                        told = True
                        waiting()
                    sleep(PAUSE)
                    if clock() - contender.shown > BEAT:
                        contender.show(str(ticket))
                break
            except _OversleptError:
                board.remove(contender.who)
        yield contender


@contextmanager
def turn(name: str, say: Callable[[str], None]) -> Iterator[Contender]:
    """One's turn at an existing registered model: nobody else who asks for one is inside, on any machine.

    What is done inside must be short, and ask `check()` before each write.
    """
    with take(Tags(name), lambda: say(f"waiting for another registration of {name}")) as contender:
        yield contender
