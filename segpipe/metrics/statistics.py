"""Confidence intervals of means over cases, tests of whether two models differ, and groups of cases."""

from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
CHUNK = 2**20  # numbers drawn at a time
EXACT = 15  # patients up to which every pattern of signs is enumerated: 2**15
DECIMALS = 12  # rounding errors of a difference are smaller
SIZES = ("small", "medium", "large")


class Interval(NamedTuple):
    """A mean with its 95 % confidence interval, the number of cases and of those that have a value."""

    mean: float
    low: float
    high: float
    n: int
    n_valid: int


class Difference(NamedTuple):
    """A mean paired difference with its 95 % confidence interval and p-values, over `n` pairs."""

    mean: float
    low: float
    high: float
    p: float
    wilcoxon: float
    n: int
    patients: int


class Counted(NamedTuple):
    """How many of how many, for each case."""

    part: ArrayLike
    whole: ArrayLike


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
    sums, counts = _by_patient(known[valid], np.asarray(patients)[valid])
    mean = float(sums.sum() / counts.sum())
    means = _resampled(sums, counts, samples, np.random.default_rng([seed, 0xB007]))
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high), n, n_valid)


def _by_patient(values: Values, patients: NDArray[np.generic]) -> tuple[Values, Values]:
    """Sum and number of the values of each patient, sorted by patient."""
    owners, owner = np.unique(patients, return_inverse=True)
    sums = np.bincount(owner, weights=values, minlength=len(owners)).astype(np.float64)
    return sums, np.bincount(owner, minlength=len(owners)).astype(np.float64)


def _chunks(samples: int, width: int) -> list[int]:
    rows = max(1, CHUNK // max(1, width))
    return [min(rows, samples - begun) for begun in range(0, samples, rows)]


def _resampled(sums: Values, counts: Values, samples: int, rng: np.random.Generator) -> Values:
    means = []
    for rows in _chunks(samples, len(sums)):
        drawn = rng.integers(0, len(sums), (rows, len(sums)))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)


def paired(
    ours: ArrayLike,
    theirs: ArrayLike,
    patients: ArrayLike,
    samples: int,
    seed: int,
    margin: float = 0.0,
    alternative: Literal["greater", "two-sided"] = "greater",
) -> Difference:
    """Mean of ours - theirs over the pairs in which both have a value, its interval as in `bootstrap_mean`, and whether
    it is greater than -margin (two-sided: different from -margin).

    `p` is that of the sign-flip permutation test on the sum of each patient's differences (Good 2005, ch. 3): exact if
    the two models are exchangeable within a patient (Fisher 1935). Its units are patients, because cases of one patient
    are not independent. With up to 15 patients that differ, every pattern of signs is enumerated; beyond that,
    `samples` patterns are drawn and the observed one is added (Phipson and Smyth 2010). `wilcoxon` is the p-value of
    the signed-rank test on each patient's mean difference. Without a pair the means are NaN and the p-values 1.
    """
    from scipy import stats

    ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    differences = np.round(ours - theirs, DECIMALS)
    valid = ~np.isnan(differences)
    interval = bootstrap_mean(differences, patients, samples, seed)
    sums, counts = _by_patient(differences[valid] + margin, np.asarray(patients)[valid])
    p = _sign_flip(np.round(sums, DECIMALS), samples, np.random.default_rng([seed, 0xF11B]), alternative)
    means = np.round(sums / counts, DECIMALS)
    wilcoxon = stats.wilcoxon(means[means != 0], alternative=alternative).pvalue if means.any() else 1.0
    return Difference(interval.mean, interval.low, interval.high, p, float(wilcoxon), interval.n_valid, len(sums))


def _sign_flip(sums: Values, samples: int, rng: np.random.Generator, alternative: str) -> float:
    """Share of the patterns of signs whose total is at least as large as the observed one."""
    sums = sums[sums != 0]
    exact = len(sums) <= EXACT
    if exact:
        totals = (2 * _patterns(len(sums)) - 1) @ sums
    else:
        drawn = [rng.integers(0, 2, (rows, len(sums))) @ (2 * sums) for rows in _chunks(samples, len(sums))]
        totals = np.concatenate(drawn) - sums.sum()
    observed, ties = sums.sum(), 1e-9 * np.abs(sums).sum()
    if alternative == "two-sided":
        totals, observed = np.abs(totals), abs(observed)
    reached = int((totals >= observed - ties).sum())
    return reached / len(totals) if exact else (reached + 1) / (len(totals) + 1)


