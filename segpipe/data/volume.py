"""What every reader gives: the Cases found (where each is) and a Volume (its content); and the kinds of data."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Spacing = tuple[float, float, float]
Kind = Literal["picture", "volume"]
KIND_OF_READER: dict[str, Kind] = {"folder": "picture", "nifti": "volume", "phantom": "volume"}  # files of format 1
IGNORE = 255  # label of voxels that could not be annotated: excluded from loss and metrics


def foreground(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Which labels are a class that is neither background nor IGNORE."""
    return np.asarray((labels > 0) & (labels != IGNORE), dtype=np.bool_)


@dataclass(frozen=True)
class Case:
    """The files of a case and whom it belongs to.

    `images` has one file per channel, or a single file that holds all channels. `split` is given by the data or None,
    `attributes` are further columns of the data's own table.
    """

    name: str
    patient: str
    site: str
    split: str | None
    images: tuple[Path, ...]
    mask: Path
    attributes: dict[str, str] = field(default_factory=dict)


class Found(NamedTuple):
    """The cases of a folder whose files are there, sorted by name, and what is wrong with the others, a line each."""

    cases: list[Case]
    faults: list[str]


@dataclass(frozen=True)
class Volume:
    """One case in memory; a 2-D image has D = 1.

    `image` is C,D,H,W float32, `mask` D,H,W uint8 with 0 for background, 1..K for the classes and IGNORE, `spacing`
    mm along D,H,W or None, `sha256` of the files' bytes, `values` those that the mask's file has for labels, sorted.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]
    spacing: Spacing | None
    sha256: str
    values: tuple[float, ...] = ()


def volume_ml(voxels: int, spacing: Spacing | None) -> float | None:
    """Volume of that many voxels in millilitres (1 ml = 1000 mm3), or None without a spacing."""
    return None if spacing is None else voxels * spacing[0] * spacing[1] * spacing[2] / 1000
