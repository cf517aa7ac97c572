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
LATER = 0.01  # seconds until an interrupt that was dropped is tried again

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
    _insist()
    for number in _heeded():
        signal.signal(number, _when_safe(_raise))


def ignore() -> None:
    """The work is done: a signal would only disturb the end of this process. Its children would ignore signals too, so
    it is for the very end.
    """
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def again() -> None:
    """What was interrupted has been dealt with: the next signal is a first one."""
    _asked.clear()


def _heeded() -> list[signal.Signals]:
    return [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]


def _insist() -> None:
    """Raise an Interrupted once more that Python has dropped, because it came amid the end of an object."""
    before = sys.unraisablehook
    if before.__module__ == __name__:
        return

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        error = dropped.exc_value
        if not isinstance(error, Interrupted):
            before(dropped)
            return
        handler = signal.getsignal(error.number)
        if callable(handler):
            again()
            signal.signal(signal.SIGALRM, lambda _, frame: handler(error.number, frame))
            signal.setitimer(signal.ITIMER_REAL, LATER)

    sys.unraisablehook = hook


def _raise(number: int) -> None:
    if not _asked:
        _asked.append(number)
        raise Interrupted(number)


def _when_safe(act: Callable[[int], None]) -> Handler:
    """A handler that waits for the end of what the clean-up needs whole: an exception amid a commit would leave the
    store locked for as long as this process lives, one amid the import of MLflow half a package.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        outermost = _delicate(frame)
        if outermost is None:
            act(number)
            return
        before = sys.getprofile()

        def left(inner: FrameType, event: str, _: object) -> None:
            if event == "return" and inner is outermost:
                sys.setprofile(before)
                act(number)

        sys.setprofile(left)

    return handle


def _delicate(frame: FrameType | None) -> FrameType | None:
    """The outermost of the running functions that must not be torn, with what imports it; None where there is none."""
    found: FrameType | None = None
    inner: FrameType | None = None
    while frame is not None:
        importing = found is not None and found is inner and frame.f_code.co_filename.startswith("<frozen importlib")
        if importing or _is_delicate(str(frame.f_globals.get("__name__")), frame.f_code.co_name):
            found = frame
        inner, frame = frame, frame.f_back
    return found


def _is_delicate(module: str, function: str) -> bool:
    package = module.partition(".")[0]
    transaction = (
        package == "sqlalchemy" or module.startswith("mlflow.store.db.") or module.endswith(".sqlalchemy_store")
    )
    return transaction or (function == "<module>" and package == "mlflow")


@contextmanager
def _handling(act: Callable[[int], None]) -> Iterator[None]:
    _insist()
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
