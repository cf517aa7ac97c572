"""A plane larger than the network's: cut into overlapping windows, and their probabilities blended into one plane."""

from collections.abc import Iterable, Iterator
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Side = tuple[slice, slice]
OVERLAP = 0.5
SIGMA = 1 / 8
LEAST_WEIGHT = 1e-3


class Windows:
    """Windows of `size` over a plane of `native` H,W, each overlapping the next by half, the last ones flush with the
    border; where the plane is smaller in a direction it lies in the middle of each window.

    A window's weights are a Gaussian of an eighth of its side, and nowhere below 0.001, as in MONAI's
    `sliding_window_inference` (Cardoso 2022).
    """

    def __init__(self, native: tuple[int, int], size: tuple[int, int]) -> None:
        self.native, self.size = native, size
        self.places = list(product(*(_sides(n, limit) for n, limit in zip(native, size, strict=True))))
        self.weights = np.maximum(np.outer(*(_gaussian(n) for n in size)), LEAST_WEIGHT).astype(np.float32)
        self.total = np.zeros(native, dtype=np.float32)
        for (rows, window_rows), (columns, window_columns) in self.places:
            self.total[rows, columns] += self.weights[window_rows, window_columns]

    def cut(self, image: Array, lowest: Array, most: int) -> Iterator[Array]:
        """C,D,H,W to batches of at most `most` windows N,C,h,w, plane after plane; `lowest` pads each channel."""
        every = product(range(image.shape[1]), self.places)
        while batch := list(islice(every, most)):
            windows = np.empty((len(batch), len(image), *self.size), dtype=np.float32)
            windows[:] = lowest[:, None, None]
            for window, (plane, ((rows, window_rows), (columns, window_columns))) in zip(windows, batch, strict=True):
                window[:, window_rows, window_columns] = image[:, plane, rows, columns]
            yield windows

    def blend(self, batches: Iterable[Array], classes: int, depth: int) -> Array:
        """The probabilities N,K,h,w of what `cut` gave, in its order, to their weighted mean K,D,H,W."""
        result = np.zeros((classes, depth, *self.native), dtype=np.float32)
        found = (window for batch in batches for window in batch)
        for window, (plane, ((rows, window_rows), (columns, window_columns))) in zip(
            found, product(range(depth), self.places), strict=True
        ):
            weights = self.weights[window_rows, window_columns]
            result[:, plane, rows, columns] += window[:, window_rows, window_columns] * weights
        result /= self.total
        return result


def _sides(n: int, limit: int) -> list[Side]:
    """Where windows of `limit` lie along `n` pixels: what they see, and where in the window that is."""
    if n <= limit:
        before = (limit - n) // 2
        return [(slice(0, n), slice(before, before + n))]
    step = int(limit * (1 - OVERLAP))
    starts = (min(start, n - limit) for start in range(0, n - limit + step, step))
    return [(slice(start, start + limit), slice(0, limit)) for start in starts]


def _gaussian(n: int) -> NDArray[np.float64]:
    distances = np.arange(n) - (n - 1) / 2
    weights: NDArray[np.float64] = np.exp(-(distances**2) / (2 * (SIGMA * n) ** 2))
    return weights
