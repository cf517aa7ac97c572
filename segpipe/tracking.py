"""Everything segpipe does with MLflow Tracking: where the store is, runs, their artifacts and logged models."""

import atexit
import json
import logging
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow  # reads the variables above when imported
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException

from segpipe import config as settings
from segpipe import sources
from segpipe.config import Config
from segpipe.errors import InputError, one_line, redact

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset

    from segpipe.engine import EpochReport, FitResult
    from segpipe.evaluation import Summary
    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest

STEP, KEY, PARTS = "segpipe.step", "segpipe.key", "segpipe.parts"
REASON, FIGURE, BECAUSE = "segpipe.reason", "segpipe.figure", "segpipe.because"
MODEL = "segpipe.model_id"
CONFIG = "config/resolved.yaml"
INPUT = "segpipe.input."


def connect() -> None:
    """Point MLflow at $MLFLOW_TRACKING_URI, or at `mlflow.db` in the project folder.

    A relative path becomes absolute, for this process and those it starts. Raises InputError where the store does not
    answer.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{sources.PROJECT / 'mlflow.db'}"
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).resolve()
        if not path.parent.is_dir():
            raise InputError(f"tracking store {uri}: no such folder {path.parent}")
        uri = f"sqlite:///{path}"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    try:
        MlflowClient().search_experiments(max_results=1)
    except Exception as error:
        raise InputError(f"tracking store {redact(uri)} does not answer: {one_line(error)}") from None


def experiment(name: str) -> str:
    """The ID of an experiment, created if need be; with an sqlite store its artifacts lie beside the database."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        uri = mlflow.get_tracking_uri()
        beside = Path(uri.removeprefix("sqlite:///")).parent / "mlruns" if uri.startswith("sqlite") else None
        location = (beside / settings.digest(name)[:8]).as_uri() if beside else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise InputError(f"tracking.experiment={name}: deleted on the server; restore it or choose another name")
    return str(found.experiment_id)


@contextmanager
def run(step: str, config: Config) -> Iterator[Run]:
    """The MLflow run that stands for one step, or for the whole chain: the one MLflow Projects has opened for this
    process, or a new one. The resolved config is logged at once.

    An exception ends the run as FAILED with its reason as a tag, an interrupt as KILLED; both pass on.
    """
    given = os.environ.pop("MLFLOW_RUN_ID", None)
    if not given and not {"MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"} & set(os.environ):
        mlflow.set_experiment(experiment_id=experiment(config.tracking.experiment))
    started = mlflow.start_run(run_id=given, run_name=None if given else step)
    run_id, client = started.info.run_id, MlflowClient()
    try:
        params = [Param(f"cfg.{name}", value[:6000]) for name, value in settings.flat(config).items()]
        client.log_batch(run_id, params=params, tags=[RunTag(STEP, step)])
        mlflow.log_text(settings.dump(config), CONFIG)
        yield started
        mlflow.end_run("FINISHED")
    except (KeyboardInterrupt, SystemExit):
        client.set_tag(run_id, REASON, "interrupted")
        mlflow.end_run("KILLED")
        raise
    except BaseException as error:
        client.set_tag(run_id, REASON, one_line(error))
        if not isinstance(error, InputError):
            mlflow.log_text(redact(traceback.format_exc()), "logs/traceback.txt")
        mlflow.end_run("FAILED")
        raise


def fail_given_run(reason: str) -> None:
    """Note the reason on the run that MLflow Projects opened for this process, before the process ends."""
    connect()
    client, run_id = MlflowClient(), os.environ["MLFLOW_RUN_ID"]
    client.set_tag(run_id, REASON, reason)
    client.set_terminated(run_id, "FAILED")


def tag(**values: str) -> None:
    """Set tags `segpipe.NAME` on the active run."""
    mlflow.set_tags({f"segpipe.{name}": value for name, value in values.items()})


def finished(step: str, key: str | None = None) -> list[Run]:
    """Finished runs of a step in any experiment, newest first; with `key` only those with that key."""
    client = MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`{STEP}` = '{step}' and attributes.status = 'FINISHED'"
    if key:
        query += f" and tags.`{KEY}` = '{key}'"
    return list(client.search_runs(experiments, query, max_results=5, order_by=["attributes.start_time DESC"]))


def upstream(run_id: str, step: str) -> Run:
    """A finished run of `step`. Raises InputError where there is none of that ID, it is not finished or of another
    step.
    """
    try:
        found = MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise InputError(f"{step}_run={run_id}: {one_line(error)}") from None
    actual = found.data.tags.get(STEP, "no segpipe step")
    if actual != step:
        raise InputError(f"{step}_run={run_id}: that run belongs to '{actual}', not to '{step}'")
    if found.info.status != "FINISHED":
        raise InputError(f"{step}_run={run_id}: that run is {found.info.status}, not FINISHED")
    return found


def has_artifact(run_id: str, path: str) -> bool:
    """Whether a run is there and has that file among its artifacts."""
    folder = path.rsplit("/", 1)[0] if "/" in path else None
    try:
        return any(item.path == path for item in MlflowClient().list_artifacts(run_id, folder))
    except MlflowException:
        return False


def local(uri: str) -> Path:
    """A local path to an artifact: in place for a store on this machine, from a server a copy that this process removes
    when it ends. Raises InputError where there is no such artifact.
    """
    served = mlflow.get_tracking_uri().startswith("http")
    target = tempfile.mkdtemp(dir=_downloads()) if served else None
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: {one_line(error)}") from None


