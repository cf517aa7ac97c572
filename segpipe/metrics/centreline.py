"""Centrelines of masks: how well those of two agree, and how thick and how long the structures of one are."""

import numpy as np
from numpy.typing import NDArray

from segpipe.data import components
from segpipe.metrics import surface

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


def thickness(mask: Mask, thin: Mask | None = None) -> float:
    """Median thickness in pixels or voxels of what is in a mask: twice the distance from its centreline, `thin` if it
    is known, to outside of it. The shortest side of a mask that is empty or full.
    """
    from scipy.ndimage import distance_transform_edt

    if mask.all() or not mask.any():
        return float(min(mask.shape))
    return float(2 * np.median(distance_transform_edt(mask)[skeleton(mask) if thin is None else thin]) - 1)


def elongation(mask: Mask) -> float:
    """How many times longer than thick the components of a mask are, weighted by their size: voxels of the centreline
    over the median thickness. NaN for an empty mask. Vessels have some 50 and more, lesions, cells and organs below 5.
    """
    if not mask.any():
        return float("nan")
    mask = mask[surface.bounding_box(mask, (1,) * mask.ndim)]
    parts, number = components.label(mask)
    thin = skeleton(mask)
    lengths, sizes = (np.bincount(parts[where], minlength=number + 1)[1:] for where in (thin, mask))
    return float(np.average(lengths, weights=sizes) / max(thickness(mask, thin), 1.0))


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
