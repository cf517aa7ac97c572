"""Files and datasets among a run's artifacts, in place for a store on this machine, by copy for a server."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from segpipe import tracking
from segpipe.errors import InputError, one_line
from segpipe.offline import staged

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset


def has(run_id: str, path: str) -> bool:
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
    in_place = _in_place(uri)
    if in_place is not None:
        return in_place
    served = mlflow.get_tracking_uri().startswith("http")
    target = tempfile.mkdtemp(dir=_downloads()) if served else None
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
    except (MlflowException, OSError) as error:
        raise InputError(f"{uri}: {one_line(error)}") from None


def _in_place(uri: str) -> Path | None:
    """Where an artifact runs:/ID/PATH lies on this machine; None where it does not, or is of another kind."""
    if not uri.startswith("runs:/"):
        return None  # MLflow itself finds models in place, and copies what belongs to a run
    run_id, _, path = uri.removeprefix("runs:/").partition("/")
    try:
        root = local_root(MlflowClient().get_run(run_id).info.artifact_uri)
    except MlflowException as error:
        raise InputError(f"{uri}: {one_line(error)}") from None
    return root / path if root is not None and (root / path).exists() else None


@cache
def _downloads() -> str:
    folder = tempfile.mkdtemp(prefix="segpipe-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """A folder that becomes the active run's artifact `name` when the block ends well, and nothing otherwise.

    In a store on this machine it is written where it stays, so nothing is stored twice.
    """
    root = local_root(tracking.active().info.artifact_uri)
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


def local_root(uri: str) -> Path | None:
    """The folder that an artifact URI stands for; None where it is not on this machine."""
    parts = urlparse(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(uri) if not parts.scheme else None


def discard(run_id: str, path: str) -> None:
    """Remove a folder of a run's artifacts."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(MlflowClient().get_run(run_id).info.artifact_uri).delete_artifacts(path)


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


@contextmanager
def files(name: str) -> Iterator[Path]:
    """A folder whose content joins the active run's artifact folder `name` when the block ends well."""
    root = local_root(tracking.active().info.artifact_uri)
    if root is not None:
        with staged(root / name) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        yield Path(temporary)
        mlflow.log_artifacts(temporary, name)
