"""A segmentation for a browser to show: whole volumes as bytes, small enough to send."""

import base64
import gzip

import numpy as np
from numpy.typing import NDArray

from segpipe.data.codecs import Decoded
from segpipe.errors import InputError

LONGEST = 1024  # pixels of a side
MOST_BYTES = 1 << 26  # of all arrays of an answer, before they are compressed
PERCENTILES = (0.5, 99.5)  # of the intensities: what is black and what is white
FULL = 65535  # how a probability of 1 is sent
THRESHOLDS = np.arange(1, 100) / 100
Planes = NDArray[np.float32]


def views(image: Planes, channels: tuple[str, ...], volume: bool) -> dict[str, Planes]:
    """The views of an image C,D,H,W by name: each channel (D,H,W), or the colours of a picture of three (D,H,W,3)."""
    if not volume and len(image) == 3:
        return {"colour": np.moveaxis(image, 0, -1)}
    return dict(zip(channels, image, strict=True))


def step(shape: tuple[int, int, int], bytes_each: int) -> int:
    """By how much rows and columns of D,H,W are made coarser, so that `bytes_each` of every pixel shown can be sent.

    Raises InputError where no step is large enough.
    """
    depth, height, width = shape
    for by in range(1, max(height, width) + 1):
        rows, columns = -(-height // by), -(-width // by)
        if max(rows, columns) <= LONGEST and depth * rows * columns * bytes_each <= MOST_BYTES:
            return by
    raise InputError(f"{depth:,} slices are too many to show; ask /invocations or run predict")


def coarser(planes: Planes, by: int) -> Planes:
    """The means of D,H,W[,3] over blocks of `by` x `by` pixels, smaller at the right and the lower edge."""
    if by == 1:
        return planes
    for axis in (1, 2):
        starts = np.arange(0, planes.shape[axis], by)
        sizes = np.diff(starts, append=planes.shape[axis]).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(planes.ndim)]
        planes = np.asarray(np.add.reduceat(planes, starts, axis=axis) / sizes.reshape(shape), dtype=np.float32)
    return planes


def grey(planes: Planes) -> NDArray[np.uint8]:
    """Intensities as 0..255, on one scale for all planes and colours."""
    low, high = np.percentile(planes, PERCENTILES)
    scaled = (planes - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    return np.asarray(np.clip(scaled, 0, 255).round(), dtype=np.uint8)


def reached(foreground: Planes) -> list[int]:
    """How many voxels reach each of THRESHOLDS, compared as float32, as `Predictor.label` does."""
    thresholds = THRESHOLDS.astype(np.float32)
    least = np.sort(foreground[foreground >= thresholds[0]])
    return [int(n) for n in len(least) - np.searchsorted(least, thresholds)]


def unit(like: Decoded) -> dict[str, str | float] | None:
    """The millilitres of a voxel, or the mm2 of a pixel; None without a spacing."""
    if like.spacing is None:
        return None
    depth, row, column = like.spacing
    if not like.geometry.volume:
        return {"name": "mm²", "each": row * column}
    return {"name": "ml", "each": depth * row * column / 1000}


def encode(
    like: Decoded, image: Planes, channels: tuple[str, ...], labels: NDArray[np.uint8], foreground: Planes
) -> dict[str, object]:
    """An image C,D,H,W, each voxel's most probable class and its foreground probability D,H,W for a browser.

    Arrays are base64 of gzipped bytes: 8 bits for intensities and classes, 16 for probabilities (65535 is 1, little
    endian), slices from inferior to superior, rows from top to bottom. `aspect` is width by height in mm.
    """
    volume, several = like.geometry.volume, int(labels.max()) > 1
    by = step(foreground.shape, len(image) + 2 + several)
    rows = slice(None, None, -1 if volume else 1)  # volumes are stored from posterior to anterior, pictures as seen
    probability = coarser(foreground[:, rows], by)
    depth, height, width = probability.shape
    row, column = (1.0, 1.0) if like.spacing is None else like.spacing[1:]
    return {
        "volume": volume,
        "sided": like.geometry.sided,
        "suffix": like.geometry.suffix,
        "depth": depth,
        "height": height,
        "width": width,
        "aspect": foreground.shape[2] * column / (foreground.shape[1] * row),
        "views": [
            {"name": name, "colours": 3 if planes.ndim == 4 else 1, "pixels": pack(grey(coarser(planes[:, rows], by)))}
            for name, planes in views(image, channels, volume).items()
        ],
        "probability": pack((probability * FULL).round().astype("<u2")),
        "classes": pack(labels[:, rows][:, ::by, ::by]) if several else None,
        "unit": unit(like),
        "total": foreground.size,
        "reached": reached(foreground),
        "coarser": by,
    }


def pack(values: NDArray[np.generic]) -> str:
    """Base64 of the gzipped bytes of an array."""
    return base64.b64encode(gzip.compress(values.tobytes(), compresslevel=1, mtime=0)).decode("ascii")
