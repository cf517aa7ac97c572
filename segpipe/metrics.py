"""Overlap metrics per case, with one convention for empty masks.

A case is a whole volume or image; foreground classes only; means are over cases, never over pooled pixels. Where
reference and prediction are both empty a case has no value (NaN) and is left out of the mean, but counted; where only
one of them is empty, a missed or a falsely found lesion, every overlap metric is 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.data.volume import IGNORE

CONVENTION = (
    "Per case (a whole volume or image), foreground only, then averaged over cases. Reference and prediction both "
    "empty: left out of the mean, but counted. Only one of them empty (missed, or false alarm): 0."
)
Values = NDArray[np.float64]


class Counts(NamedTuple):
    """Voxels in both masks, in the prediction and in the reference; arrays of one shape, or numbers."""

    both: ArrayLike
    predicted: ArrayLike
    reference: ArrayLike


# Numerator and denominator from the voxels in (both, predicted, reference).
OVERLAPS: dict[str, Callable[[Values, Values, Values], tuple[Values, Values]]] = {
    "dice": lambda b, p, r: (2 * b, p + r),
    "iou": lambda b, p, r: (b, p + r - b),
    "precision": lambda b, p, r: (b, p),
    "recall": lambda b, p, r: (b, r),
}


def overlap(name: str, counts: Counts) -> Values:
    """One of dice, iou, precision, recall; in 0..1, or NaN where both masks are empty."""
    both, predicted, reference = (np.asarray(c, dtype=np.float64) for c in counts)
    above, below = OVERLAPS[name](both, predicted, reference)
    value = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return np.where(predicted + reference > 0, value, np.nan)


def count(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], classes: int) -> Counts:
    """Counts per foreground class, K each, of two label arrays of one shape with values 0..K. Voxels whose reference is
    IGNORE count nowhere.
    """
    bins = classes + 1
    both = np.bincount(reference[prediction == reference].ravel(), minlength=bins)[1:bins]
    predicted = np.bincount(prediction[reference != IGNORE], minlength=bins)[1:bins]
    return Counts(both, predicted, np.bincount(reference.ravel(), minlength=bins)[1:bins])


def class_mean(values: Values) -> float:
    """Mean over a case's classes that have a value; NaN where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def outcome(counts: Counts) -> str:
    """`found`, `missed` (no prediction), `false alarm` (no reference) or `both empty`, over all classes."""
    predicted, reference = bool(np.any(counts.predicted)), bool(np.any(counts.reference))
    return {
        (True, True): "found",
        (False, True): "missed",
        (True, False): "false alarm",
        (False, False): "both empty",
    }[predicted, reference]
