"""The neighbours of a slice, which a network may see as further channels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def offsets(context: int) -> Numbers:
    """The slice itself, then its neighbours by their distance: 0, -1, 1, -2, 2 for a context of 2."""
    return np.array([0, *(side * n for n in range(1, context + 1) for side in (-1, 1))])


def around(planes: Numbers, first: Numbers | int, last: Numbers | int, context: int) -> Numbers:
    """For each of N planes those to be seen, N,2 * context + 1; beyond the first and last of its case, these again."""
    found: Numbers = np.clip(planes[:, None] + offsets(context), np.expand_dims(first, -1), np.expand_dims(last, -1))
    return found


def stacked(image: NDArray[Any], planes: slice, context: int) -> NDArray[Any]:
    """Some planes d of C,D,H,W with their neighbours as channels, (2 * context + 1) * C,d,H,W, their own first."""
    if not context:
        return image[:, planes]
    depth = image.shape[1]
    wanted = around(np.arange(depth)[planes], 0, depth - 1, context)
    return np.concatenate([image[:, column] for column in wanted.T])
