"""Voxel by voxel: ranking and calibration of the foreground probability, near the reference or everywhere.

Curves over many cases come from histograms, which add up: two rows of BINS equal-width bins of the foreground
probability, negatives and positives, bins closed below, 1.0 in the last. They are exact to the width of a bin.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.metrics.overlaps import Counts, overlap, share
from segpipe.metrics.surface import ROUNDING, bounding_box

BINS = 1000
CALIBRATION_BINS = 15
Mask = NDArray[np.bool_]
Probability = NDArray[np.float32]
Values = NDArray[np.float64]
Histogram = NDArray[np.int64]


class Confusion(NamedTuple):
    """Voxels that are truly and falsely foreground, falsely and truly background."""

    tp: int
    fp: int
    fn: int
    tn: int


class Reliability(NamedTuple):
    """Per bin of probability: mean probability, observed share of foreground (both NaN in an empty bin), voxels."""

    probability: Values
    observed: Values
    voxels: NDArray[np.int64]


def band(reference: Mask, spacing: Sequence[float], width: float) -> Mask:
    """The voxels within `width`, in the unit of `spacing`, of the reference, including it; none if it is empty."""
    from scipy.ndimage import distance_transform_edt

    near = np.zeros_like(reference)
    box = bounding_box(reference, [int(width * ROUNDING / side) for side in spacing])
    if reference.any():
        near[box] = distance_transform_edt(~reference[box], sampling=spacing) <= width * ROUNDING
    return near


def confusion(prediction: Mask, reference: Mask) -> Confusion:
    """The four counts of two masks of the same shape."""
    counted = (prediction & reference, prediction & ~reference, reference & ~prediction)
    tp, fp, fn = (int(mask.sum()) for mask in counted)
    return Confusion(tp, fp, fn, prediction.size - tp - fp - fn)


def calibration_error(probability: Probability, reference: Mask, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of the foreground probability (Guo et al. 2017, binary form): the mean over voxels of
    |mean probability - observed share| of their bin, equal-width and closed below; NaN without a voxel.
    """
    if not probability.size:
        return float("nan")
    index = _bin(probability, bins).ravel()
    gap = np.bincount(index, weights=np.subtract(probability, reference, dtype=np.float64).ravel(), minlength=bins)
    return float(np.abs(gap).sum() / probability.size)


def scores(probability: Probability, prediction: Mask, reference: Mask) -> dict[str, float]:
    """The metrics over the voxels of a band, 1-D each: `accuracy`, `precision`, `recall`, `f1` of the mask, `roc_auc`
    and `pr_auc` (average precision) of the probability (NaN where the reference has one label only), `ece`; all NaN
    without a voxel.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    tp, fp, fn, tn = confusion(prediction, reference)
    counts = Counts(tp, tp + fp, tp + fn)
    ranked = 0 < tp + fn < reference.size
    return {
        "accuracy": (tp + tn) / reference.size if reference.size else float("nan"),
        "precision": float(overlap("precision", counts)),
        "recall": float(overlap("recall", counts)),
        "f1": float(overlap("dice", counts)),
        "roc_auc": float(roc_auc_score(reference, probability)) if ranked else float("nan"),
        "pr_auc": float(average_precision_score(reference, probability)) if ranked else float("nan"),
        "ece": calibration_error(probability, reference),
    }


def _bin(probability: Probability, bins: int) -> NDArray[np.int64]:
    return np.minimum((probability * bins).astype(np.int64), bins - 1)


def histograms(probability: Probability, reference: Mask, where: Mask) -> Histogram:
    """Negatives and positives per bin of probability, 2,BINS, over the voxels in `where`."""
    index = _bin(probability[where], BINS) + BINS * reference[where]
    return np.bincount(index, minlength=2 * BINS).reshape(2, BINS)


def _from_the_top(histogram: Histogram) -> tuple[Values, Values]:
    """Negatives and positives at or above each bin's lower edge, from none (above 1) to all (0): 2 x BINS + 1."""
    negatives, positives = np.cumsum(np.flip(histogram, 1), axis=1, dtype=np.float64)
    return np.append(0.0, negatives), np.append(0.0, positives)


def roc(histogram: Histogram) -> tuple[Values, Values]:
    """False and true positive rate, BINS + 1 each, as the threshold falls from above 1 to 0; NaN if there are none."""
    negatives, positives = _from_the_top(histogram)
    return share(negatives, negatives[-1]), share(positives, positives[-1])


def pr(histogram: Histogram) -> tuple[Values, Values]:
    """Recall and precision, BINS + 1 each, as the threshold falls from above 1 to 0; precision of no voxel is 1."""
    negatives, positives = _from_the_top(histogram)
    predicted = negatives + positives
    precision = np.divide(positives, predicted, out=np.ones_like(predicted), where=predicted > 0)
    return share(positives, positives[-1]), precision


def reliability(histogram: Histogram, bins: int = CALIBRATION_BINS) -> Reliability:
    """A reliability diagram of `bins` equal-width bins; every voxel counts with the centre of its fine bin."""
    centres = (np.arange(BINS) + 0.5) / BINS
    index, voxels = (centres * bins).astype(np.int64), histogram.sum(axis=0)
    total = np.bincount(index, weights=voxels, minlength=bins)
    probability = np.bincount(index, weights=voxels * centres, minlength=bins)
    positives = np.bincount(index, weights=histogram[1], minlength=bins)
    return Reliability(share(probability, total), share(positives, total), total.astype(np.int64))


def dice_by_threshold(histogram: Histogram) -> tuple[Values, Values]:
    """Thresholds 0, 1/BINS, ..., the last bin's lower edge, and the Dice of the voxels of the histogram if those from
    the threshold on are foreground; NaN where there is no foreground on either side.
    """
    negatives, positives = (side[:0:-1] for side in _from_the_top(histogram))
    return np.arange(BINS) / BINS, share(2 * positives, negatives + positives + positives[0])
