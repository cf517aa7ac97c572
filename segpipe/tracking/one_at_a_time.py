"""One at a time over MLflow's tags, which know no compare-and-swap: write an entry, then look for others.

Of two who write and then look, at least one sees the other; it takes its entry back and tries again at a random time.
An entry does not count whose process is known to be gone, or that has not changed for DEAD_AFTER seconds, seen from
here. Its owner stops relying on it long before that. Decision 19 has the reasons.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NamedTuple, Protocol

from mlflow.exceptions import MlflowException

from segpipe.errors import ConflictError
from segpipe.runtime import processes

PAUSE, LONGEST_PAUSE = 1.0, 8.0  # seconds between two attempts, at first and after several that met another's
BEAT = 5.0  # seconds between two signs of life
DEAD_AFTER = 60.0  # seconds without a sign of life until an entry does not count
TRUSTED = DEAD_AFTER / 2  # seconds for which its owner relies on it after a sign of life: the rest is for slow servers


class Entry(NamedTuple):
    """What a contender shows: a value that each sign of life changes, and the tags of its process where known."""

    value: str
    process: Mapping[str, str]

    def owner(self) -> str:
        """Host and process ID, for a message."""
        host, pid = (self.process.get(tag, "unknown") for tag in (processes.HOST, processes.PID))
        return f"host {host}, pid {pid}"


class Board(Protocol):
    """The entries as one contender sees them: whether its own is there, and those of all others. It sets its own to a
    value of each beat, removes it where it is there, and discards another that does not count, unless its owner might
    write the same one in a later attempt. What is written is seen by every look that begins later.
    """

    def look(self) -> tuple[bool, dict[str, Entry]]: ...
    def write(self, beat: int) -> None: ...
    def remove(self) -> None: ...
    def discard(self, other: str) -> None: ...


def seconds_since_boot() -> float:
    """Seconds on a clock that goes on while the machine is suspended, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Contender:
    """One who wants to be the only one, or is."""

    def __init__(self, board: Board, clock: Callable[[], float]) -> None:
        self.board, self.clock = board, clock
        self.beats, self.shown, self.overslept = 0, 0.0, False
        self.since: dict[tuple[str, str], float] = {}  # when each value of another was first seen

    def look(self) -> tuple[bool, tuple[str, Entry] | None]:
        """Whether the own entry can be relied on for TRUSTED seconds, and another that counts. Discards the dead."""
        began = self.clock()
        there, others = self.board.look()
        arrived = self.clock()
        seen = [(name, entry.value) for name, entry in others.items()]
        self.since = {pair: self.since.get(pair, arrived) for pair in seen}
        rival = None
        for name, entry in others.items():
            alive = processes.alive(entry.process)
            if alive or (alive is None and began - self.since[name, entry.value] <= DEAD_AFTER):
                rival = rival or (name, entry)
            else:
                with suppress(MlflowException):  # whoever looks next finds it dead too
                    self.board.discard(name)
        return there and not self.overslept and self.clock() - self.shown <= TRUSTED, rival

    def attempt(self) -> bool:
        """Write, then look; whether this one is the only one now. If not, its entry is taken back."""
        self.shown, self.overslept = self.clock(), False
        self.beat()
        if self.look() == (True, None):
            return True
        self.board.remove()
        return False

    def beat(self) -> None:
        """Give a sign of life. A late one may bring back an entry that others have removed: no check passes then."""
        began, self.beats = self.clock(), self.beats + 1
        self.board.write(self.beats)
        self.overslept |= self.clock() - self.shown > TRUSTED
        self.shown = began

    def check(self) -> None:
        """Ask before each write inside. Raises ConflictError where somebody else may be inside by now."""
        reliable, _ = self.look()
        if not reliable:
            raise ConflictError("took too long, and the turn may be another's; run it again")


@contextmanager
def heartbeat(contender: Contender) -> Iterator[None]:
    """Inside, a thread gives a sign of life every BEAT seconds."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            with suppress(MlflowException):  # a store that is away for a while: the next sign of life is as good
                contender.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def exclusive(
    board: Board,
    waiting: Callable[[str, Entry], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = seconds_since_boot,
    heart: Callable[[Contender], AbstractContextManager[None]] = heartbeat,
    hurry: Callable[[BaseException], None] = lambda _error: None,
) -> Iterator[Contender]:
    """Wait until nobody else is inside, then run the block. Calls `waiting` once, with whom it waits for.

    The wait ends with what `sleep` raises. The entry goes with the block, whatever ends it; an error goes to `hurry`
    (`Store.hurry_after`) before that.
    """
    contender, pause, told = Contender(board, clock), PAUSE, False
    try:
        while (rival := contender.look()[1]) or not contender.attempt():
            if rival is None:
                pause = min(2 * pause, LONGEST_PAUSE)
            elif not told:
                told = True
                waiting(*rival)
            sleep(random.uniform(pause / 2, pause))  # noqa: S311  # so that those who have met part
        with heart(contender):
            yield contender
    except BaseException as error:
        hurry(error)
        with suppress(MlflowException):  # an entry that stays does not count once its process has ended
            board.remove()
        raise
    board.remove()
