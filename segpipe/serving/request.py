"""A client's request to a served model: rows of files or tensors, parameters, and how either is refused."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.types import DataType
from numpy.typing import NDArray

from segpipe.data import codecs, encodings
from segpipe.data.volume import Spacing
from segpipe.errors import InputError, nearest
from segpipe.inference.input_assembly import gathered
from segpipe.inference.spec import Labelling, ModelSpec

COLUMN, SPACING = "image", "spacing"
KINDS = {float: DataType.double, str: DataType.string, bool: DataType.boolean, int: DataType.long}
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:|[~./\\]|[^\n]*\.[a-z0-9]{2,4}$", re.IGNORECASE)
LONGEST_ADDRESS, LARGEST_SPACING_MM = 1024, 1000

Image = NDArray[np.float32]


class Parameters(NamedTuple):
    """The parameters of a request; those of the labelling are the model's by default."""

    threshold: float
    output: str = "auto"
    tta: bool = False
    return_probabilities: bool = False
    largest_component: bool = False
    min_area: int = 0

    @property
    def labelling(self) -> Labelling:
        """How probabilities become labels."""
        return Labelling.of(self)


class Refusal(MlflowException):
    """A request that is refused, or one row of it: HTTP 400, or 500 where the fault is not the client's.

    The client gets this line alone: MLflow's server puts the input in front of `message`.
    """

    def __init__(self, reason: str, row: int | None = None, error_code: int = INVALID_PARAMETER_VALUE) -> None:
        line = reason if row is None else f"row {row}: {reason}"
        super().__init__(line, error_code=error_code)
        self.reason, self.row, self.line = reason, row, line

    def serialize_as_json(self) -> str:
        blamed = {} if self.row is None else {"row": self.row, "reason": self.reason}
        return json.dumps({"error_code": self.error_code, "message": self.line, **blamed})


def columns(spec: ModelSpec) -> tuple[str, ...]:
    """The columns of a request: `image`, or the channels' names for models of several files."""
    return (COLUMN,) if spec.kind == "picture" or len(spec.channels) == 1 else spec.channels


def parameters(given: Mapping[str, Any] | None, spec: ModelSpec) -> Parameters:
    """The parameters of a request; null means the default. Raises Refusal naming the parameter."""
    defaults: dict[str, Any] = Parameters(**spec.labelling._asdict())._asdict()
    values = {name: value for name, value in (given or {}).items() if value is not None}
    for name in values:
        if name not in defaults:
            raise Refusal(f"unknown parameter {name[:40]!r}{nearest(name, list(defaults))}: {', '.join(defaults)}")
    values = {name: _checked(name, value, type(defaults[name])) for name, value in values.items()}
    wanted = Parameters(**(defaults | values))
    if not 0 < wanted.threshold < 1:
        raise Refusal(f"threshold {wanted.threshold} is not between 0 and 1")
    if wanted.output not in encodings.OUTPUTS:
        known = list(encodings.OUTPUTS)
        raise Refusal(f"output {wanted.output[:40]!r}{nearest(wanted.output, known)} is none of {', '.join(known)}")
    if wanted.min_area < 0:
        raise Refusal(f"min_area {wanted.min_area} is below 0")
    return wanted


def _checked(name: str, value: Any, kind: type) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    if type(plain) is kind:
        return plain
    if kind is float and type(plain) is int:
        return float(plain)
    raise Refusal(f"{name} takes {KINDS[kind].name}, not {type(value).__name__}")


def rows_of(given: object, spec: ModelSpec, most: int) -> list[dict[str, Any]]:
    """The rows of a DataFrame, of an array N,C,H,W (N,H,W for one channel), of columns or of records.

    Raises Refusal for no rows, more than `most`, unknown columns and other shapes.
    """
    names, rows = _rows(given, spec)
    known = list(dict.fromkeys((*columns(spec), COLUMN, SPACING)))
    for name in names:
        if name not in known:
            raise Refusal(f"unknown column {name[:40]!r}{nearest(name, known)}; this model takes {', '.join(known)}")
    if len(set(names)) < len(names):
        raise Refusal("a column is there twice")
    if not rows:
        raise Refusal(f"no row with {'+'.join(columns(spec))}")
    if len(rows) > most:
        raise Refusal(f"{len(rows)} rows, at most {most} are taken: send several requests")
    return rows