def rise_in_share(ours: Counted, theirs: Counted, patients: ArrayLike, samples: int, seed: int) -> tuple[float, float]:
    """The rise of a share from theirs to ours, over all cases together, and the one-sided p-value of the permutation
    test that it is above 0, which exchanges the two models' counts patient by patient (Good 2005, ch. 3). Exact with up
    to 15 patients whose counts differ; beyond that as in `paired`. A share of nothing is 0.
    """
    counts = np.stack([_by_patient(np.asarray(c, dtype=np.float64), np.asarray(patients))[0] for c in (*ours, *theirs)])
    differs = (counts[:2] != counts[2:]).any(axis=0)
    same, units = counts[:, ~differs].sum(axis=1), counts[:, differs]
    moved = units[2:] - units[:2]

    def rise(exchanged: NDArray[Any]) -> Values:
        moves = exchanged @ moved.T
        part, whole = (same[:2] + units[:2].sum(axis=1) + moves).T
        other_part, other_whole = (same[2:] + units[2:].sum(axis=1) - moves).T
        return _ratio(part, whole) - _ratio(other_part, other_whole)

    found, width = float(rise(np.zeros((1, len(moved.T))))[0]), len(moved.T)
    exact = width <= EXACT
    if exact:
        rises = rise(_patterns(width))
    else:
        rng = np.random.default_rng([seed, 0x5AFE])
        rises = np.concatenate([rise(rng.integers(0, 2, (rows, width))) for rows in _chunks(samples, width)])
    reached = int((rises >= found - 1e-9).sum())
    return found, reached / len(rises) if exact else (reached + 1) / (len(rises) + 1)


def _ratio(part: Values, whole: Values) -> Values:
    shares: Values = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return shares


def _patterns(width: int) -> NDArray[np.int64]:
    """Every pattern of so many zeros and ones, one a row."""
    return (np.arange(2**width)[:, None] >> np.arange(width)) & 1


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple testing (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return [float(value) for value in adjusted]


def letters(names: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Compact letter display of names in rank order (Piepho 2004, insert and absorb): two share a letter unless they
    are a pair in `different`; the first has an a. After z come a1, b1 and so on.
    """
    rank = {name: place for place, name in enumerate(names)}
    columns = [frozenset(range(len(names)))] if names else []
    for one, other in sorted(sorted((rank[a], rank[b])) for a, b in different):
        split = [c - {leaving} if {one, other} <= c else c for c in columns for leaving in (one, other)]
        columns = [c for c in dict.fromkeys(split) if not any(c < larger for larger in split)]
    columns.sort(key=sorted)
    symbols = [f"{ascii_lowercase[n % 26]}{n // 26 or ''}" for n in range(len(columns))]
    return {
        name: "".join(symbol for symbol, column in zip(symbols, columns, strict=True) if place in column)
        for name, place in rank.items()
    }


def by_group(cases: pd.DataFrame, column: str, metrics: Sequence[str], samples: int, seed: int) -> pd.DataFrame:
    """One row per group and metric, groups sorted: group, metric, its Interval, and the patients that have a value."""
    rows = []
    for group, members in cases.groupby(column, sort=True):
        for metric in metrics:
            interval = bootstrap_mean(members[metric], members["patient"], samples, seed)
            patients = int(members.loc[members[metric].notna(), "patient"].nunique())
            rows.append({"group": group, "metric": metric, **interval._asdict(), "patients": patients})
    return pd.DataFrame(rows, columns=["group", "metric", *Interval._fields, "patients"])


def tertiles(volumes: ArrayLike) -> list[str]:
    """`small`, `medium` or `large` by tertile of the volumes above 0, equal ones in the lower group; `none` for the
    others. Fewer than three volumes above 0 are all `medium`.
    """
    sizes = np.asarray(volumes, dtype=np.float64)
    positive = np.sort(sizes[sizes > 0])
    if len(positive) < len(SIZES):
        return ["medium" if size > 0 else "none" for size in sizes]
    third = len(SIZES) * np.searchsorted(positive, sizes, side="left") // len(positive)
    return [SIZES[place] if size > 0 else "none" for size, place in zip(sizes, third, strict=True)]
