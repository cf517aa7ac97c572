"""A segmentation in numbers: the same ones wherever a model answers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.data import codecs, components
from segpipe.data.volume import volume_ml
from segpipe.inference.predictor import Segmentation


def findings(
    mask: NDArray[np.uint8], segmentation: Segmentation, first: codecs.Decoded, classes: tuple[str, ...]
) -> dict[str, Any]:
    """What a mask D,H,W amounts to: voxels, mm2 of a picture or ml of a volume, lesions, and how sure the model is;
    the first four of each class in `by_class` where there are several.

    Uncertainty is the variance of the foreground probability over the flips: its mean over the mask, or over the whole
    image where the mask is empty.
    """
    found, variance = mask > 0, segmentation.variance
    voxels = int(np.count_nonzero(found))
    whole, apart = _amount(mask, first), None
    if len(classes) > 1:
        apart = {name: _amount((mask == k).astype(np.uint8), first) for k, name in enumerate(classes, start=1)}
    return {
        **{f"foreground_{name}": whole[name] for name in ("voxels", "mm2", "ml")},
        "lesions": whole["lesions"],
        "by_class": apart,
        "max_probability": float(segmentation.foreground.max()),
        "mean_probability": float(np.mean(segmentation.foreground[found])) if voxels else None,
        "uncertainty": None if variance is None else float(np.mean(variance[found] if voxels else variance)),
    }


def _amount(mask: NDArray[np.uint8], first: codecs.Decoded) -> dict[str, Any]:
    """Voxels, mm2 of a picture or ml of a volume, and components of a mask."""
    voxels, flat, spacing = int(np.count_nonzero(mask)), not first.geometry.volume, first.spacing
    return {
        "voxels": voxels,
        "mm2": voxels * spacing[1] * spacing[2] if flat and spacing is not None else None,
        "ml": None if flat else volume_ml(voxels, spacing),
        "lesions": components.count(mask),
    }
