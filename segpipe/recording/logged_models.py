"""Models as MLflow logs them: a network with all it needs, and the code that serves it. Torch is imported late, as the
driver only asks whether a model is whole.
"""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mlflow
from mlflow import MlflowClient

from segpipe.config import settings
from segpipe.config.sections import Config, ServingConfig
from segpipe.files import code_closure, hashes, inventory, project
from segpipe.recording import artifact_tree
from segpipe.tracking import artifacts, connection, run_tags, runs

if TYPE_CHECKING:
    from segpipe.data.manifest import Manifest
    from segpipe.evaluation.summary import Summary
    from segpipe.inference.predictor import Predictor
    from segpipe.inference.spec import Labelling

ARTIFACT = artifacts.WEIGHTS.rpartition("/")[2]
FACTS = ("hardware", "version")
REQUIREMENTS = (
    "mlflow", "nibabel", "numpy", "pandas", "pillow", "pydantic", "pydicom", "pyyaml", "safetensors", "scikit-image",
    "scipy", "segmentation-models-pytorch", "torch", "torchvision",
)  # fmt: skip


class Training(NamedTuple):
    """The records of a training run: config, every epoch's metrics, and the facts that are in no config
    (model.parameters, best_epoch counted from 1, hardware.*, version.*).
    """

    config: Config
    history: list[dict[str, float]]
    facts: dict[str, str]


def training(run_id: str) -> Training:
    """Read back a finished training run. Raises InputError where its artifacts are gone."""
    config = settings.recorded(artifacts.local(f"runs:/{run_id}/{runs.CONFIG}"), {})
    history = json.loads(artifacts.local(f"runs:/{run_id}/{artifact_tree.HISTORY}").read_text(encoding="utf-8"))
    known = MlflowClient().get_run(run_id).data.params
    params = {name.removeprefix("cfg."): value for name, value in known.items()}
    facts = {name: value for name, value in sorted(params.items()) if name.partition(".")[0] in FACTS}
    best = max(history, key=lambda report: report["val_dice"])
    more = {"model.parameters": params["model.parameters"], "best_epoch": str(int(best["epoch"]) + 1)}
    epochs = int(known.get(artifact_tree.PLANNED["epochs"], config.train.epochs))
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": epochs})})
    return Training(config, history, facts | more)


def log(weights: Path) -> str:
    """Log what `Predictor.save` wrote into `weights` as the active run's model and return its ID; the folder gets its
    inventory.

    The project's files that the served model imports travel inside it, so it loads where this project is not.
    """
    from segpipe.inference.spec import ModelSpec
    from segpipe.serving import served_model

    spec = ModelSpec.read(weights)
    inventory.write(weights)
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        code = Path(temporary) / "code"
        for path in code_closure.Code().closure(["segpipe.serving.model_file"]):
            target = code / path.relative_to(project.PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code / "segpipe" / "serving" / "model_file.py"),
            code_paths=[str(code / "segpipe")],
            artifacts={ARTIFACT: str(weights)},
            model_config=ServingConfig().model_dump(include=set(served_model.LIMITS)),
            signature=served_model.signature(spec),
            input_example=(served_model.example(spec), {"threshold": spec.threshold}),
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        )
    model_id = str(info.model_id)
    mlflow.set_tag(run_tags.MODEL, model_id)
    return model_id


def folder(model_uri: str) -> Path:
    """The folder that `Predictor.load` reads, of a logged or registered model."""
    return artifacts.local(model_uri) / artifacts.WEIGHTS


def damage(model_id: str) -> str:
    """How a logged model's weights were damaged since they were logged, in words; empty where they are whole."""
    model = connection.get_if_there(MlflowClient().get_logged_model, model_id)
    return artifacts.damage(model.artifact_location, artifacts.WEIGHTS) if model else f"model {model_id} is gone"


def weights(model_id: str) -> tuple[str, float]:
    """SHA-256 of a logged model's weights, and their size in MB (10^6 bytes)."""
    from segpipe.inference.spec import WEIGHTS

    path = folder(f"models:/{model_id}") / WEIGHTS
    return hashes.sha256(path), path.stat().st_size / 1e6


def as_measured(predictor: "Predictor", model_id: str, labelling: "Labelling") -> str:
    """The ID of a logged model that serves as this predictor does, with this labelling: the given one, or a copy under
    the active run.
    """
    spec = predictor.spec.model_copy(update=labelling._asdict())
    if spec == spec.read(folder(f"models:/{model_id}")):
        mlflow.set_tag(run_tags.MODEL, model_id)
        return model_id
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        weights = Path(temporary) / ARTIFACT
        type(predictor)(spec, predictor.model, predictor.device).save(weights)
        return log(weights)


def log_evaluation(summary: "Summary", model_id: str, manifest: "Manifest", uri: str) -> None:
    """The test metrics with their intervals, on the active run and tied to the model and the dataset."""
    values = {"latency_ms": summary.latency_ms, "size_mb": summary.size_mb, "threshold": summary.threshold}
    for name, found in summary.metrics.items():
        values |= {f"test_{name}": found.mean, f"test_{name}_n": found.n_valid}
        values |= {f"test_{name}_ci_low": found.low, f"test_{name}_ci_high": found.high}
    data = artifacts.log_dataset(manifest.reader, uri, manifest.test_digest, "test")
    mlflow.log_metrics(values, model_id=model_id, dataset=data)
    runs.tag(weights_sha256=summary.weights_sha256)
