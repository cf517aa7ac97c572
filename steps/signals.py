"""What a process does when it is asked to stop: SIGINT, SIGTERM, SIGHUP."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 1.0  # seconds within which a second signal is the same wish: a terminal asks a whole group, the driver once more

Handler = Callable[[int, FrameType | None], None]

_asked: list[int] = []


class Interrupted(KeyboardInterrupt):
    """A signal has asked this process to stop, or the step it waited for."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name})")
        self.number = number


def install() -> None:
    """From now on the first signal raises Interrupted in the main thread; later ones are ignored, as what follows is
    the clean-up. A signal that is ignored (nohup, a shell's background job) stays so.
    """
    again()
    for number in _heeded():
        signal.signal(number, _when_safe(_raise))


def again() -> None:
    """What was interrupted has been dealt with: the next signal is a first one."""
    _asked.clear()


def asked() -> bool:
    """Whether a signal has interrupted this process, and its clean-up is under way."""
    return bool(_asked)


def _heeded() -> list[signal.Signals]:
    return [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]


def _raise(number: int) -> None:
    if not _asked:
        _asked.append(number)
        raise Interrupted(number)


def _when_safe(act: Callable[[int], None]) -> Handler:
    """A handler that waits for the end of a database's transaction: an exception amid a commit would leave the store
    locked for as long as this process lives.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not _in_transaction(frame):
            act(number)
            return
        before = sys.getprofile()

        def left(inner: FrameType, event: str, _: object) -> None:
            if event == "return" and not _in_transaction(inner.f_back):
                sys.setprofile(before)
                act(number)

        sys.setprofile(left)

    return handle


def _in_transaction(frame: FrameType | None) -> bool:
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(("sqlalchemy.", "mlflow.store.db.")) or module.endswith(".sqlalchemy_store"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def _handling(act: Callable[[int], None]) -> Iterator[None]:
    before = {number: signal.signal(number, _when_safe(act)) for number in _heeded()}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Inside, the first signal is noted, so that work can stop where it leaves nothing torn; one that comes more than
    a second later interrupts at once. Yields the question whether to stop.

    Raises Interrupted after the block where a signal was noted.
    """
    noted: list[int] = []
    since = 0.0

    def note(number: int) -> None:
        nonlocal since
        if not noted:
            noted.append(number)
            since = time.monotonic()
        elif time.monotonic() - since > ECHO:
            _raise(number)

    with _handling(note):
        try:
            yield lambda: bool(noted)
        except KeyboardInterrupt as error:
            if isinstance(error, Interrupted) or not noted:
                raise
    if noted:
        _asked[:] = noted
        raise Interrupted(noted[0])


@contextmanager
def forwarding(end: Callable[[int], None]) -> Iterator[None]:
    """Inside, the first signal calls `end` with its number, in the main thread, instead of raising; later ones are
    ignored, also after the block.
    """

    def forward(number: int) -> None:
        if not _asked:
            _asked.append(number)
            end(number)

    with _handling(forward):
        yield


class Guard:
    """What a driver knows of the wish to stop: the signal's number, and whether a step is under way."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.launches, self.inside, self._lock = 0, False, threading.Lock()

    def ask(self, number: int) -> None:
        """Ask what is under way to end. Raises Interrupted where nothing is."""
        self.number = number
        if self.inside or not self.launches:
            raise Interrupted(number)

    def check(self) -> None:
        """Raises Interrupted where the driver has been asked to stop."""
        if self.number is not None:
            raise Interrupted(self.number)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Inside, a signal does not raise: whoever is inside watches `number`."""
        with self._lock:
            self.launches += 1
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self.launches -= 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, a signal does raise: a step is at work in this thread."""
        try:
            self.inside = True
            self.check()
            yield
        finally:
            self.inside = False
