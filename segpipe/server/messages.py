"""What comes in, what goes out, and the one shape of every error."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from segpipe.server.loaded_model import Served

JSON = "application/json"
CODES = {
    400: "INVALID_PARAMETER_VALUE",
    404: "ENDPOINT_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    408: "REQUEST_TIMEOUT",
    413: "REQUEST_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Asked(NamedTuple):
    """A request whose body is there: its query string, Content-Type (empty: none) and bytes."""

    query: str
    type: str
    body: bytes


class Answer(NamedTuple):
    """Status, bytes and what they are."""

    status: int
    body: bytes
    type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Asked, "Served"], Answer]


class RequestError(Exception):
    """A request that is refused: the status, one line, the row that is to blame with its reason; notes for the log."""

    def __init__(
        self,
        status: int,
        message: str,
        row: int | None = None,
        reason: str = "",
        code: str = "",
        headers: tuple[tuple[str, str], ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.row, self.reason, self.headers, self.notes = status, row, reason, headers, notes
        self.code = code or CODES.get(status, HTTPStatus(status).name)

    def answer(self, request_id: str) -> Answer:
        """The error as JSON on one line."""
        told: dict[str, Any] = {"error_code": self.code, "message": str(self), "request_id": request_id}
        if self.row is not None:
            told |= {"row": self.row, "reason": self.reason}
        return Answer(self.status, json.dumps(told).encode() + b"\n", headers=self.headers)


def as_json(values: object) -> Answer:
    """200 with these values."""
    return Answer(200, json.dumps(values, allow_nan=False).encode() + b"\n")
