"""MLflow's scoring application, asked in this process, with its errors in our shape."""

import asyncio
import json
import weakref
from typing import Any

from mlflow.pyfunc import PyFuncModel, scoring_server
from starlette.responses import Response
from starlette.types import Message

from segpipe.errors import LONGEST
from segpipe.server.messages import JSON, RequestError
from segpipe.tracking import mlflow_sentences

SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "path": "/invocations",
    "query_string": b"",
    "headers": [(b"content-type", JSON.encode())],
}


class Scoring:
    """What `mlflow.pyfunc.scoring_server.init` makes of a model.

    FastAPI keeps every route in a cache, with all that it refers to: so MLflow gets a weak reference, and the model
    goes when this goes.
    """

    def __init__(self, model: PyFuncModel) -> None:
        self._model, self._application = model, scoring_server.init(weakref.proxy(model))

    async def ask(self, body: bytes) -> Response:
        """What MLflow answers to a request with this body. Raises RequestError where that is an error."""
        sent: list[Message] = []
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return waiting.pop() if waiting else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        await self._application(dict(SCOPE), receive, send)
        status, content = int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])
        if status != 200:
            raise refusal(status, content)
        return Response(content, media_type=JSON)


def refusal(status: int, content: bytes) -> RequestError:
    """MLflow's error without its stack trace, and without the request that it repeats."""
    if status == 504:
        return RequestError(504, "the prediction took longer than MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT allows")
    try:
        error: dict[str, Any] = json.loads(content)
        message = str(error["message"])
    except (ValueError, TypeError, KeyError):
        return RequestError(status, "MLflow refused the request")
    if "stack_trace" in error:
        frame = mlflow_sentences.last_frame(str(error["stack_trace"]))
        notes = (f"failed in {frame.name}, {frame.file}:{frame.line}",) if frame else ()
        return RequestError(500, "the model failed on this request", notes=notes)
    line = " ".join(mlflow_sentences.scoring_reason(message).split())[:LONGEST]
    return RequestError(status, line, error.get("row"), str(error.get("reason", "")), str(error.get("error_code", "")))
