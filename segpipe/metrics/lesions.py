"""Lesions: connected components (26 neighbours in 3-D, 8 in 2-D), found if one voxel overlaps, as in ISLES'22."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.data import components

Mask = NDArray[np.bool_]


class Lesions(NamedTuple):
    """Each reference lesion's voxels and whether it was found; each predicted lesion's and whether it is true."""

    sizes: NDArray[np.int64]
    found: Mask
    predicted_sizes: NDArray[np.int64]
    true: Mask


class Tally(NamedTuple):
    """How many lesions the reference has and how many are found; how many are predicted and how many are false."""

    lesions: int
    found: int
    predicted: int
    false: int


def match(prediction: Mask, reference: Mask) -> Lesions:
    """The lesions of two masks of one shape, in the order of their first voxels."""
    return Lesions(*_components(reference, prediction), *_components(prediction, reference))


def _components(mask: Mask, other: Mask) -> tuple[NDArray[np.int64], Mask]:
    parts, number = components.label(mask)
    sizes, shared = (np.bincount(parts[where], minlength=number + 1)[1:] for where in (mask, mask & other))
    return sizes, shared > 0


def tally(lesions: Iterable[Lesions]) -> Tally:
    """Counts over classes, or over cases."""
    every = list(lesions)
    return Tally(
        lesions=sum(len(one.sizes) for one in every),
        found=sum(int(one.found.sum()) for one in every),
        predicted=sum(len(one.predicted_sizes) for one in every),
        false=sum(int((~one.true).sum()) for one in every),
    )


def scores(counts: Tally) -> dict[str, float]:
    """lesion_recall: share of the reference's lesions that are found; lesion_precision: share of the predicted lesions
    that are true; lesion_f1: 2 found / (2 found + missed + false), the F1 of ISLES'22 (Hernandez Petzsche et al. 2022).
    All NaN without any lesion, all 0 if only one mask has some.
    """
    if not counts.lesions + counts.predicted:
        return dict.fromkeys(("lesion_recall", "lesion_precision", "lesion_f1"), float("nan"))
    true, missed = counts.predicted - counts.false, counts.lesions - counts.found
    return {
        "lesion_recall": counts.found / max(counts.lesions, 1),
        "lesion_precision": true / max(counts.predicted, 1),
        "lesion_f1": 2 * counts.found / (2 * counts.found + missed + counts.false),
    }
