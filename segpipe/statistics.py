"""How sure a mean over cases is."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval, the cases there are and those that have a value."""

    mean: float
    low: float
    high: float
    n: int
    n_valid: int


def bootstrap_mean(values: ArrayLike, patients: ArrayLike, samples: int, seed: int) -> Interval:
    """Mean of `values` without NaN, with a percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13) that draws
    whole patients with replacement, because cases of one patient are not independent.

    With fewer than two patients the interval is the mean itself; without any value all three numbers are NaN.
    """
    known = np.asarray(values, dtype=np.float64)
    valid = ~np.isnan(known)
    n, n_valid = len(known), int(valid.sum())
    if not n_valid:
        return Interval(float("nan"), float("nan"), float("nan"), n, 0)
    _, owner = np.unique(np.asarray(patients)[valid], return_inverse=True)
    sums = np.asarray(np.bincount(owner, weights=known[valid]), dtype=np.float64)
    counts = np.asarray(np.bincount(owner), dtype=np.float64)
    mean = float(sums.sum() / counts.sum())
    means = _resampled(sums, counts, samples, np.random.default_rng([seed, 0xB007]))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high), n, n_valid)


def _resampled(
    sums: NDArray[np.float64], counts: NDArray[np.float64], samples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    drawn = rng.integers(0, len(sums), (samples, len(sums)))
    result: NDArray[np.float64] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return result
