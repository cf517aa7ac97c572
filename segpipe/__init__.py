"""segpipe: from a folder of images and masks to an evaluated, promoted and served segmentation model.

import segpipe
model = segpipe.load("models:/stroke@champion")
found = model.predict({"dwi": "dwi.nii.gz", "adc": "adc.nii.gz"})
found.save("mask.nii.gz")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segpipe.prediction.loaded import Model, Prediction, load

__version__ = "0.9.0"
__all__ = ["Model", "Prediction", "__version__", "load"]
LATE = ("Model", "Prediction", "load")  # torch and mlflow are imported when one of these is first asked for


def __getattr__(name: str) -> Any:
    """Whatever is imported late."""
    if name not in LATE:
        raise AttributeError(f"module 'segpipe' has no attribute '{name}'")
    return getattr(import_module("segpipe.prediction.loaded"), name)
