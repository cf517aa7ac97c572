"""Connected components of masks: 26 neighbours, 8 within a plane."""

import numpy as np
from numpy.typing import NDArray


def label(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """The components of a mask, numbered from 1 in the order of their first voxels, and how many there are."""
    from scipy import ndimage

    parts, number = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return parts, int(number)


def clean(mask: NDArray[np.uint8], largest: bool, fewest: int) -> NDArray[np.uint8]:
    """A mask D,H,W without components of fewer than `fewest` voxels, class by class; with `largest`, only the largest
    component of each class is kept, the first of equally large ones.
    """
    if not largest and fewest <= 1:
        return mask
    cleaned = np.zeros_like(mask)
    for number in range(1, int(mask.max(initial=0)) + 1):
        parts, count = label(mask == number)
        if not count:
            continue
        sizes = np.bincount(parts[parts > 0], minlength=count + 1)
        kept = sizes >= max(fewest, 1)
        if largest:
            kept &= np.arange(count + 1) == sizes.argmax()
        cleaned[kept[parts]] = number
    return cleaned


def count(mask: NDArray[np.uint8]) -> int:
    """Components of a mask D,H,W, over all of its classes."""
    return sum(label(mask == number)[1] for number in range(1, int(mask.max(initial=0)) + 1))
