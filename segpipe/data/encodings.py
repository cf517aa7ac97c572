"""Masks and probabilities as text or JSON, on the grid of their file."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.data import codecs
from segpipe.data.codecs import Decoded
from segpipe.errors import InputError, nearest

FILES = ("png", "nifti", "tiff")
OUTPUTS = ("auto", *FILES, "rle", "polygons", "none")
Plane = NDArray[np.bool_]


def encode(
    mask: NDArray[np.uint8], like: Decoded, classes: tuple[str, ...], output: str
) -> str | list[dict[str, Any]] | None:
    """A mask D,H,W in the form `output`.

    `png`, `nifti`, `tiff`: base64 text of the file that `codecs.encode_mask` writes; `auto` is the one that fits.
    `rle`: run lengths of each class and slice as in COCO. `polygons`: outlines of each class and slice. `none`: None.
    Slices, rows and columns are those that the file stores: of a NIfTI `values[:, :, slice]`.
    Raises InputError for an unknown output, and for one that does not suit the file.
    """
    if output not in OUTPUTS:
        raise InputError(f"output={output}: expected one of {', '.join(OUTPUTS)}{nearest(output, list(OUTPUTS))}")
    own = like.geometry.form
    if output in FILES and output != own:
        raise InputError(f"output={output}: masks of this file are {own}; ask for {own}, rle, polygons or none")
    if output == "none":
        return None
    if output not in ("rle", "polygons"):
        return _base64(codecs.encode_mask(mask, like, len(classes)))
    stored, found = like.geometry.as_stored(mask), list[dict[str, Any]]()
    for number, name in enumerate(classes, 1):
        inside = stored == number
        for k in np.flatnonzero(inside.any(axis=(0, 1))).tolist():
            plane = inside[:, :, k]
            shapes = [run_lengths(plane)] if output == "rle" else outlines(plane)
            found += [{"class": name, "slice": k, **shape} for shape in shapes]
    return found


def run_lengths(plane: Plane) -> dict[str, Any]:
    """`size` and `counts` of a plane H,W as COCO has them: column after column, first how many are background."""
    column_major = plane.ravel(order="F")
    changes = np.flatnonzero(column_major[1:] != column_major[:-1]) + 1
    counts: list[int] = np.diff(changes, prepend=0, append=plane.size).tolist()
    return {"size": list(plane.shape), "counts": [0, *counts] if plane[0, 0] else counts}


def outlines(plane: Plane) -> list[dict[str, Any]]:
    """Closed lines around the foreground of a plane H,W and around its holes, by marching squares at 0.5 (Lorensen and
    Cline 1987).

    `points` are x, y in pixels from the top left corner, the first pixel's centre at 0.5, 0.5; the last joins the
    first. The foreground is where a pixel's centre lies within more of the other lines than of those that are a `hole`.
    """
    from skimage.measure import find_contours

    return [
        {"points": _corners(line).tolist(), "hole": bool(_area(line) > 0)}
        for line in find_contours(np.pad(plane, 1).astype(np.float64), 0.5)
    ]


def _corners(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points x, y of a closed line of row, column on the padded plane, without those within a straight piece."""
    points = line[:-1, ::-1] - 0.5
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turns: Plane = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return points[turns]


def _area(line: NDArray[np.float64]) -> float:
    """Twice the area within a closed line of row, column; positive around a hole, as `find_contours` turns."""
    y, x = (line - line[0]).T
    return float(np.sum(y[:-1] * x[1:] - y[1:] * x[:-1]))


def encode_probabilities(foreground: NDArray[np.float32], like: Decoded) -> str:
    """Probabilities D,H,W as base64 text of a file in the form of theirs: 16-bit grey (65535 is 1) of a picture or a
    stack, float32 of a NIfTI.
    """
    return _base64(like.geometry.encode_probabilities(foreground))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
