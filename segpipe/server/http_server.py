"""MLflow's own scoring application behind a thin ASGI layer: what `python -m steps.serve` runs."""

import errno
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import uvicorn

from segpipe.config.sections import ServingConfig
from segpipe.errors import InputError, one_line
from segpipe.registry import champions
from segpipe.server.application import Application
from segpipe.server.following import following
from segpipe.server.loaded_model import load
from segpipe.server.main_thread import MainThread
from segpipe.server.messages import Handler

PORTS = range(5001, 5021)
GRACE = 10  # seconds for what is in flight when the server is asked to end
KEEP_ALIVE = 75  # seconds: longer than nginx keeps a connection (60), so that it is never the server that hangs up


def run(
    uri: str,
    config: ServingConfig,
    say: Callable[[str], None],
    more: Mapping[tuple[str, str], Handler] | None = None,
    ready: Callable[[str], None] = lambda _address: None,
) -> None:
    """Serve the model at `uri`, and `more`: (method, path) to a function that runs in a thread; `ready` gets the
    address once it answers. SIGINT or SIGTERM ends it, after what is in flight. Only in the main thread.

    Raises InputError, before anything is served, where there is no such model, it can't answer or the port is taken.
    """
    networks = MainThread()
    with bind(config.host, config.port) as listener:
        if config.port == "auto" and listener.getsockname()[1] != PORTS[0]:
            say(f"port {PORTS[0]} is taken; serving.port chooses another one")
        app = Application(load(champions.pinned(uri), config), config, say, more, networks)
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{listener.getsockname()[1]}"

        def announce() -> None:
            say(f"serving {uri} version {app.served.version} on {address}")
            ready(address)

        http = _Server(app, announce)
        with following(uri, app), _ending_on_signals(http):
            networks.during(lambda: http.run(sockets=[listener]))


@contextmanager
def _ending_on_signals(http: uvicorn.Server) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end the server; uvicorn itself handles them in the main thread only."""
    before = {number: signal.signal(number, http.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bind(host: str, port: int | str) -> socket.socket:
    """A socket that is bound but does not listen yet: nobody connects before there is a model. For `auto` the first of
    PORTS that is free. Raises InputError.
    """
    for number in PORTS if port == "auto" else (int(port),):
        try:
            return _bound(host, number)
        except OSError as error:
            refused = error
            if error.errno != errno.EADDRINUSE:
                break
    raise InputError(f"{host}:{number}: {one_line(refused)}; take another serving.host or serving.port")


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits some 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """Calls `ready` once it answers."""

    def __init__(self, app: Application, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()
