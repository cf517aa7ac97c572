"""The model as MLflow serves it: files or tensors in, masks in their own geometry and numbers out."""

import base64
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array
from pydantic import ValidationError

from segpipe.config.sections import ServingConfig
from segpipe.data import codecs, encodings
from segpipe.errors import InputError
from segpipe.inference.input_assembly import unlike
from segpipe.inference.predictor import Predictor
from segpipe.inference.quantities import findings
from segpipe.inference.spec import ModelSpec
from segpipe.serving.request import KINDS, Parameters, Refusal, columns, parameters, read, rows_of

ARTIFACT = "segpipe"
LIMITS = ("max_pixels", "max_batch")
ANSWER: dict[str, DataType | AnyType | Array] = {
    "mask": AnyType(),
    "foreground_voxels": DataType.long,
    "foreground_mm2": DataType.double,
    "foreground_ml": DataType.double,
    "lesions": DataType.long,
    "by_class": AnyType(),
    "max_probability": DataType.double,
    "mean_probability": DataType.double,
    "uncertainty": DataType.double,
    "probabilities": DataType.string,
    "warnings": Array(DataType.string),
    "error": DataType.string,
}
LOG = logging.getLogger(__name__)


def signature(spec: ModelSpec) -> ModelSignature:
    """Outputs and parameters; no inputs, because MLflow silently drops columns that a signature does not name."""
    outputs: list[ColSpec | TensorSpec] = [ColSpec(kind, name, required=False) for name, kind in ANSWER.items()]
    defaults = Parameters(**spec.labelling._asdict())._asdict()
    params = [ParamSpec(name, KINDS[type(value)], value) for name, value in defaults.items()]
    return ModelSignature(outputs=Schema(outputs), params=ParamSchema(params))


def example(spec: ModelSpec) -> pd.DataFrame:
    """One request with made-up content, so that no patient's image is stored with a model."""
    rng = np.random.default_rng(0)
    if spec.kind == "picture":
        data = codecs.encode_picture(rng.integers(0, 256, (64, 64), dtype=np.uint8))
    else:
        data = codecs.encode_nifti(rng.random((16, 16, 4), dtype=np.float32), np.diag([2.0, 2.0, 5.0, 1.0]))
    return pd.DataFrame({name: [base64.b64encode(data).decode("ascii")] for name in columns(spec)})


class ServedModel(PythonModel):
    """Answers rows of files as base64 text. `predict` holds no state: safe in threads."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights and answer once, so that the first request is as fast as the next.

        Raises InputError for a damaged model and a limit that ServingConfig does not allow.
        """
        given = context.model_config or {}
        try:
            self.limits = ServingConfig.model_validate({name: given[name] for name in LIMITS if name in given})
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"model_config {first['loc'][0]}={first['input']}: {first['msg']}") from None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Predictor.load(Path(context.artifacts[ARTIFACT]), device)
        spec = self.predictor.spec
        blank = np.zeros((len(spec.channels), 1, *spec.preprocess.size), dtype=np.float32)
        self.predictor.segment(blank, spec.threshold, spacing=(1.0, *(spec.preprocess.spacing or (1.0, 1.0))))

    def predict(  # type: ignore[override]  # MLflow leaves out a context that the signature does not name
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row of ANSWER for each row of the request; a bad row has its `error` alone.

        Raises Refusal for a request at fault, and, with the first row's reason, where no row can be answered.
        """
        wanted = parameters(params, self.predictor.spec)
        rows = rows_of(model_input, self.predictor.spec, self.limits.max_batch)
        answers = [self._attempt(number, row, wanted) for number, row in enumerate(rows)]
        if isinstance(answers[0], Refusal) and all(isinstance(answer, Refusal) for answer in answers):
            raise answers[0]
        rows = [{"error": one.reason} if isinstance(one, Refusal) else one for one in answers]
        return pd.DataFrame([[row.get(name) for name in ANSWER] for row in rows], columns=list(ANSWER), dtype=object)

    def _attempt(self, number: int, row: dict[str, Any], wanted: Parameters) -> dict[str, Any] | Refusal:
        try:
            return self._answer(row, wanted)
        except InputError as error:
            return Refusal(str(error), number)
        except Exception as error:  # the client gets a line, the other rows their answers, the log the traceback
            LOG.exception("row %d", number)
            memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
            reason = "not enough memory for an image of this size" if memory else "internal error, see the server's log"
            return Refusal(reason, number, INTERNAL_ERROR)

    def _answer(self, row: dict[str, Any], wanted: Parameters) -> dict[str, Any]:
        spec = self.predictor.spec
        first, image, warnings = read(row, spec, self.limits.max_pixels)
        segmentation = self.predictor.answer(self.predictor.prepare(image, first.spacing), wanted.labelling)
        asked = wanted.return_probabilities
        return {
            "mask": encodings.encode(segmentation.mask, first, spec.classes, wanted.output),
            **findings(segmentation.mask, segmentation, first, spec.classes),
            "probabilities": encodings.encode_probabilities(segmentation.foreground, first) if asked else None,
            "warnings": [*warnings, *unlike(image, first.spacing, spec), *wanted.labelling.less_than(spec.labelling)],
        }
