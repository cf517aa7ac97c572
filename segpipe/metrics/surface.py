"""Distances between the surfaces of two masks, computed once for HD95, ASSD and NSD.

A surface is the mask without its erosion (6 neighbours in 3-D, 4 in 2-D); voxels at the array's border belong to it, as
in MONAI and MedPy.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Values = NDArray[np.float64]
# Spacings come from headers with seven digits: rounding must not exclude a voxel that lies exactly at a limit.
ROUNDING = 1 + 1e-6
REACH = 3  # voxels along an axis within which a neighbour is looked up


class Distances(NamedTuple):
    """From each voxel of the predicted surface to the reference's, and the other way round. An empty mask has no such
    voxel; those of the other one are then infinitely far. `diagonal` is the whole image's.
    """

    predicted: Values
    reference: Values
    diagonal: float

    def by_convention(self, formula: Callable[[Values, Values], float], one_empty: float) -> float:
        """A value of the two directions: NaN where both masks are empty, `one_empty` where one is."""
        if self.predicted.size and self.reference.size:
            return formula(self.predicted, self.reference)
        return one_empty if self.predicted.size or self.reference.size else float("nan")


def bounding_box(mask: Mask, margin: Sequence[int] | None = None) -> tuple[slice, ...]:
    """The smallest box around a mask, enlarged by a margin of voxels along each axis; empty where the mask is."""
    box = []
    for axis, extra in enumerate(margin or (0,) * mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(max(0, hit[0] - extra), hit[-1] + 1 + extra) if hit.size else slice(0, 0))
    return tuple(box)


def surface(mask: Mask) -> Mask:
    """The voxels of a mask that have a neighbour outside it, or none because the array ends."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        here, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        here[1:] &= source[:-1]
        here[:-1] &= source[1:]
        here[:1] = here[-1:] = False
    return mask & ~inner


def distances(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Distances:
    """Distances between the surfaces of two masks of one shape, in the unit of `spacing` (one number an axis)."""
    diagonal = float(np.linalg.norm(np.multiply(prediction.shape, spacing)))
    box = bounding_box(prediction | reference)
    predicted, expected = surface(prediction[box]), surface(reference[box])
    return Distances(_to(expected, predicted, spacing), _to(predicted, expected, spacing), diagonal)


def _to(target: Mask, source: Mask, spacing: Sequence[float]) -> Values:
    """From each voxel of `source` to the nearest of `target`, in no order: near ones looked up, others from a tree."""
    from scipy.spatial import cKDTree

    if not target.any():
        return np.full(np.count_nonzero(source), np.inf)
    padded = np.pad(target, REACH)
    there, left, found = padded.ravel(), np.flatnonzero(np.pad(source, REACH)), []
    for length, offsets in _shells(padded.shape, spacing):
        hit = np.zeros(left.shape, dtype=np.bool_)
        for offset in offsets:
            hit |= there.take(left + offset)
        found.append(np.full(np.count_nonzero(hit), length))
        left = left[~hit]
    if left.size:
        tree = cKDTree(_points(np.flatnonzero(there), padded.shape, spacing), 32, False, balanced_tree=False)
        found.append(tree.query(_points(left, padded.shape, spacing))[0])
    return np.concatenate(found)


def _shells(shape: tuple[int, ...], spacing: Sequence[float]) -> list[tuple[float, NDArray[np.int64]]]:
    """Lengths, ascending, with the offsets in a flat array that have them: all that are shorter than any offset of more
    than REACH voxels along an axis.
    """
    offsets = np.indices((2 * REACH + 1,) * len(shape)).reshape(len(shape), -1).T - REACH
    lengths = np.linalg.norm(offsets * spacing, axis=1)
    flat = offsets @ np.cumprod((1, *shape[:0:-1]))[::-1]
    near = lengths < (REACH + 1) * min(spacing)
    return [(length, flat[near & (lengths == length)]) for length in np.unique(lengths[near])]


def _points(flat: NDArray[np.int64], shape: tuple[int, ...], spacing: Sequence[float]) -> Values:
    points: Values = np.stack(np.unravel_index(flat, shape), axis=1) * np.asarray(spacing)
    return points


def hd95(surfaces: Distances) -> float:
    """The larger of the two directed 95th percentiles (Taha and Hanbury 2015)."""
    return surfaces.by_convention(
        lambda p, r: float(max(np.percentile(p, 95), np.percentile(r, 95))), surfaces.diagonal
    )


def assd(surfaces: Distances) -> float:
    """Mean distance over the voxels of both surfaces together, as MedPy 0.5, MONAI and Maier-Hein et al. 2024 have it;
    not the mean of the two directed means.
    """
    return surfaces.by_convention(lambda p, r: float(p.sum() + r.sum()) / (p.size + r.size), surfaces.diagonal)


def nsd(surfaces: Distances, tolerance: float) -> float:
    """Normalised surface Dice: share of both surfaces' voxels within `tolerance` of the other (Nikolov et al. 2018)."""
    return surfaces.by_convention(lambda p, r: float(np.mean(np.append(p, r) <= tolerance * ROUNDING)), 0.0)
