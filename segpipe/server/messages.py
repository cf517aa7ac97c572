"""Requests, responses, and the one shape of every error."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from segpipe.server.loaded_model import Served

JSON = "application/json"
CODES = {  # the others are named as in `http.HTTPStatus`
    400: "INVALID_PARAMETER_VALUE",
    404: "ENDPOINT_NOT_FOUND",
    413: "REQUEST_TOO_LARGE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@dataclass
class Request:
    """A request, the version that answers it, and what the log says of it; `size` is the bytes of the body so far."""

    method: str
    path: str
    headers: Mapping[str, str]
    id: str
    served: "Served"
    size: int = 0
    rows: int = 0
    notes: list[str] = field(default_factory=list)


Handler = Callable[[Request, bytes], Response]  # of a request and its body


class RequestError(Exception):
    """A request is refused: the status, one line, the row at fault with its reason; notes for the log."""

    def __init__(
        self,
        status: int,
        message: str,
        row: int | None = None,
        reason: str = "",
        code: str = "",
        headers: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.row, self.reason, self.headers, self.notes = status, row, reason, headers, notes
        self.code = code or CODES.get(status, HTTPStatus(status).name)

    def response(self, request_id: str) -> Response:
        """The error as JSON on one line."""
        content: dict[str, Any] = {"error_code": self.code, "message": str(self), "request_id": request_id}
        if self.row is not None:
            content |= {"row": self.row, "reason": self.reason}
        return Response(json.dumps(content) + "\n", self.status, self.headers, JSON)


def as_json(values: object) -> Response:
    """Values as JSON, with status 200."""
    return Response(json.dumps(values, allow_nan=False) + "\n", media_type=JSON)
