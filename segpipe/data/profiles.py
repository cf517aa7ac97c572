"""What the images of a data set are like, in a few numbers each, and whether another one is like them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.config.sections import Section
from segpipe.data.volume import Spacing

VOXELS, PLANES, SIDE = 1 << 16, 2, 128  # at most so many of a channel are looked at; planes, made coarser to that side
PERCENTILES = (5, 50, 95)
SCALES = (1.0, 2.0, 4.0, 8.0)  # pixels of a coarser plane
FLAT = 1e-6  # the smallest contrast, and the smallest spread of a trait
FALSE_ALARMS = 0.05  # share of the data set's own cases beyond the limit
FEWEST = 8  # patients that a spread can be told from
SHRINKAGE = 0.1  # of the covariance towards no correlation (Ledoit and Wolf, 2004): there are few cases for it
LEAST = 0.05  # the smallest spread of a trait: sets in which it never varies are not that sure of it
Values = tuple[float | None, ...]
Table = NDArray[np.float64]
Planes = NDArray[np.float32]


class Trait(NamedTuple):
    """One of the numbers: what it is called, its place among the PERCENTILES, if it is one, and whether it is a
    logarithm to base 2.
    """

    name: str
    percentile: int | None = None
    log: bool = False


def traits(channels: Sequence[str]) -> list[Trait]:
    """The traits of an image with these channels, in the order of `measure`."""
    found = [Trait("side in pixels", log=True), Trait("pixel spacing in mm", log=True)]
    for name in channels:
        found += [
            Trait(f"5th percentile of {name}", percentile=0),
            Trait(f"median of {name}", percentile=1),
            Trait(f"95th percentile of {name}", percentile=2),
            Trait(f"place of the median of {name} between these"),
            Trait(f"sharpness of {name}", log=True),
            *(Trait(f"detail of {name} at scale {scale:g}", log=True) for scale in SCALES),
            *(Trait(f"skewness of the detail of {name} at scale {scale:g}") for scale in SCALES),
            Trait(f"brightness of the middle of {name}"),
            Trait(f"brightness of the corners of {name}"),
        ]
    return [*found, *(Trait(f"correlation of {one} and {other}") for one, other in pairwise(channels))]


def measure(image: Planes, spacing: Spacing | None) -> Values:
    """The traits of a raw image C,D,H,W; None for the spacing of one that has none."""
    some = np.stack([channel.ravel()[:: -(-channel.size // VOXELS)] for channel in image]).astype(np.float64)
    side = float(np.log2(np.sqrt(image.shape[2] * image.shape[3])))
    found: list[float | None] = [side, None if spacing is None else float(np.log2(np.sqrt(spacing[1] * spacing[2])))]
    for channel, voxels in zip(image, some, strict=True):
        low, middle, high = (float(value) for value in np.percentile(voxels, PERCENTILES))
        contrast = max(high - low, FLAT)
        first = len(channel) // (PLANES + 1)
        rows = [_of_plane(plane / contrast) for plane in channel[first :: -(-len(channel) // PLANES)]]
        found += [low, middle, high, (middle - low) / contrast, *(float(n) for n in np.mean(rows, axis=0))]
    return (*found, *(_correlation(one, other) for one, other in pairwise(some)))


def _of_plane(plane: Planes) -> list[float]:
    """Sharpness, detail, its skewness, and the brightness of middle and corners of a plane H,W in units of contrast."""
    steps = [float(np.abs(np.diff(plane, axis=axis)).mean()) for axis in (0, 1) if plane.shape[axis] > 1]
    coarse = _coarser(plane)
    smooth = [coarse, *(ndimage.gaussian_filter(coarse, scale) for scale in SCALES)]
    detail = [one - other for one, other in pairwise(smooth)]
    height, width = coarse.shape
    middle = coarse[height // 4 : height - height // 4, width // 4 : width - width // 4]
    rows, columns = -(-height // 8), -(-width // 8)
    edges = slice(rows), slice(-rows, None), slice(columns), slice(-columns, None)
    corners = [coarse[up, left] for up in edges[:2] for left in edges[2:]]
    mean = float(coarse.mean())
    return [
        _log(float(np.mean(steps)) if steps else 0.0),
        *(_log(float(one.std())) for one in detail),
        *(_skewness(one) for one in detail),
        float(middle.mean()) - mean,
        float(np.mean([corner.mean() for corner in corners])) - mean,
    ]


def _coarser(plane: Planes) -> Planes:
    """Means over equal blocks, so that no side is longer than SIDE."""
    by = -(-max(plane.shape) // SIDE)
    rows, columns = (max(1, length // by) for length in plane.shape)
    block = min(by, plane.shape[0]), min(by, plane.shape[1])
    whole = plane[: rows * block[0], : columns * block[1]]
    means = whole.reshape(rows, block[0], columns, block[1]).mean(axis=(1, 3), dtype=np.float64)
    return np.asarray(means, dtype=np.float32)


def _log(value: float) -> float:
    return float(np.log2(max(value, FLAT)))


def _skewness(detail: Planes) -> float:
    apart = detail - detail.mean()
    squares = apart * apart
    spread = float(np.sqrt(squares.mean()))
    return float((squares * apart).mean()) / spread**3 if spread > FLAT else 0.0


def _correlation(one: Table, other: Table) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > FLAT else 0.0


class Profile(Section):
    """Mean and spread of each trait over the cases of a data set, and the inverse of their correlation; by them the
    distance of an image is Mahalanobis', as a share of that which `FALSE_ALARMS` of the cases have from all others.

    `false_alarms` is the share of validation cases beyond 1; a trait without a spread counts for nothing.
    """

    channels: tuple[str, ...]
    mean: Values
    spread: Values
    lowest: Values
    highest: Values
    inverse: tuple[tuple[float, ...], ...]
    limit: float
    false_alarms: float | None

    @classmethod
    def learn(
        cls, channels: tuple[str, ...], measured: Sequence[Values], patients: Sequence[str], validation: Sequence[bool]
    ) -> Self | None:
        """The profile of cases with their traits and patients; None for few patients, or without traits. The limit is
        the smallest that leaves FALSE_ALARMS of all cases, and of those for validation, further away from the cases of
        the other patients.
        """
        if len({*patients}) < FEWEST or not all(measured):
            return None
        table, owners = np.stack([_array(row) for row in measured]), np.unique(patients, return_inverse=True)[1]
        spread = _spread(table, channels)
        scaled = np.nan_to_num((table - table.mean(axis=0)) / spread)
        total, squares = scaled.sum(axis=0), scaled.T @ scaled
        distances = np.empty(len(table))
        for owner in range(owners.max() + 1):
            own = scaled[owners == owner]
            mean, inverse = _fit(len(scaled) - len(own), total - own.sum(axis=0), squares - own.T @ own)
            distances[owners == owner] = [_distance(row - mean, inverse) for row in own]
        chosen = np.array(validation, dtype=bool)
        limit = max(FLAT, *(_quantile(part) for part in (distances, distances[chosen]) if len(part)))
        return cls(
            channels=channels,
            mean=_values(table.mean(axis=0)),
            spread=_values(spread),
            lowest=_values(table.min(axis=0)),
            highest=_values(table.max(axis=0)),
            inverse=tuple(tuple(row) for row in _fit(len(scaled), total, squares)[1].tolist()),
            limit=limit,
            false_alarms=float((distances[chosen] > limit).mean()) if chosen.any() else None,
        )

    def compare(self, image: Planes, spacing: Spacing | None) -> tuple[float, str]:
        """The distance of a raw image C,D,H,W, and, where it is over 1, what is unlike, in words; else nothing."""
        values, inverse = _array(measure(image, spacing)), np.array(self.inverse)
        scaled = np.nan_to_num((values - _array(self.mean)) / _array(self.spread))
        distance = _distance(scaled, inverse) / self.limit
        if distance <= 1:
            return distance, ""
        worst = int(np.argmax(np.abs(scaled)))
        trait = traits(self.channels)[worst]
        here, low, high = (
            f"{2.0**value if trait.log else value:.3g}"
            for value in (values[worst], _array(self.lowest)[worst], _array(self.highest)[worst])
        )
        told = f"{trait.name} {here}, in training {low} to {high} (distance {distance:.1f}, usually below 1)"
        return distance, f"unlike the training data: {told}"


def _spread(table: Table, channels: Sequence[str]) -> Table:
    """The standard deviation of each trait, at least LEAST, of intensities as a share of the usual contrast."""
    units = np.ones(table.shape[1])
    for place, trait in enumerate(traits(channels)):
        if trait.percentile is not None:
            low = place - trait.percentile
            units[place] = float(np.median(table[:, low + 2] - table[:, low]))
    return np.asarray(np.maximum(table.std(axis=0), np.maximum(LEAST * units, FLAT)), dtype=np.float64)


def _fit(count: int, total: Table, squares: Table) -> tuple[Table, Table]:
    """The mean of so many cases and the inverse of their shrunk covariance, from the sum of their scaled traits and the
    sum of the products of these.
    """
    mean = total / count
    covariance = (squares - count * np.outer(mean, mean)) / (count - 1)
    size = max(float(np.trace(covariance)) / len(covariance), FLAT)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * size * np.eye(len(covariance))
    return mean, np.asarray(np.linalg.inv(shrunk), dtype=np.float64)


def _distance(apart: Table, inverse: Table) -> float:
    return float(np.sqrt(apart @ inverse @ apart))


def _quantile(distances: Table) -> float:
    """The smallest distance that at most FALSE_ALARMS of them exceed."""
    return float(np.sort(distances)[len(distances) - 1 - int(FALSE_ALARMS * len(distances))])


def _array(values: Values) -> Table:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _values(values: Table) -> Values:
    return tuple(None if np.isnan(value) else float(value) for value in values)
