"""Checks of a request to /invocations before MLflow sees it."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from mlflow.exceptions import MlflowException
from mlflow.types import ParamSchema
from mlflow.types.schema import ParamSpec

from segpipe.errors import nearest
from segpipe.server.messages import JSON, RequestError

RECORDS, SPLIT, PARAMS = "dataframe_records", "dataframe_split", "params"
INPUTS = (RECORDS, SPLIT, "instances", "inputs")
LONGEST_NAME = 40


def check_type(headers: Mapping[str, str]) -> None:
    """Raises RequestError (415) for everything but JSON in UTF-8, and forms, which are asked about before.

    CSV has no place for parameters, and parquet is one more parser that strangers could reach.
    """
    mime, _, rest = headers.get("content-type", "").partition(";")
    if mime.strip().lower() != JSON or rest.strip().lower().replace('"', "") not in ("", "charset=utf-8"):
        raise RequestError(415, f"Content-Type must be {JSON}, in UTF-8")


def check_encoding(headers: Mapping[str, str]) -> None:
    """Raises RequestError (415) for a compressed body."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError(415, "Content-Encoding: the body must not be compressed")


def check(body: bytes, parameters: ParamSchema) -> int:
    """The number of rows of a request.

    Raises RequestError (400) unless it is an object with exactly one of INPUTS and known `params` of the right types.
    """
    asked = _parse(body)
    given = [name for name in asked if name in INPUTS]
    if unknown := [name for name in asked if name not in (*INPUTS, PARAMS)]:
        raise RequestError(400, f"unknown field {_quote(unknown[0], (*INPUTS, PARAMS))}")
    if len(given) != 1:
        raise RequestError(400, f"expected exactly one of {', '.join(INPUTS)}; found {' and '.join(given) or 'none'}")
    _check_parameters(asked.get(PARAMS, {}), parameters)
    kind, rows = given[0], asked[given[0]]
    if kind == RECORDS:
        return _check_records(rows)
    return _check_split(rows) if kind == SPLIT else _check_tensors(kind, rows)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestError(400, f"the body is not JSON{where}") from None
    if not isinstance(asked, dict):
        raise RequestError(400, "the body must be a JSON object")
    return asked


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(400, f"{name} is not JSON; every number must be finite")


def _quote(name: str, known: tuple[str, ...]) -> str:
    """A name cut short for an answer, with the nearest known one."""
    return repr(name[:LONGEST_NAME]) + nearest(name, list(known)) + f"; known: {', '.join(known) or 'none'}"


def _check_parameters(given: object, parameters: ParamSchema) -> None:
    if not isinstance(given, dict):
        raise RequestError(400, "params must be an object")
    specs = {spec.name: spec for spec in parameters.params}
    for name, value in given.items():
        if name not in specs:
            raise RequestError(400, f"unknown parameter {_quote(name, tuple(specs))}")
        try:
            ParamSpec.validate_param_spec(value, specs[name])
        except MlflowException:
            raise RequestError(400, f"parameter {name}: not a {specs[name].to_dict()['type']}") from None


def _check_records(rows: object) -> int:
    if not isinstance(rows, list) or not rows:
        raise RequestError(400, f"{RECORDS} must be a list of objects, one a row")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RequestError(400, f"row {number}: not an object", number, "not an object")
    return len(rows)


def _check_split(frame: object) -> int:
    if not isinstance(frame, dict) or not {"columns", "data"} <= frame.keys() <= {"columns", "data", "index"}:
        raise RequestError(400, f"{SPLIT} must be an object with 'columns' and 'data'")
    columns, rows = frame["columns"], frame["data"]
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise RequestError(400, f"{SPLIT}: 'columns' must be a list of names")
    if not isinstance(rows, list) or not rows:
        raise RequestError(400, f"{SPLIT}: 'data' must be a list of rows")
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            reason = f"not a list of {len(columns)} values"
            raise RequestError(400, f"row {number}: {reason}", number, reason)
    index = frame.get("index")
    if index is not None and (not isinstance(index, list) or len(index) != len(rows)):
        raise RequestError(400, f"{SPLIT}: 'index' must have one entry a row")
    return len(rows)


def _check_tensors(kind: str, values: object) -> int:
    first = next(iter(values.values()), None) if isinstance(values, dict) else values
    if not isinstance(first, list) or not first:
        raise RequestError(400, f"{kind} must be a list, or an object of lists")
    return len(first)
