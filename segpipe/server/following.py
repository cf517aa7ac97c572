"""Who is champion now: a thread that looks, loads and swaps."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from segpipe.config.sections import ServingConfig
from segpipe.errors import one_line
from segpipe.registry import champions
from segpipe.server import loaded_model
from segpipe.server.application import Application

LONGEST_WAIT = 60.0


@contextmanager
def following(uri: str, application: Application, config: ServingConfig, say: Callable[[str], None]) -> Iterator[None]:
    """While inside, swap to each version that the alias of models:/NAME@ALIAS names; other URIs mean one version."""
    if champions.followed(uri) is None:
        yield
        return
    stop = threading.Event()
    watch = Watch(uri, application, config, say)
    thread = threading.Thread(target=watch.run, args=(stop,), name="champion", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()


class Watch:
    """Asks the registry for an alias. What goes wrong is told once, until something else happens."""

    def __init__(self, uri: str, application: Application, config: ServingConfig, say: Callable[[str], None]) -> None:
        self._uri, self._application, self._config, self._say = uri, application, config, say
        self._told = ""

    def run(self, stop: threading.Event) -> None:
        """Look each serving.poll_seconds, and less often while something is wrong."""
        wait = seconds = self._config.poll_seconds
        while not stop.wait(wait):
            wait = seconds if self.look() else max(seconds, min(2 * wait, LONGEST_WAIT))

    def look(self) -> bool:
        """Swap if the alias names another version; false where registry or version can't be read."""
        current = self._application.served
        try:
            uri = champions.pinned(self._uri)
        except Exception as error:  # whatever a store raises when it is away
            return self._keep("registry", self._uri, error)
        if uri == current.uri:
            self._told = ""
            return True
        try:
            with ThreadPoolExecutor(1) as once:  # the threads that its network answers with end with this one
                fresh = once.submit(loaded_model.load, uri, self._config).result()
        except Exception as error:  # whatever a broken model raises
            return self._keep("version", uri, error)
        self._told = ""
        self._application.swap(fresh)
        self._say(f"{self._uri} is version {fresh.version} now, in the place of version {current.version}")
        return True

    def _keep(self, what: str, uri: str, error: Exception) -> bool:
        self._application.metrics.kept(what)
        if self._told != uri:
            self._told = uri
            self._say(f"{what}: {one_line(error)}; version {self._application.served.version} goes on")
        return False
