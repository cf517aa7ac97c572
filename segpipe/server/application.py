"""The layer in front of MLflow's scoring application: limits, one shape of error, request IDs, metrics, a log."""

import asyncio
import re
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from segpipe.config.sections import ServingConfig
from segpipe.errors import InputError
from segpipe.server import request_checks, uploads
from segpipe.server.loaded_model import Served
from segpipe.server.messages import Handler, Request, RequestError, as_json
from segpipe.server.metrics import Metrics

if TYPE_CHECKING:
    from segpipe.inference.predictor import Through

INVOCATIONS = "/invocations"
PREDICTIONS = 2  # at a time: while one is in the network, another is decoded or encoded
BODIES = 4  # of the largest size, in memory at a time
PATIENCE = 30.0  # seconds for the next bytes of a body
SANE_ID = re.compile(r"[\x21-\x7e]{1,128}")
LONGEST_PATH = 100


class Application:
    """An ASGI application around `served`, the version that answers now."""

    def __init__(
        self,
        served: Served,
        config: ServingConfig,
        say: Callable[[str], None],
        more: Mapping[tuple[str, str], Handler] | None = None,
        through: "Through | None" = None,
    ) -> None:
        self.metrics, self._through = Metrics(), through
        self.config, self.say, self._most, self._held = config, say, int(config.max_body_mb * 1e6), 0
        self._turns = asyncio.Semaphore(PREDICTIONS)
        self._handlers: dict[tuple[str, str], Handler] = {
            **(more or {}),
            ("GET", "/ping"): lambda *_: as_json({"status": "ok"}),
            ("GET", "/health"): lambda *_: as_json({"status": "ok"}),
            ("GET", "/version"): lambda request, _: as_json(request.served.facts),
            ("GET", "/metrics"): lambda *_: self.metrics.response(),
        }
        self._paths = {path for _, path in self._handlers} | {INVOCATIONS}
        self.answer_with(served)

    def answer_with(self, served: Served) -> None:
        """Let a version answer from the next request on; requests in flight end on the one they began with."""
        if self._through:
            served.predictor.through = self._through
        self.served = served
        self.metrics.name_model(served.facts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request. Raises ValueError for other protocols."""
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not served")
        began, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        request = Request(scope["method"], scope["path"], headers, request_id, self.served)
        with self.metrics.in_flight.track_inprogress():
            response = await self._answer(request, receive)
            response.headers.update({"x-request-id": request.id, "x-model-version": request.served.version})
            await response(scope, receive, send)
        seconds = time.perf_counter() - began
        path = request.path if request.path in self._paths else "other"
        self.metrics.count(path, response.status_code, seconds, request.rows, request.size)
        self.say(_line(request, response.status_code, seconds))

    async def _answer(self, request: Request, receive: Receive) -> Response:
        try:
            return await self._route(request, receive)
        except RequestError as error:
            request.notes += error.notes
            return error.response(request.id)
        except InputError as error:
            return RequestError(400, str(error)).response(request.id)
        except asyncio.CancelledError:
            return RequestError(503, "the server is stopping; ask again").response(request.id)
        except Exception as error:  # without its message, which may repeat what was sent
            last = traceback.extract_tb(error.__traceback__)[-1]
            request.notes.append(f"{type(error).__name__} in {last.name}, {last.filename}:{last.lineno}")
            return RequestError(500, "the server failed on this request").response(request.id)

    async def _route(self, request: Request, receive: Receive) -> Response:
        if request.path not in self._paths:
            raise RequestError(404, "no such path; there are " + ", ".join(sorted(self._paths)))
        handler, form = self._handlers.get((request.method, request.path)), uploads.is_form(request.headers)
        if (request.method, request.path) == ("POST", INVOCATIONS):
            request_checks.check_encoding(request.headers)
            if form:
                uploads.check_origin(request.headers)
            else:
                request_checks.check_type(request.headers)
        elif handler is None:
            allowed = ", ".join(method for method, path in self._handlers if path == request.path) or "POST"
            raise RequestError(405, f"{request.path} takes {allowed}", headers={"allow": allowed})
        elif request.method == "GET":
            return await asyncio.to_thread(handler, request, b"")
        try:
            body = await self._read_body(request, receive)
            async with self._turns:
                if handler is not None:
                    return await asyncio.to_thread(handler, request, body)
                if form:
                    body = await asyncio.to_thread(uploads.as_json, body, request.headers)
                request.rows = await asyncio.to_thread(request_checks.check, body, request.served.parameters)
                return await request.served.answers.ask(body)
        finally:
            self._held -= request.size

    async def _read_body(self, request: Request, receive: Receive) -> bytes:
        """All of the body. Raises RequestError as soon as it is too large, with what was announced or has come."""
        too_large = RequestError(413, f"the body is larger than serving.max_body_mb, {self._most / 1e6:g} MB")
        if int(request.headers.get("content-length", "0")) > self._most:
            raise too_large
        parts, more = [], True
        while more:
            try:
                message = await asyncio.wait_for(receive(), PATIENCE)
            except TimeoutError:
                raise RequestError(408, f"nothing of the body came for {PATIENCE:g} seconds") from None
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the connection ended before the body")
            part, more = message.get("body", b""), message.get("more_body", False)
            request.size += len(part)
            self._held += len(part)
            if request.size > self._most:
                raise too_large
            if self._held > BODIES * self._most:
                raise RequestError(503, "too many large requests at once; ask again", headers={"retry-after": "1"})
            parts.append(part)
        return b"".join(parts)


def _line(request: Request, status: int, seconds: float) -> str:
    """One line of the log, with nothing of the request but its path and ID."""
    now, path = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), quote(request.path)[:LONGEST_PATH]
    rows = f"{request.rows} row{'' if request.rows == 1 else 's'}"
    line = f"{now} {request.method} {path} {status} {1000 * seconds:.0f} ms {rows} {request.size} bytes {request.id}"
    return " ".join([line, *(f"({note})" for note in request.notes)])