def _rows(given: object, spec: ModelSpec) -> tuple[list[str], list[dict[str, Any]]]:
    if isinstance(given, pd.DataFrame):
        names = [str(name) for name in given.columns]
        return names, [dict(zip(names, cells, strict=True)) for cells in given.itertuples(index=False, name=None)]
    if isinstance(given, np.ndarray):
        images = given[:, None] if given.ndim == 3 and len(spec.channels) == 1 else given
        if images.ndim != 4 or images.dtype.kind not in "biuf":
            raise Refusal(f"{given.dtype} of shape {given.shape}: expected numbers N,C,H,W with C={len(spec.channels)}")
        return [COLUMN], [{COLUMN: image} for image in images]
    if isinstance(given, dict):
        cells = [_cells(values) for values in given.values()]
        if len({len(one) for one in cells}) > 1:
            raise Refusal("columns of unequal length")
        return list(given), [dict(zip(given, row, strict=True)) for row in zip(*cells, strict=True)]
    if isinstance(given, list) and all(isinstance(row, dict) for row in given):
        return list(dict.fromkeys(name for row in given for name in row)), given
    raise Refusal(f"{type(given).__name__}: expected rows with {'+'.join(columns(spec))}")


def _cells(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray) and values.ndim:
        return list(values)
    return values if isinstance(values, list) else [values]


def read(row: Mapping[str, Any], spec: ModelSpec, most: int) -> tuple[codecs.Decoded, Image, list[str]]:
    """The file that gives the geometry, the image C,D,H,W, and warnings.

    Raises InputError naming the column where something is missing, unreadable, of more than `most` pixels or voxels,
    or does not fit the model.
    """
    plain = {
        name: cell.item() if isinstance(cell, np.ndarray) and not cell.ndim else cell for name, cell in row.items()
    }
    cells = {name: cell for name, cell in plain.items() if not (pd.api.types.is_scalar(cell) and pd.isna(cell))}
    spacing = _spacing(cells.pop(SPACING)) if SPACING in cells else None
    names = columns(spec)
    given = [name for name in names if name in cells and name != COLUMN]
    if given and COLUMN in cells and COLUMN not in names:
        raise InputError(f"{COLUMN} and {given[0]} are both given: one file of all channels, or one for each")
    if not given and COLUMN in cells:
        names = (COLUMN,)
    if names == (COLUMN,) and isinstance(cells.get(COLUMN), list | tuple | np.ndarray):
        first = _from_numbers(cells[COLUMN], most)
        image, warnings = first.array, list[str]()
    else:
        files = {name: _decode(cells, name, most) for name in names}
        first, (image, warnings) = files[names[0]], gathered(files, spec)
    if spacing is not None and first.spacing is not None:
        return first, image, [*warnings, f"{SPACING}: ignored, the file tells its own"]
    return first if spacing is None else replace(first, spacing=spacing), image, warnings


def _decode(cells: dict[str, Any], name: str, most: int) -> codecs.Decoded:
    if name not in cells:
        raise InputError(f"column '{name}' is missing")
    value = cells[name]
    if isinstance(value, bytes | bytearray | memoryview):
        return codecs.decode(bytes(value), name, most=most)
    if not isinstance(value, str):
        raise InputError(f"{name}: {type(value).__name__}, expected a file's bytes as base64 text")
    try:
        data = base64.b64decode("".join(value.split()), validate=True)
    except (binascii.Error, ValueError):
        if len(value) <= LONGEST_ADDRESS and ADDRESS.match(value):
            raise InputError(f"{name}: looks like a path or URL; send the file's bytes as base64") from None
        raise InputError(f"{name}: not base64") from None
    return codecs.decode(data, name, most=most)


def _from_numbers(value: Any, most: int) -> codecs.Decoded:
    """Raw intensities C,H,W as a picture without a spacing."""
    try:
        with np.errstate(over="ignore"):
            array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{COLUMN}: expected numbers C,H,W, or a file's bytes as base64 text") from None
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"{COLUMN}: numbers of shape {array.shape}, expected C,H,W")
    if array[0].size > most:
        raise InputError(f"{COLUMN}: {array.shape[1]} x {array.shape[2]} pixels, at most {most:,} are taken")
    return codecs.Decoded(np.ascontiguousarray(array[:, None]), None)


def _spacing(value: Any) -> Spacing:
    parts = value.strip("[]() ").split(",") if isinstance(value, str) else value
    try:
        sizes = [float(part) for part in parts]
    except (TypeError, ValueError, OverflowError):
        sizes = []
    if len(sizes) not in (2, 3) or not all(0 < size <= LARGEST_SPACING_MM for size in sizes):
        raise InputError(f"{SPACING}: expected [row, column] or [slice, row, column], mm, above 0")
    slices, rows, cols = (1.0, *sizes)[-3:]
    return slices, rows, cols
