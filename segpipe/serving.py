"""The model as MLflow serves it: base64 files in, masks in their own geometry out."""

import base64
import binascii
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from numpy.typing import NDArray

from segpipe.data import codecs
from segpipe.data.volume import volume_ml
from segpipe.errors import InputError
from segpipe.inference import ModelSpec, Predictor

ARTIFACT = "segpipe"
COLUMN = "image"


def signature(spec: ModelSpec) -> ModelSignature:
    """Column `image`, or one column per channel for models of several files; `threshold` as a parameter."""
    columns: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, COLUMN, required=not _columns(spec))]
    columns += [ColSpec(DataType.string, name, required=False) for name in _columns(spec)]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "mask"),
        ColSpec(DataType.long, "foreground_voxels"),
        ColSpec(DataType.double, "foreground_ml", required=False),
        ColSpec(DataType.double, "max_probability"),
    ]
    threshold = ParamSpec("threshold", DataType.double, spec.threshold)
    return ModelSignature(Schema(columns), Schema(outputs), ParamSchema([threshold]))


def _columns(spec: ModelSpec) -> tuple[str, ...]:
    return () if spec.reader == "folder" or len(spec.channels) == 1 else spec.channels


def example(spec: ModelSpec) -> pd.DataFrame:
    """One request with made-up content, so that no patient's image is stored with a model."""
    rng = np.random.default_rng(0)
    if spec.reader == "folder":
        plane = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        return pd.DataFrame({COLUMN: [_text(codecs.encode_picture(plane))]})
    values = rng.random((16, 16, 4), dtype=np.float32)
    encoded = _text(codecs.encode_nifti(values, np.diag([2.0, 2.0, 5.0, 1.0])))
    return pd.DataFrame({name: [encoded] for name in _columns(spec) or (COLUMN,)})


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class ServedModel(PythonModel):
    """Answers rows of base64 PNG, JPEG, TIFF, BMP or NIfTI files. `predict` holds no state: safe in threads."""

    def load_context(self, context: PythonModelContext) -> None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor.load(Path(context.artifacts[ARTIFACT]), device)

    def predict(  # type: ignore[override]  # MLflow leaves out a context that the signature does not name
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each row of the request.

        Raises MlflowException (HTTP 400) naming the row where a file can't be read or does not fit the model, and for
        a threshold outside 0..1.
        """
        threshold = float((params or {}).get("threshold", self.predictor.spec.threshold))
        if not 0 < threshold < 1:
            raise MlflowException.invalid_parameter_value(f"threshold {threshold} is not between 0 and 1")
        if model_input.empty:
            wanted = "+".join(_columns(self.predictor.spec))
            known = f"{COLUMN} or {wanted}" if wanted else COLUMN
            raise MlflowException.invalid_parameter_value(f"no row with a column {known}")
        rows = []
        for number, row in enumerate(model_input.to_dict(orient="records")):
            try:
                rows.append(self._answer({str(k): v for k, v in row.items()}, threshold))
            except InputError as error:
                raise MlflowException.invalid_parameter_value(f"row {number}: {error}") from None
        return pd.DataFrame(rows)

    def _answer(self, row: dict[str, Any], threshold: float) -> dict[str, Any]:
        first, image = self._image(row)
        segmentation = self.predictor.segment(image, threshold)
        voxels = int(np.count_nonzero(segmentation.mask))
        return {
            "mask": _text(codecs.encode_mask(segmentation.mask, first, len(self.predictor.spec.classes))),
            "foreground_voxels": voxels,
            "foreground_ml": volume_ml(voxels, first.spacing),
            "max_probability": float(segmentation.foreground.max()),
        }

    def _image(self, row: dict[str, Any]) -> tuple[codecs.Decoded, NDArray[np.float32]]:
        """The file that gives the geometry, and the image C,D,H,W. Raises InputError."""
        spec = self.predictor.spec
        if not any(isinstance(row.get(name), str) for name in _columns(spec)):
            only = _decode(row.get(COLUMN), COLUMN)
            if only.nifti is None and spec.reader != "folder":
                raise InputError(f"{COLUMN}: a picture; this model takes NIfTI volumes")
            if only.nifti is None:
                return only, codecs.as_channels(only.array, len(spec.channels), COLUMN)
            return only, only.array
        first, *others = [_decode(row.get(name), name) for name in spec.channels]
        for name, file in zip(spec.channels, (first, *others), strict=True):
            if file.nifti is None or len(file.array) != 1:
                raise InputError(f"{name}: expected a NIfTI file with one volume")
        onto = [other if codecs.same_grid(first, other) else codecs.resample(other, first) for other in others]
        return first, np.concatenate([file.array for file in (first, *onto)])


def _decode(value: object, column: str) -> codecs.Decoded:
    if not isinstance(value, str):
        raise InputError(f"column '{column}' is missing")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"column '{column}': not base64") from None
    return codecs.decode(data, column)
