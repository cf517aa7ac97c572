"""Models as MLflow logs them: a network with all it needs, and the code that serves it."""

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow

from segpipe import artifacts, serving, sources, tracking
from segpipe.inference import ModelSpec
from segpipe.serving import ARTIFACT

if TYPE_CHECKING:
    from segpipe.evaluation import Summary
    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest

REQUIREMENTS = (
    "mlflow", "nibabel", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "scikit-image", "scipy",
    "segmentation-models-pytorch", "torch", "torchvision",
)  # fmt: skip


def log(weights: Path) -> str:
    """Log what `Predictor.save` wrote into `weights` as the active run's model and return its ID.

    The project's files that the served model imports travel inside it, so it loads where this project is not.
    """
    spec = ModelSpec.read(weights)
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        code = Path(temporary) / "code"
        for path in sources.closure(["segpipe.served_model"]):
            target = code / path.relative_to(sources.PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code / "segpipe" / "served_model.py"),
            code_paths=[str(code / "segpipe")],
            artifacts={serving.ARTIFACT: str(weights)},
            signature=serving.signature(spec),
            input_example=(serving.example(spec), {"threshold": spec.threshold}),
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        )
    model_id = str(info.model_id)
    mlflow.set_tag(tracking.MODEL, model_id)
    return model_id


def folder(model_uri: str) -> Path:
    """The folder that `Predictor.load` reads, of a logged or registered model."""
    return artifacts.local(model_uri) / "artifacts" / ARTIFACT


def with_threshold(predictor: "Predictor", model_id: str, threshold: float) -> str:
    """The ID of a logged model that serves with this threshold: the given one, or a copy under the active run."""
    if predictor.spec.threshold == threshold:
        mlflow.set_tag(tracking.MODEL, model_id)
        return model_id
    spec = predictor.spec.model_copy(update={"threshold": threshold})
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        weights = Path(temporary) / ARTIFACT
        type(predictor)(spec, predictor.model, predictor.device).save(weights)
        return log(weights)


def log_evaluation(summary: "Summary", model_id: str, manifest: "Manifest", uri: str) -> None:
    """The test metrics with their intervals, on the active run and tied to the model and the dataset."""
    values: dict[str, float] = {}
    for name, interval in summary["metrics"].items():
        values |= {f"test_{name}": interval["mean"], f"test_{name}_n": interval["n_valid"]}
        values |= {f"test_{name}_ci_low": interval["low"], f"test_{name}_ci_high": interval["high"]}
    data = artifacts.dataset(f"{manifest.reader}-test", uri, manifest.test_digest)
    mlflow.log_input(data, context="test")
    mlflow.log_metrics(values, model_id=model_id, dataset=data)
