"""Decoded files, and the limits on their size."""

import io
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segpipe.data.codecs.geometry import Geometry, Picture
from segpipe.data.volume import Spacing
from segpipe.errors import InputError

MAX_PIXELS = 178_956_970  # from which on Pillow, too, suspects a decompression bomb
CHANNELS = 4  # times the grid: the most values that a file of many channels may hold
FEWEST_READS, BYTES_A_READ = 1 << 15, 1 << 10
SCAN, MOST_SCANS = b"\xff\xda", 100  # of a JPEG: a progressive one has about ten, each goes through all of its pixels


@dataclass(frozen=True)
class Decoded:
    """A decoded file.

    `array` is C,D,H,W float32 (a grey picture 1,1,H,W; a NIfTI in RAS+ orientation, D from inferior to superior),
    `spacing` mm along D,H,W or None, `geometry` the form of the file.
    """

    array: NDArray[np.float32]
    spacing: Spacing | None
    geometry: Geometry = field(default_factory=Picture)


class Metered(io.BytesIO):
    """A file for libraries that keep an object for each of its parts: millions of empty ones take gigabytes.

    Raises ValueError for more reads than parts of a sensible size need.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.left = FEWEST_READS + len(data) // BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ValueError("too many small parts")
        return super().read(size)


def limit(where: str, grid: tuple[int, ...], most: int, unit: str) -> None:
    """Raise InputError, beginning with `where`, for a grid with no voxels or with more than `most`."""
    size = f"{where}: {' x '.join(map(str, grid))} {unit}"
    if min(grid) < 1:
        raise InputError(f"{size}, expected at least 1 along each axis")
    if math.prod(grid) > most:
        raise InputError(f"{size}, at most {most:,} are taken")
