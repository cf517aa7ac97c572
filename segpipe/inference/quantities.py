"""A segmentation in numbers: the same ones wherever a model answers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segpipe.data import codecs, components
from segpipe.data.volume import volume_ml
from segpipe.inference.predictor import Segmentation


def findings(mask: NDArray[np.uint8], segmentation: Segmentation, first: codecs.Decoded) -> dict[str, Any]:
    """What a mask D,H,W amounts to: voxels, mm2 of a picture or ml of a volume, lesions, and how sure the model is.

    Uncertainty is the variance of the foreground probability over the flips: its mean over the mask, or over the whole
    image where the mask is empty.
    """
    found = mask > 0
    voxels = int(np.count_nonzero(found))
    flat, spacing, variance = first.nifti is None, first.spacing, segmentation.variance
    return {
        "foreground_voxels": voxels,
        "foreground_mm2": voxels * spacing[1] * spacing[2] if flat and spacing is not None else None,
        "foreground_ml": None if flat else volume_ml(voxels, spacing),
        "lesions": components.count(mask),
        "max_probability": float(segmentation.foreground.max()),
        "mean_probability": float(np.mean(segmentation.foreground[found])) if voxels else None,
        "uncertainty": None if variance is None else float(np.mean(variance[found] if voxels else variance)),
    }
