"""A plane larger than the network's, cut into overlapping windows whose probabilities are blended into one plane."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Slices = tuple[slice, slice]
SIGMA = 1 / 8
LEAST_WEIGHT = 1e-3


class Windows:
    """Windows of `size` over a plane of `native` H,W, each overlapping the next by a share, the last ones flush with
    the border; along a side where the plane is smaller it is centred in the window, which `mirror` fills with the plane
    mirrored, the outermost pixels repeated.

    A window's weights are a Gaussian of an eighth of its side, nowhere below 0.001, as in MONAI's
    `sliding_window_inference` (Cardoso 2022).
    """

    def __init__(self, native: tuple[int, int], size: tuple[int, int], overlap: float, *, mirror: bool = False) -> None:
        self.native, self.size, self.mirror = native, size, mirror
        sides = product(*(_sides(n, limit, overlap) for n, limit in zip(native, size, strict=True)))
        # What each window sees of the plane, and where in the window that is.
        self.places = [((rows, columns), (down, along)) for (rows, down), (columns, along) in sides]
        gaussians = (np.exp(-((np.arange(n) - (n - 1) / 2) ** 2) / (2 * (SIGMA * n) ** 2)) for n in size)
        self.weights = np.maximum(np.outer(*gaussians), LEAST_WEIGHT).astype(np.float32)
        self.total = np.zeros(native, dtype=np.float32)
        for seen, inside in self.places:
            self.total[seen] += self.weights[inside]

    def cut(self, image: Array, lowest: Array, most: int) -> Iterator[Array]:
        """C,D,H,W to batches of at most `most` windows N,C,h,w, plane after plane; `lowest` pads each channel that is
        not mirrored.
        """
        every = product(range(image.shape[1]), self.places)
        while batch := list(islice(every, most)):
            windows = np.empty((len(batch), len(image), *self.size), dtype=np.float32)
            windows[:] = lowest[:, None, None]
            for window, (plane, (seen, inside)) in zip(windows, batch, strict=True):
                if self.mirror:
                    around = [(part.start, side - part.stop) for part, side in zip(inside, self.size, strict=True)]
                    window[:] = np.pad(image[:, plane, *seen], [(0, 0), *around], mode="symmetric")
                else:
                    window[:, *inside] = image[:, plane, *seen]
            yield windows

    def blend(self, batches: Iterable[Array], classes: int, depth: int) -> Array:
        """The probabilities N,K,h,w of what `cut` gave, in its order, to their weighted mean K,D,H,W."""
        result = np.zeros((classes, depth, *self.native), dtype=np.float32)
        every = product(range(depth), self.places)
        for window, (plane, (seen, inside)) in zip(chain.from_iterable(batches), every, strict=True):
            result[:, plane, *seen] += window[:, *inside] * self.weights[inside]
        result /= self.total
        return result


def _sides(n: int, limit: int, overlap: float) -> list[Slices]:
    """What windows of `limit` see of `n` pixels, and where in the window that is."""
    if n <= limit:
        before = (limit - n) // 2
        return [(slice(0, n), slice(before, before + n))]
    step = int(limit * (1 - overlap))
    starts = (min(start, n - limit) for start in range(0, n - limit + step, step))
    return [(slice(start, start + limit), slice(0, limit)) for start in starts]
