"""A page to try a model: it shows the segmentation of files that are dropped on it. Routes for `http_server.run`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from markdown_it import MarkdownIt
from mlflow.exceptions import MlflowException
from starlette.responses import Response

from segpipe.config.sections import ServingConfig
from segpipe.data import components
from segpipe.errors import InputError, one_line
from segpipe.inference.input_assembly import unlike
from segpipe.inference.quantities import findings
from segpipe.plots.colours import class_colours
from segpipe.registry import champions
from segpipe.server import request_checks
from segpipe.server.loaded_model import Served
from segpipe.server.messages import Handler, Request, as_json
from segpipe.server.page import display
from segpipe.serving import request

PAGE = Path(__file__).with_name("page.html")
NOT_FRAMED = {"Content-Security-Policy": "frame-ancestors 'none'"}


def routes(config: ServingConfig) -> dict[tuple[str, str], Handler]:
    """Handlers by method and path, for `more` of `http_server.run`."""
    content = PAGE.read_bytes()

    def answer(asked: Request, body: bytes) -> Response:
        request_checks.check_type({"content-type": asked.headers.get("content-type", "")})
        return as_json(segment(_parse(body), asked.served, config.max_pixels))

    return {
        ("GET", "/"): lambda *_: Response(content, headers=NOT_FRAMED, media_type="text/html"),
        ("GET", "/page/model"): lambda asked, _: as_json(describe(asked.served)),
        ("POST", "/page/segment"): answer,
    }


def _parse(body: bytes) -> dict[str, Any]:
    try:
        row = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the body is not JSON") from None
    if not isinstance(row, dict):
        raise InputError("the body is not a JSON object of columns and base64 text")
    return row


def describe(served: Served) -> dict[str, Any]:
    """What the page says of a model: name, version, threshold, columns, channels, classes, and the card as HTML."""
    spec, facts = served.predictor.spec, served.facts
    return {
        "name": facts["name"] or "segpipe",
        "version": served.version,
        "threshold": spec.threshold,
        "columns": list(request.columns(spec)),
        "pictures": spec.kind == "picture",
        "channels": list(spec.channels),
        "classes": list(spec.classes),
        "colours": list(class_colours(spec.classes)),
        "card": _card(facts["name"], facts["version"]),
    }


def _card(name: str | None, version: str | None) -> str:
    """The version's description; empty for a model that is not registered."""
    if name is None or version is None:
        return ""
    try:
        return render(champions.version(name, version).description or "")
    except (InputError, MlflowException) as error:
        return render(f"The card can't be read: {one_line(error)}")


def render(markdown: str) -> str:
    """Markdown as HTML; HTML inside it is shown as text."""
    return str(MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown))


def segment(row: dict[str, Any], served: Served, most: int) -> dict[str, Any]:
    """What `display.encode` gives of one row of /invocations, with the numbers of a served row.

    Raises InputError as `serving.read` and `Predictor.prepare` do, and for more slices than a browser can show.
    """
    predictor, spec = served.predictor, served.predictor.spec
    like, image, warnings = request.read(row, spec, most)
    prepared = predictor.prepare(image, like.spacing)
    warnings = [*warnings, *unlike(image, like.spacing, spec)]
    found = predictor.label(prepared, 0.0, spec.tta)  # labels everywhere: the page has its threshold
    if not np.isfinite(found.foreground.max()):
        raise InputError("values too large: the network's answer is not a number")
    every = np.where(found.foreground >= spec.threshold, found.mask, np.uint8(0))
    mask = components.clean(every, spec.largest_component, spec.min_area)
    if (mask != every).any():
        warnings = [*warnings, "components that the model drops at its threshold are not shown"]
    shown = np.where(mask == every, found.foreground, np.float32(0))
    seen = display.encode(like, image, spec.channels, found.mask, shown)
    if seen["coarser"] != 1:
        warnings = [*warnings, f"shown at 1/{seen['coarser']} of its resolution; numbers and the saved mask are whole"]
    numbers = findings(mask, found, like, spec.classes)
    return {"version": served.version, "threshold": spec.threshold, **seen, **numbers, "warnings": warnings}
