"""A form of files, as `curl -F file=@x.png` sends it, as the JSON that the same request has."""

import base64
import json
from collections.abc import Mapping
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, create_form_parser

from segpipe.server.messages import RequestError
from segpipe.server.request_checks import PARAMS, RECORDS
from segpipe.serving.request import COLUMN

FORM, FILE = "multipart/form-data", "file"


def is_form(headers: Mapping[str, str]) -> bool:
    """Whether a request is a form."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == FORM


def check_origin(headers: Mapping[str, str]) -> None:
    """Raises RequestError (403) for a form from a web page: browsers send it anywhere, whoever wrote the page."""
    if "origin" in headers:
        raise RequestError(403, "a form from a web page is not taken; the page of segpipe sends JSON")


def as_json(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A form as a request of rows. A file is a cell of the column that its field names, `file` being `image`; the
    n-th file of a field is in row n. A field without a file is a parameter: text, or JSON such as true and 0.5.

    Raises RequestError (400) for what is no form, or holds no file.
    """
    files: dict[str, list[str]] = {}
    parameters: dict[str, Any] = {}

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        name = (file.field_name or b"").decode(errors="replace")
        content = base64.b64encode(file.file_object.read()).decode("ascii")
        files.setdefault(COLUMN if name == FILE else name, []).append(content)
        file.close()

    def on_field(field: Field) -> None:
        parameters[(field.field_name or b"").decode(errors="replace")] = _value((field.value or b"").decode())

    try:
        kept_in_memory = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = create_form_parser(
            {"Content-Type": headers["content-type"].encode("latin-1")}, on_field, on_file, kept_in_memory
        )
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise RequestError(400, f"the body is no {FORM}") from None
    if not files:
        raise RequestError(400, "the form has no file; send one with: curl -F file=@image.png")
    rows = [
        {name: cells[row] for name, cells in files.items() if row < len(cells)}
        for row in range(max(map(len, files.values())))
    ]
    return json.dumps({RECORDS: rows} | ({PARAMS: parameters} if parameters else {})).encode()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
