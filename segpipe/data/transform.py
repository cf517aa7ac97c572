"""From a raw volume to what the network sees, and from its probabilities back to the volume's own grid."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segpipe.config.sections import PreprocessConfig
from segpipe.data.volume import Spacing
from segpipe.errors import InputError

Array = NDArray[np.float32]


def normalise(image: Array, config: PreprocessConfig) -> Array:
    """Clip each channel of C,D,H,W at its percentiles and scale it; a constant channel becomes 0. With `ct` all
    channels of all cases are clipped to one window and scaled to -1..1.

    Percentiles, mean and standard deviation are taken over the voxels that are not 0 in every channel, so that the
    amount of empty background (a skull-stripped brain, a collimated X-ray) does not shift the scale.
    """
    if config.normalise == "ct":
        return _windowed(image, *config.window)
    inside = np.asarray(image.any(axis=0))
    whole = bool(inside.all()) or not inside.any()
    result = np.empty_like(image, dtype=np.float32)
    for channel, values in enumerate(image):
        known = values.ravel() if whole else values[inside]
        low, high = (_percentile(known, q) for q in (config.clip_low, config.clip_high))
        clipped = np.clip(values, low, high, out=result[channel])
        if config.clahe:
            clipped[:] = _equalised(clipped, float(low), float(high))
        known = clipped.ravel() if whole else clipped[inside]
        least, most = known.min(), known.max()
        offset, scale = (known.mean(), known.std()) if config.normalise == "zscore" else (least, most - least)
        clipped -= offset
        clipped /= scale if scale > 1e-6 * max(abs(least), abs(most)) else 1
    return result


def _windowed(image: Array, low: float, high: float) -> Array:
    clipped = np.clip(image, low, high).astype(np.float32)
    clipped -= (low + high) / 2
    clipped /= (high - low) / 2
    return clipped


def _percentile(values: Array, percent: float) -> np.float32:
    """`numpy.percentile` of flat values without NaN, to the bit: one rank at a time, which is several times faster."""
    rank = (len(values) - 1) * (percent / 100)
    index = int(rank)
    sides, share = np.partition(values, index), rank - index
    below = sides[index]
    above = sides[index + 1 :].min(initial=np.inf) if share else below
    step = np.float64(above - below)
    return np.float32(below + step * share if share < 0.5 else above - step * (1 - share))


def _equalised(values: Array, low: float, high: float) -> Array:
    from skimage.exposure import equalize_adapthist

    unit = (values - low) / (high - low or 1)
    return np.stack([equalize_adapthist(plane) for plane in unit]).astype(np.float32)


def working_plane(native: tuple[int, int], spacing: Spacing | None, config: PreprocessConfig) -> tuple[int, int]:
    """Height and width in pixels that a plane of `native` is resampled to. Raises InputError where that depends on a
    spacing and there is none.
    """
    if config.spacing:
        if spacing is None:
            wanted = " x ".join(f"{side:g}" for side in config.spacing)
            raise InputError(f"no spacing, and preprocess.spacing asks for {wanted} mm")
        scales = [own / wanted for own, wanted in zip(spacing[1:], config.spacing, strict=True)]
    else:
        scales = [config.longest / max(native) if config.longest else 1.0] * 2
    height, width = (max(1, round(n * scale)) for n, scale in zip(native, scales, strict=True))
    return height, width


def resampled(image: Array, plane: tuple[int, int]) -> Array:
    """C,D,H,W to C,D,h,w, bilinear, each pixel the mean over what it covers."""
    if image.shape[2:] == plane:
        return image
    result = np.empty((*image.shape[:2], *plane), dtype=np.float32)
    for volume, target in zip(image, result, strict=True):
        for depth, values in enumerate(volume):
            target[depth] = _resized(values, plane, Image.Resampling.BILINEAR)
    return result


def resampled_labels(labels: NDArray[np.uint8], plane: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels D,H,W to D,h,w: of each pixel the label with the largest share of what it covers."""
    if labels.shape[1:] == plane:
        return labels
    result = np.zeros((len(labels), *plane), dtype=np.uint8)
    for values, target in zip(labels, result, strict=True):
        largest = np.zeros(plane, dtype=np.float32)
        for label in np.unique(values):
            share = _resized((values == label).astype(np.float32), plane, Image.Resampling.BILINEAR)
            target[share > largest] = label
            np.maximum(largest, share, out=largest)
    return result


class Fit:
    """How a plane of H,W is fitted to the network's plane of `config.size`, and brought back.

    `resize` scales by one factor for both axes and pads what is left; `crop` keeps the scale and cuts or pads around
    the centre.
    """

    def __init__(self, native: tuple[int, ...], config: PreprocessConfig) -> None:
        self.native, self.size, self.scaled = native, config.size, native
        if config.fit == "resize":
            scale = min(limit / n for n, limit in zip(native, self.size, strict=True))
            pairs = zip(native, self.size, strict=True)
            self.scaled = tuple(max(1, min(round(n * scale), limit)) for n, limit in pairs)
        kept = [min(n, limit) for n, limit in zip(self.scaled, self.size, strict=True)]
        self.source, self.target = (
            tuple(slice((n - keep) // 2, (n - keep) // 2 + keep) for n, keep in zip(whole, kept, strict=True))
            for whole in (self.scaled, self.size)
        )

    def image(self, image: Array, lowest: Array | None = None) -> Array:
        """C,D,H,W to slices D,C,h,w; the padding has each channel's smallest value, or `lowest` C."""
        result = np.empty((image.shape[1], image.shape[0], *self.size), dtype=np.float32)
        for channel, volume in enumerate(image):
            result[:, channel] = volume.min() if lowest is None else lowest[channel]
            for plane, values in enumerate(volume):
                scaled = _resized(values, self.scaled, Image.Resampling.BILINEAR)
                result[plane, channel][self.target] = scaled[self.source]
        return result

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels D,H,W to slices D,h,w, by nearest neighbour; the padding is background."""
        result = np.zeros((len(mask), *self.size), dtype=np.uint8)
        for plane, values in enumerate(mask):
            scaled = _resized(values, self.scaled, Image.Resampling.NEAREST)
            result[plane][self.target] = scaled[self.source]
        return result

    def back(self, probabilities: Array) -> Array:
        """Slices D,K,h,w to K,D,H,W on the native grid; 0 where the network saw nothing."""
        slices, classes = probabilities.shape[:2]
        result = np.empty((classes, slices, *self.native), dtype=np.float32)
        seen = np.zeros(self.scaled, dtype=np.float32)
        for plane in range(slices):
            for k in range(classes):
                seen[self.source] = probabilities[plane, k][self.target]
                result[k, plane] = _resized(seen, self.native, Image.Resampling.BILINEAR)
        return result


def _resized(plane: NDArray[Any], size: tuple[int, ...], method: Image.Resampling) -> NDArray[Any]:
    if plane.shape == size:
        return plane
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize((size[1], size[0]), method))