@cache
def _downloads() -> str:
    folder = tempfile.mkdtemp(prefix="segpipe-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def artifact_folder(name: str) -> Iterator[Path]:
    """A folder that becomes the active run's artifact `name` when the block ends well, and nothing otherwise.

    In a store on this machine it is written where it stays, so nothing is stored twice.
    """
    root = _local_root(active().info.artifact_uri)
    if root is not None:
        partial = root / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(root / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        yield Path(temporary)
        mlflow.log_artifacts(temporary, name)


def _local_root(uri: str) -> Path | None:
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


def log_dataset(name: str, uri: str, digest: str, context: str) -> None:
    """Record a dataset artifact, or one split of it, as the active run's input."""
    mlflow.log_input(dataset(f"{name}-{context}", uri, digest), context=context)


def dataset(name: str, uri: str, digest: str) -> "Dataset":
    """An MLflow dataset that stands for a dataset artifact."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    return MetaDataset(  # type: ignore[abstract]  # MLflow's own class, complete at run time
        CodeDatasetSource(tags={"artifact": uri}), name=name, digest=digest
    )


REQUIREMENTS = (
    "mlflow", "nibabel", "numpy", "pandas", "pillow", "pydantic", "pyyaml", "safetensors", "scikit-image", "scipy",
    "segmentation-models-pytorch", "torch", "torchvision",
)  # fmt: skip


def log_model(predictor: "Predictor") -> str:
    """Log a model as the active run's and return its ID.

    The project's files that the served model imports travel inside it, so it loads where this project is not.
    """
    from segpipe import serving

    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        weights, code = Path(temporary) / serving.ARTIFACT, Path(temporary) / "code"
        predictor.save(weights)
        for path in sources.closure(["segpipe.served_model"]):
            target = code / path.relative_to(sources.PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(code / "segpipe" / "served_model.py"),
            code_paths=[str(code / "segpipe")],
            artifacts={serving.ARTIFACT: str(weights)},
            signature=serving.signature(predictor.spec),
            input_example=(serving.example(predictor.spec), {"threshold": predictor.spec.threshold}),
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        )
    model_id = str(info.model_id)
    mlflow.set_tag(MODEL, model_id)
    return model_id


def model_folder(model_uri: str) -> Path:
    """The folder that `Predictor.load` reads, of a logged or registered model."""
    from segpipe.serving import ARTIFACT

    return local(model_uri) / "artifacts" / ARTIFACT


def active() -> Run:
    """The run this process works for. Raises RuntimeError outside of `run`."""
    found = mlflow.active_run()
    if found is None:
        raise RuntimeError("no MLflow run is active")
    return found


def tag_of(run_id: str, name: str) -> str:
    """A tag of a run. Raises InputError where it has none."""
    value = MlflowClient().get_run(run_id).data.tags.get(name)
    if value is None:
        raise InputError(f"run {run_id} has no tag {name}: it was not finished by this version; run that step again")
    return str(value)


def log_epoch(report: "EpochReport") -> None:
    """One epoch's metrics, at step = epoch."""
    mlflow.log_metrics(report.metrics(), step=report.epoch)


def log_training(result: "FitResult", predictor: "Predictor") -> None:
    """The curves, the best epoch and the model of a finished training; the history, last, shows that it is whole."""
    from segpipe import plots

    history = [report.metrics() for report in result.history]
    best = {"best_val_dice": result.best.val_dice, "best_epoch": float(result.best.epoch)}
    model_id = log_model(predictor)
    mlflow.log_metrics(best, model_id=model_id)
    with artifact_folder("training") as folder:
        plots.curves(history, folder / "curves.png")
        (folder / "history.json").write_text(json.dumps(history, indent=1), encoding="utf-8")


def with_threshold(predictor: "Predictor", model_id: str, threshold: float) -> str:
    """The ID of a logged model that serves with this threshold: the given one, or a copy under the active run."""
    if predictor.spec.threshold == threshold:
        mlflow.set_tag(MODEL, model_id)
        return model_id
    spec = predictor.spec.model_copy(update={"threshold": threshold})
    return log_model(type(predictor)(spec, predictor.model, predictor.device))


def log_evaluation(summary: "Summary", model_id: str, manifest: "Manifest", uri: str) -> None:
    """The test metrics with their intervals, on the active run and tied to the model and the dataset."""
    values: dict[str, float] = {}
    for name, interval in summary["metrics"].items():
        values |= {f"test_{name}": interval["mean"], f"test_{name}_n": interval["n_valid"]}
        values |= {f"test_{name}_ci_low": interval["low"], f"test_{name}_ci_high": interval["high"]}
    data = dataset(f"{manifest.reader}-test", uri, manifest.test_digest)
    mlflow.log_input(data, context="test")
    mlflow.log_metrics(values, model_id=model_id, dataset=data)


def version_tags(preprocess: str, evaluate: str) -> dict[str, str]:
    """What a model version remembers: dataset digests, git commit, run IDs, test Dice with its interval."""
    client = MlflowClient()
    run = client.get_run(evaluate)
    train = tag_of(evaluate, f"{INPUT}train")
    figures = {k: f"{v:.6g}" for k, v in run.data.metrics.items() if k.startswith("test_dice")}
    return {
        "dataset_digest": tag_of(preprocess, "segpipe.dataset_digest"),
        "test_digest": tag_of(preprocess, "segpipe.test_digest"),
        "git_commit": client.get_run(train).data.tags.get("mlflow.source.git.commit", "unknown"),
        "preprocess_run": preprocess,
        "train_run": train,
        "evaluate_run": evaluate,
        **figures,
    }
