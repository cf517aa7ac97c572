"""Predictions that need no network, which a model must beat before it may be champion: nothing, everything, and the
best constant picture of the training masks.
"""

import numpy as np
from numpy.typing import NDArray

from segpipe.data.dataset import Dataset
from segpipe.data.manifest import CaseRecord, Manifest
from segpipe.data.transform import Fit
from segpipe.data.volume import IGNORE
from segpipe.metrics import overlaps

CELLS = (16, 64, 64)  # of a constant picture, along depth, height and width
NOTHING, EVERYTHING, MEAN_MASK = "nothing", "everything", "the mean mask"
COLUMNS = {  # of a table of cases
    NOTHING: "dice_of_nothing",
    EVERYTHING: "dice_of_everything",
    MEAN_MASK: "dice_of_mean_mask",
}
Labels = NDArray[np.uint8]
Shares = NDArray[np.float64]


def learn(dataset: Dataset) -> dict[str, Labels]:
    """The labels that each trivial prediction gives to every case, on a grid of CELLS, or of one slice for pictures.

    `everything` is the class with the most voxels in the training cases. `the mean mask` are, of each class, the cells
    that give all training cases together the highest Dice: those where the class is most frequent.
    """
    shares = _shares(dataset)
    everything = np.full(shares.shape[1:], 1 + shares.sum(axis=(1, 2, 3)).argmax(), dtype=np.uint8)
    chosen = np.stack([np.where(_best(share), share, 0.0) for share in shares])
    mean_mask = np.where(chosen.max(axis=0) > 0, 1 + chosen.argmax(axis=0), 0).astype(np.uint8)
    return {NOTHING: np.zeros_like(everything), EVERYTHING: everything, MEAN_MASK: mean_mask}


def dice(labels: Labels, reference: Labels, classes: int) -> float:
    """Class-mean Dice of constant labels, spread over a case's own grid D,H,W; NaN as for any prediction."""
    cells = [(np.arange(n) + 0.5) * count // n for n, count in zip(reference.shape, labels.shape, strict=True)]
    predicted = labels[np.ix_(*(cell.astype(np.int64) for cell in cells))]
    return overlaps.class_mean(overlaps.overlap("dice", overlaps.count(predicted, reference, classes)))


def _shares(dataset: Dataset) -> Shares:
    """How often each class is found in each cell, K,D,h,w, over the training cases; 0 where all is IGNORE."""
    manifest = dataset.manifest
    grid = (1 if manifest.kind == "picture" else CELLS[0], *CELLS[1:])
    found, known = np.zeros((len(manifest.classes), *grid)), np.zeros(grid)
    for case in dataset.where(split="train").cases:
        labels = dataset.stored(case)[1][:, *_seen(case, manifest)]
        known += _averaged(labels != IGNORE, grid)
        for k in range(len(found)):
            found[k] += _averaged(labels == k + 1, grid)
    return np.divide(found, known, out=np.zeros_like(found), where=known > 0)


def _seen(case: CaseRecord, manifest: Manifest) -> tuple[slice, ...]:
    """Where the picture lies in the planes of the arrays, which may be padded."""
    if manifest.flat(case.split):
        return (slice(None), slice(None))
    return Fit(case.shape[1:], manifest.preprocess).target


def _averaged(mask: NDArray[np.bool_], grid: tuple[int, ...]) -> Shares:
    """The share of a mask D,H,W in each cell of a grid; where that is finer, the value at the middle of the cell."""
    values = mask.astype(np.float64)
    for axis, (n, cells) in enumerate(zip(mask.shape, grid, strict=True)):
        if n <= cells:
            values = values.take(((np.arange(cells) + 0.5) * n // cells).astype(np.int64), axis)
        else:
            starts = np.arange(cells) * n // cells
            width = np.diff([*starts, n]).reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
            values = np.add.reduceat(values, starts, axis) / width
    return values


def _best(share: Shares) -> NDArray[np.bool_]:
    """The cells of a constant picture with the highest Dice over all cases together."""
    order = np.argsort(-share, axis=None, kind="stable")
    ordered = share.ravel()[order]
    dices = 2 * np.cumsum(ordered) / (np.arange(1, ordered.size + 1) + ordered.sum())
    best = np.zeros(share.size, dtype=np.bool_)
    best[order[: 1 + int(dices.argmax())]] = True
    return best.reshape(share.shape)
