"""Overlap of masks from voxel counts, per class."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segpipe.data.volume import IGNORE

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


def share(part: ArrayLike, whole: ArrayLike) -> Values:
    """`part` as a share of `whole`, an array of its shape or a number; NaN where that is not above 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    quotient: Values = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    return quotient


def _known(counts: Counts) -> tuple[Values, Values, Values]:
    both, predicted, reference = (np.asarray(c, dtype=np.float64) for c in counts)
    return both, predicted, reference


def overlap(name: str, counts: Counts) -> Values:
    """One of dice, iou, precision, recall: within 0..1, NaN if both masks are empty."""
    both, predicted, reference = _known(counts)
    above, below = OVERLAPS[name](both, predicted, reference)
    value = np.divide(above, below, out=np.zeros_like(below), where=below > 0)
    return np.where(predicted + reference > 0, value, np.nan)


def specificity(counts: Counts, voxels: int) -> Values:
    """Share of the `voxels` outside the reference that are outside the prediction too; NaN if both masks are empty or
    the reference is the whole image.
    """
    both, predicted, reference = _known(counts)
    outside = voxels - reference
    return np.where(predicted + reference > 0, share(outside - predicted + both, outside), np.nan)


def volume_errors(counts: Counts, voxel_ml: float) -> dict[str, Values]:
    """Absolute difference of the volumes, in ml, and as a share of the reference's (NaN where that is empty)."""
    _, predicted, reference = _known(counts)
    error = np.abs(predicted - reference)
    return {"volume_error_ml": error * voxel_ml, "volume_error_relative": share(error, reference)}


def count(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], classes: int) -> Counts:
    """Counts of each foreground class, K each, in label arrays 0..K of one shape, but where the reference is IGNORE."""
    bins = classes + 1
    both = np.bincount(reference[prediction == reference].ravel(), minlength=bins)[1:bins]
    predicted = np.bincount(prediction[reference != IGNORE], minlength=bins)[1:bins]
    return Counts(both, predicted, np.bincount(reference.ravel(), minlength=bins)[1:bins])


def confusion(prediction: NDArray[np.uint8], reference: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Voxels of each label of the reference (rows, 0 to K) by the label that was predicted (columns), but IGNORE."""
    labels, known = classes + 1, reference != IGNORE
    pairs = reference[known].astype(np.int64) * labels + prediction[known]
    return np.bincount(pairs, minlength=labels**2).reshape(labels, labels)


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean over the labels, background included, of the IoU of all voxels together, as benchmarks of scenes have it
    (Everingham et al. 2015); labels that no reference has are left out.
    """
    both, reference = np.diag(confusion).astype(np.float64), confusion.sum(axis=1)
    known = reference > 0
    return class_mean(share(both, confusion.sum(axis=0) + reference - both)[known])


def class_mean(values: Values) -> float:
    """Mean over the classes of a case that have a value; NaN if none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def outcome(counts: Counts) -> str:
    """`found`, `missed` (no prediction), `false alarm` (no reference) or `both empty`, over all classes."""
    without_reference, with_reference = ("both empty", "false alarm"), ("missed", "found")
    return (with_reference if np.any(counts.reference) else without_reference)[bool(np.any(counts.predicted))]
