"""A thread that looks for a new champion, loads it and swaps it in."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from segpipe.errors import one_line
from segpipe.registry import champions
from segpipe.server import loaded_model
from segpipe.server.application import Application

LONGEST_WAIT = 60.0


@contextmanager
def following(uri: str, application: Application) -> Iterator[None]:
    """While inside, swap to each version that the alias of models:/NAME@ALIAS names; other URIs mean one version."""
    if champions.followed(uri) is None:
        yield
        return
    stop = threading.Event()
    watch = Watch(uri, application)
    threading.Thread(target=watch.run, args=(stop,), name="champion", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


class Watch:
    """Asks the registry for an alias. What goes wrong is reported once, until something else happens."""

    def __init__(self, uri: str, application: Application) -> None:
        self._uri, self._application, self._reported = uri, application, ""

    def run(self, stop: threading.Event) -> None:
        """Look every serving.poll_seconds, and less often while something is wrong."""
        wait = seconds = self._application.config.poll_seconds
        while not stop.wait(wait):
            wait = seconds if self.look() else max(seconds, min(2 * wait, LONGEST_WAIT))

    def look(self) -> bool:
        """Swap if the alias names another version; false where registry or version can't be read."""
        application, current = self._application, self._application.served
        try:
            uri = champions.pinned(self._uri)
        except Exception as error:  # whatever a store raises when it is away
            return self._report("registry", self._uri, error)
        if uri != current.uri:
            try:
                with ThreadPoolExecutor(1) as once:  # the threads that its network answers with end with this one
                    fresh = once.submit(loaded_model.load, uri, application.config).result()
            except Exception as error:  # whatever a broken model raises
                return self._report("version", uri, error)
            application.answer_with(fresh)
            application.metrics.swaps.inc()
            application.say(f"{self._uri} is version {fresh.version} now, in the place of version {current.version}")
        self._reported = ""
        return True

    def _report(self, what: str, uri: str, error: Exception) -> bool:
        """Count a failure, and say it unless the last one was the same; false."""
        self._application.metrics.failures.labels(what).inc()
        if self._reported != uri:
            self._reported = uri
            self._application.say(f"{what}: {one_line(error)}; version {self._application.served.version} goes on")
        return False
