"""What a process does when it is asked to stop: SIGINT, SIGTERM, SIGHUP."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from segpipe.runtime import processes

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 1.0  # seconds within which a second signal is the same wish: a terminal asks a whole group, the driver once more
LATER = 0.01  # seconds until a signal that came at a bad moment is sent again

Act = Callable[[int], None]


class Interrupted(KeyboardInterrupt):
    """A signal has asked this process to stop, or the step it waited for."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted ({signal.Signals(number).name})")
        self.number = number


class Signals:
    """How a process answers signals; a command makes one and passes it on. Signals that are ignored when it comes into
    play (nohup, a shell's background job) stay so. `is_delicate` says of which modules the code is not to be
    interrupted.
    """

    def __init__(self, is_delicate: Callable[[str], bool] = lambda _module: False) -> None:
        self.asked, self.late = False, 0  # `late` came at a bad moment and is about to be sent again
        self._is_delicate = is_delicate

    def install(self) -> None:
        """From now on the first signal raises Interrupted in the main thread; later ones are ignored, as what follows
        is the clean-up.
        """
        self.asked = False
        self._answer_with(self._raise)

    def ignore(self) -> None:
        """The work is done: a signal would only disturb the end of this process. Its children would ignore signals too,
        so it is for the very end.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def forget(self) -> None:
        """What was interrupted has been dealt with: the next signal is a first one."""
        self.asked = False

    @contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """Inside, the first signal is noted, so that work can stop where it leaves nothing torn; one that comes more
        than a second later interrupts at once. Yields the question whether to stop.

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
                self._raise(number)

        with self._answering_with(note):
            try:
                yield lambda: bool(noted)
            except KeyboardInterrupt as error:
                if isinstance(error, Interrupted) or not noted:
                    raise
        if noted:
            self.asked = True
            raise Interrupted(noted[0])

    @contextmanager
    def forwarding(self, end: Act) -> Iterator[None]:
        """Inside, the first signal calls `end` with its number, in the main thread, instead of raising; later ones are
        ignored, also after the block.
        """

        def forward(number: int) -> None:
            if not self.asked:
                self.asked = True
                end(number)

        with self._answering_with(forward):
            yield

    def _raise(self, number: int) -> None:
        if not self.asked:
            self.asked = True
            raise Interrupted(number)

    @contextmanager
    def _answering_with(self, act: Act) -> Iterator[None]:
        before = self._answer_with(act)
        try:
            yield
        finally:
            late, self.late = self.late, 0
            for number, handler in before.items():
                signal.signal(number, handler)
            if late:
                act(late)

    def _answer_with(self, act: Act) -> dict[int, "signal._HANDLER"]:
        self._insist()
        heeded = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
        return {number: signal.signal(number, self._at_a_good_moment(act)) for number in heeded}

    def _insist(self) -> None:
        """Send a signal once more whose Interrupted Python has dropped, because it came amid the end of an object."""
        before = sys.unraisablehook
        if getattr(before, "__self__", None) is self:
            return

        def hook(dropped: "sys.UnraisableHookArgs") -> None:
            if isinstance(dropped.exc_value, Interrupted):
                self.forget()
                self._send_later(dropped.exc_value.number)
            else:
                before(dropped)

        sys.unraisablehook = hook

    def _at_a_good_moment(self, act: Act) -> Callable[[int, FrameType | None], None]:
        """A handler that does not act amid what the clean-up needs whole: an exception amid a commit would leave the
        store locked for as long as this process lives, one amid an import half a package.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self._is_at_work(frame):
                self._send_later(number)
            else:
                act(number)

        return handle

    def _is_at_work(self, frame: FrameType | None) -> bool:
        """Whether delicate code or an import is under way."""
        while frame is not None:
            module = str(frame.f_globals.get("__name__"))
            if self._is_delicate(module) or "<frozen importlib" in frame.f_code.co_filename:
                return True
            frame = frame.f_back
        return False

    def _send_later(self, number: int) -> None:
        self.late = number
        signal.signal(signal.SIGALRM, self._send)
        signal.setitimer(signal.ITIMER_REAL, LATER)

    def _send(self, *_: object) -> None:
        late, self.late = self.late, 0
        if late:
            os.kill(os.getpid(), late)


class Guard:
    """What a driver knows of the wish to stop: the signal's number, and whether a step is under way."""

    def __init__(self, signals: Signals) -> None:
        self.signals, self.number = signals, 0
        self._watching, self._launches, self._inside, self._lock = False, 0, False, threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around all that a driver does, in the main thread: a signal ends the steps under way, then each launch raises
        Interrupted, and no further one starts; with no step under way it raises at once. Inside of another one, or in
        another thread, it does nothing.
        """
        if self._watching or threading.current_thread() is not threading.main_thread():
            yield
            return
        self._watching = True
        try:
            with self.signals.forwarding(self._ask):
                yield
        finally:
            self._watching = False

    def _ask(self, number: int) -> None:
        self.number = number
        if self._inside or not self._launches:
            raise Interrupted(number)

    def check(self) -> None:
        """Raises Interrupted where the driver has been asked to stop."""
        if self.number:
            raise Interrupted(self.number)

    def pause(self, seconds: float) -> None:
        """Sleep, in any thread. Raises Interrupted as soon as the driver is asked to stop."""
        until = time.monotonic() + seconds
        while True:
            self.check()
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(left, processes.TICK))

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Inside, a signal does not raise: whoever is inside watches `number`."""
        with self._lock:
            self._launches += 1
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._launches -= 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, a signal does raise: a step is at work in this thread."""
        try:
            self._inside = True
            self.check()
            yield
        finally:
            self._inside = False

    def forget(self) -> None:
        """What ended was one step, not the driver."""
        self.number = 0
        self.signals.forget()
