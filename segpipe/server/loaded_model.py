"""One loaded version of a model: MLflow's scoring application for it, and what /version says."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.types import ParamSchema

import segpipe
from segpipe.config.sections import ServingConfig
from segpipe.errors import InputError, one_line
from segpipe.files import hashes
from segpipe.inference.spec import WEIGHTS
from segpipe.server.mlflow_app import Scoring
from segpipe.serving import request, served_model
from segpipe.tracking import artifacts

if TYPE_CHECKING:
    from segpipe.inference.predictor import Predictor

VERSION = re.compile(r"models:/([^/@]+)/(\d+)")


@dataclass(frozen=True)
class Served:
    """A version that answers; `facts` is what /version says of it, `uri` the one it was loaded from."""

    answers: Scoring
    predictor: "Predictor"
    parameters: ParamSchema
    facts: dict[str, Any]
    uri: str

    @property
    def version(self) -> str:
        """The number of a registered version, otherwise the ID of the logged model; empty where there is neither."""
        return str(self.facts["version"] or self.facts["model_id"] or "")


def load(uri: str, config: ServingConfig) -> Served:
    """Load a model and let it answer its own example; `uri` is one that `pinned` gave. Raises InputError where there
    is no such model or it can't answer.
    """
    folder = artifacts.local(uri)
    weights = folder / "artifacts" / served_model.ARTIFACT / WEIGHTS
    if not weights.is_file():
        raise InputError(f"{uri}: not a model that segpipe logged")
    limits = config.model_dump(include=set(served_model.LIMITS))
    try:
        model = mlflow.pyfunc.load_model(str(folder), model_config=limits)
        predictor = model.unwrap_python_model().predictor
        model.predict(served_model.example(predictor.spec))
    except (MlflowException, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{uri}: {one_line(error)}") from None
    match, spec = VERSION.fullmatch(uri), predictor.spec
    name, number = match.groups() if match else (None, None)
    facts = {
        "name": name,
        "version": number,
        "run_id": model.metadata.run_id,
        "model_id": model.metadata.model_id,
        "weights_sha256": hashes.sha256(weights),
        **spec.labelling._asdict(),
        "columns": list(request.columns(spec)),
        "classes": list(spec.classes),
        "segpipe": segpipe.__version__,
        "mlflow": version("mlflow"),
    }
    return Served(Scoring(model), predictor, model.metadata.get_params_schema() or ParamSchema([]), facts, uri)
