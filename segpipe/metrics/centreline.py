"""Agreement of the centrelines of tubular structures."""

import numpy as np
from numpy.typing import NDArray

from segpipe.data import components

Mask = NDArray[np.bool_]


def skeleton(mask: Mask) -> Mask:
    """Centreline of a mask in 2-D or 3-D. A component that thinning removes altogether, such as a cube of eight voxels,
    is kept whole: it must not vanish from the score.
    """
    from skimage.morphology import skeletonize

    if not mask.any():
        return mask
    thin = np.asarray(skeletonize(mask), dtype=np.bool_)
    parts, number = components.label(mask)
    lost = np.ones(number + 1, dtype=np.bool_)
    lost[0] = lost[parts[thin]] = False
    kept: Mask = thin | lost[parts]
    return kept


def cldice(prediction: Mask, reference: Mask) -> float:
    """Centreline Dice (Shit et al. 2021): harmonic mean of how much of each mask's centreline lies in the other mask.
    NaN where both masks are empty, 0 where one is.
    """
    if not prediction.any() and not reference.any():
        return float("nan")
    predicted, expected = skeleton(prediction), skeleton(reference)
    if not (prediction & reference).any():
        return 0.0
    precision = np.count_nonzero(predicted & reference) / np.count_nonzero(predicted)
    recall = np.count_nonzero(expected & prediction) / np.count_nonzero(expected)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
