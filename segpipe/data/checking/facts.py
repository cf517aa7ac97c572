"""What a check remembers of a case, so that cases can be compared: a few numbers, whatever the size of its files."""

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from segpipe.config.sections import PreprocessConfig
from segpipe.data import profiles, transform
from segpipe.data.manifest import Split
from segpipe.data.volume import Case, Spacing, Volume, foreground

SMALL, FREQUENCIES = 64, 16  # pixels; frequencies of a look along each axis
FLAT = 1.0  # grey values: a small picture that varies less has no look
ALIGNED, BLUR, REACH, BRIGHTEST = 256, 8.0, 0.2, 99.0  # pixels, pixels, share of a side, percentile
Array = NDArray[np.float32]


class Fit(NamedTuple):
    """How well a mask fits its image: their correlation as they lie, the strongest of all shifts, and that shift in
    pixels of the image, down and right.
    """

    here: float
    best: float
    shift: tuple[int, int]


class Facts(NamedTuple):
    """A case: `shape` D,H,W as acquired, `spacing` mm; `values` of the mask's file; `voxels` of each class, `kept` the
    share of them that would be left in the network's plane; `ranges` the lowest, mean and highest intensity of each
    channel; `content` the SHA-256 of the image's values.

    `look` has 255 bits that alike pictures share, in hexadecimal digits, and is None for volumes and for pictures
    without structure; `fit` is that of the channel which the mask follows best, and None without foreground; `traits`
    are those of `profiles`.
    """

    case: str
    patient: str
    split: Split
    shape: tuple[int, ...]
    spacing: Spacing | None
    values: tuple[float, ...]
    voxels: tuple[int, ...]
    kept: tuple[float, ...]
    ranges: tuple[tuple[float, float, float], ...]
    content: str
    look: str | None
    fit: Fit | None
    traits: profiles.Values


def measure(case: Case, split: Split, volume: Volume, classes: int, config: PreprocessConfig) -> Facts:
    """The facts of a case that was read. Raises InputError where it has no spacing to resample it by."""
    counts = np.bincount(volume.mask.ravel(), minlength=classes + 1)[1 : classes + 1]
    busiest = int(foreground(volume.mask).sum(axis=(1, 2)).argmax())
    planes, mask = volume.image[:, busiest], foreground(volume.mask[busiest])
    return Facts(
        case=case.name,
        patient=case.patient,
        split=split,
        shape=volume.mask.shape,
        spacing=volume.spacing,
        values=volume.values,
        voxels=tuple(int(count) for count in counts),
        kept=_kept(volume, counts, config),
        ranges=tuple((float(c.min()), float(c.mean()), float(c.max())) for c in volume.image),
        content=hashlib.sha256(np.ascontiguousarray(volume.image).data).hexdigest(),
        look=look(planes.mean(axis=0)) if len(volume.mask) == 1 else None,
        fit=max((fit(plane, mask) for plane in planes), key=lambda one: abs(one.here)) if mask.any() else None,
        traits=profiles.measure(volume.image, volume.spacing),
    )


def _kept(volume: Volume, counts: NDArray[np.int64], config: PreprocessConfig) -> tuple[float, ...]:
    """The share of each class's area that is left in the network's plane; 1 where there is none."""
    native = volume.mask.shape[1:]
    if config.fit == "patch":
        plane = transform.working_plane(native, volume.spacing, config)
        fitted, scale = transform.resampled_labels(volume.mask, plane), plane[0] * plane[1] / (native[0] * native[1])
    else:
        to = transform.Fit(native, config)
        fitted, scale = to.mask(volume.mask), to.scaled[0] * to.scaled[1] / (native[0] * native[1])
    left = np.bincount(fitted.ravel(), minlength=len(counts) + 1)[1 : len(counts) + 1]
    return tuple(float(n / (count * scale)) if count else 1.0 for n, count in zip(left, counts, strict=True))


def look(plane: Array) -> str | None:
    """255 bits of a picture H,W: whether each of its lowest frequencies is above their median (the perceptual hash of
    Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). None without structure.
    """
    small = transform.resampled(plane[None, None], (SMALL, SMALL))[0, 0]
    if small.std() < FLAT:
        return None
    frequencies = fft.dctn(small, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.packbits(frequencies > np.median(frequencies)).tobytes().hex()


def fit(plane: Array, mask: NDArray[np.bool_]) -> Fit:
    """How well a mask H,W fits a picture H,W: the correlation of the detail of both, over all shifts up to REACH.

    Whether objects are bright or dark does not count: the strongest is the one that is furthest from 0.
    """
    height, width = plane.shape
    scale = min(1.0, ALIGNED / max(height, width))
    to = max(1, round(height * scale)), max(1, round(width * scale))
    image, drawn = (
        _detail(transform.resampled(part[None, None].astype(np.float32), to)[0, 0]) for part in (plane, mask)
    )
    limit = np.percentile(np.abs(image), BRIGHTEST)
    image = image.clip(-limit, limit)
    padded = (2 * to[0], 2 * to[1])
    product = fft.rfft2(image, padded) * np.conj(fft.rfft2(drawn, padded))
    size = float(np.linalg.norm(image) * np.linalg.norm(drawn))
    down, right = (int(n * REACH) for n in to)
    every = np.roll(fft.irfft2(product, padded), (down, right), (0, 1))[: 2 * down + 1, : 2 * right + 1] / (size or 1.0)
    row, column = np.unravel_index(int(np.abs(every).argmax()), every.shape)
    shift = round((int(row) - down) / scale), round((int(column) - right) / scale)
    return Fit(float(every[down, right]), float(every[row, column]), shift)


def _detail(plane: Array) -> Array:
    detail: Array = plane - ndimage.gaussian_filter(plane, BLUR)
    return detail
