"""What a process does when it is asked to stop: SIGINT, SIGTERM, SIGHUP."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import walk_stack
from types import FrameType

from segpipe.runtime import processes

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 1.0  # seconds within which a second signal is the same: it goes to a whole group, then from the driver once more
LATER = 0.01  # seconds until a signal that came at a bad moment is sent again

Act = Callable[[int], None]


class Interrupted(KeyboardInterrupt):
    """A signal has asked this process to stop, or the step it waited for."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name})")
        self.number = number


class Signals:
    """How a process answers signals; a command makes one and passes it on. Signals that are ignored when it comes into
    play (nohup, a shell's background job) stay so.

    `is_delicate` says of which modules the code is not to be interrupted; `asked` that a first signal has come: later
    ones are ignored, as what follows is the clean-up.
    """

    def __init__(self, is_delicate: Callable[[str], bool] = lambda _module: False) -> None:
        self.asked, self._late = False, 0  # `_late` came at a bad moment and is about to be sent again
        self.act: Act = self.interrupt
        self._is_delicate, self._report_unraisable = is_delicate, sys.unraisablehook

    def install(self) -> None:
        """From now on the first signal raises Interrupted in the main thread."""
        self.asked = False
        self._handle_all()

    def ignore(self) -> None:
        """The work is done: a signal would only disturb the end of this process. Its children would ignore signals too,
        so it is for the very end.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def interrupt(self, number: int) -> None:
        """Raises Interrupted for the first signal."""
        if not self.asked:
            self.asked = True
            raise Interrupted(number)

    @contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """Inside, the first signal is noted, so that work can stop where it leaves nothing torn; one that comes more
        than a second later interrupts at once. Yields the question whether to stop.

        Raises Interrupted after the block where a signal was noted.
        """
        noted: list[tuple[int, float]] = []

        def note(number: int) -> None:
            if not noted:
                noted.append((number, time.monotonic()))
            elif time.monotonic() - noted[0][1] > ECHO:
                self.interrupt(number)

        with self.answering_with(note):
            try:
                yield lambda: bool(noted)
            except KeyboardInterrupt as error:
                if isinstance(error, Interrupted) or not noted:
                    raise
        if noted:
            self.asked = True
            raise Interrupted(noted[0][0])

    @contextmanager
    def answering_with(self, act: Act) -> Iterator[None]:
        """Inside, each signal calls `act` with its number, in the main thread."""
        outer, handlers = self.act, self._handle_all()
        self.act = act
        try:
            yield
        finally:
            late, self._late, self.act = self._late, 0, outer
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if late:
                act(late)

    def _handle_all(self) -> dict[int, "signal._HANDLER"]:
        """Handle all signals but those that are ignored; the handlers before."""
        sys.unraisablehook = self._send_dropped
        heeded = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
        return {number: signal.signal(number, self._handle) for number in heeded}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Act, but not amid what the clean-up needs whole: an exception amid a commit would leave the store locked for
        as long as this process lives, one amid an import half a package.
        """
        if any(
            self._is_delicate(str(outer.f_globals.get("__name__"))) or "<frozen importlib" in outer.f_code.co_filename
            for outer, _ in walk_stack(frame)
        ):
            self._send_later(number)
        else:
            self.act(number)

    def _send_later(self, number: int) -> None:
        self._late = number
        signal.signal(signal.SIGALRM, self._send)
        signal.setitimer(signal.ITIMER_REAL, LATER)

    def _send(self, *_: object) -> None:
        late, self._late = self._late, 0
        if late:
            os.kill(os.getpid(), late)

    def _send_dropped(self, dropped: "sys.UnraisableHookArgs") -> None:
        """Send a signal again whose Interrupted Python has dropped, because it came amid the end of an object."""
        if isinstance(dropped.exc_value, Interrupted):
            self.asked = False
            self._send_later(dropped.exc_value.number)
        else:
            self._report_unraisable(dropped)


class Guard:
    """What a driver knows of the wish to stop: the signal's number, and whether a step is under way."""

    def __init__(self, signals: Signals) -> None:
        self.signals, self.number = signals, 0
        self._launches: list[int] = []  # threads that wait for a step
        self._working = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around all that a driver does, in the main thread: a signal ends the steps under way, then each launch raises
        Interrupted, and no further one starts; with no step under way it raises at once. Inside of another one, or in
        another thread, it does nothing.
        """
        if self.signals.act == self._ask or threading.current_thread() is not threading.main_thread():
            yield
            return
        with self.signals.answering_with(self._ask):
            yield

    def _ask(self, number: int) -> None:
        if not self.signals.asked:
            self.signals.asked, self.number = True, number
            if self._working or not self._launches:
                raise Interrupted(number)

    def check(self) -> None:
        """Raises Interrupted where the driver has been asked to stop."""
        if self.number:
            raise Interrupted(self.number)

    def pause(self, seconds: float) -> None:
        """Sleep, in any thread. Raises Interrupted as soon as the driver is asked to stop."""
        until = time.monotonic() + seconds
        self.check()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, processes.TICK))
            self.check()

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Inside, a signal does not raise: whoever is inside watches `number`."""
        self._launches.append(threading.get_ident())
        try:
            self.check()
            yield
        finally:
            self._launches.pop()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, a signal does raise: a step is at work in this thread."""
        try:
            self._working = True
            self.check()
            yield
        finally:
            self._working = False

    def forget(self) -> None:
        """What ended was one step, not the driver."""
        self.number, self.signals.asked = 0, False
