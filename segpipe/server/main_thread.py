"""Networks run in the main thread, whatever thread asks; HTTP has a thread of its own.

GNU OpenMP lets the threads behind a network stay awake between two layers only while there are no more of them than
cores, and counts the main thread among them at any rate: in another thread each of some sixty layers wakes them anew.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class MainThread:
    """Runs what other threads ask for, one after the other."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def __call__(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of some work, done in the main thread; raises what it raises."""
        done: Future[R] = Future()

        def attempt() -> None:
            try:
                done.set_result(work(*args, **kwargs))
            except Exception as error:  # raised where the work was asked for
                done.set_exception(error)

        self._asked.put(attempt)
        return done.result()

    def during(self, other: Callable[[], None]) -> None:
        """Run `other` in a thread, and in this one what is asked for until that ends. Raises what `other` raises."""
        with ThreadPoolExecutor(1, thread_name_prefix="http") as pool:
            ended = pool.submit(other)
            ended.add_done_callback(lambda _: self._asked.put(None))
            while (attempt := self._asked.get()) is not None:
                attempt()
        ended.result()
