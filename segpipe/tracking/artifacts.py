"""Files and datasets among a run's artifacts, in place for a store on this machine, through a cache for a server."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository

from segpipe.files import hashes, inventory
from segpipe.files.inventory import Inventory
from segpipe.files.staging import staged
from segpipe.tracking import artifact_cache, connection, runs
from segpipe.tracking.locations import local_root

if TYPE_CHECKING:
    from mlflow.data.dataset import Dataset
    from mlflow.entities import Run

WEIGHTS = "artifacts/segpipe"  # the folder with the inventory in a logged model: its artifact serving.ARTIFACT


def has(run_id: str, path: str) -> bool:
    """Whether a run is there and has that file among its artifacts."""
    listed = connection.get_if_there(MlflowClient().list_artifacts, run_id, path.rpartition("/")[0] or None)
    return any(item.path == path for item in listed or ())


def place(run: "Run", path: str) -> str:
    """Where a person finds an artifact of a run: its path on this machine, or its address on the server."""
    here = local_root(run.info.artifact_uri)
    return str(here / path) if here else f"{connection.link(run)}/artifacts/{path}"


def damage(root: str, path: str) -> str:
    """What is wrong with a folder below an artifact URI since it was written, in words; empty where nothing is. On a
    server names and sizes are compared, what is fetched is read.
    """
    here = local_root(root)
    return artifact_cache.damage(root, path) if here is None else inventory.damage(here / path)


def local(uri: str) -> Path:
    """A local path to an artifact or a model: in place for a store on this machine; from a server through the cache
    where it has an inventory, otherwise a copy that this process removes when it ends. Not to be written to.

    Raises InputError where there is no such artifact, or what came is damaged, StoreError where the store is away or
    refuses.
    """
    try:
        place = _place(uri)
        if place and (found := _found(*place)):
            return found
        served = mlflow.get_tracking_uri().startswith("http")
        target = str(artifact_cache.temporary()) if served else None
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=target))
    except (MlflowException, OSError) as error:
        raise connection.refusal(uri, error) from None


def _place(uri: str) -> tuple[str, str] | None:
    """The artifact URI of a run or model and the path below it, empty for all of it; None for URIs of other kinds,
    which MLflow resolves.
    """
    if RunsArtifactRepository.is_runs_uri(uri):
        run_id, path = RunsArtifactRepository.parse_runs_uri(uri)
        return MlflowClient().get_run(run_id).info.artifact_uri, path.rstrip("/")
    if ModelsArtifactRepository.is_models_uri(uri):
        model, path = ModelsArtifactRepository.split_models_uri(uri)
        return ModelsArtifactRepository.get_underlying_uri(model), path
    return None


def _found(root: str, path: str) -> Path | None:
    """Where an artifact is on this machine, fetched if need be; None where only MLflow may know it."""
    here = local_root(root)
    if here is not None:
        return here / path if (here / path).exists() else None
    if not path:
        return _model(root)
    folder, _, inside = path.partition("/")
    return artifact_cache.local(root, folder, inside)


@cache
def _model(root: str) -> Path | None:
    """A whole logged model from a server: its weights from the cache, the small rest a copy beside them."""
    weights = artifact_cache.local(root, WEIGHTS)
    if weights is None:
        return None
    folder = artifact_cache.copy_without(root, WEIGHTS)
    link = folder / WEIGHTS
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(weights)
    return folder


@contextmanager
def folder(name: str) -> Iterator[Path]:
    """A folder that becomes the active run's artifact `name`, with its inventory, when the block ends well, and nothing
    otherwise.

    In a store on this machine it is written where it stays, so nothing is stored twice.
    """
    run = runs.active()
    root = local_root(run.info.artifact_uri)
    if root is None:
        with _sending(name, run) as temporary:
            yield temporary
        return
    partial = root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        inventory.write(partial)
        partial.rename(root / name)
        hashes.carry_over(partial, root / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def files(name: str, run: "Run | None" = None) -> Iterator[Path]:
    """A folder whose content joins an artifact folder of a run, by default the active one, and its inventory, when the
    block ends well. Until all of it is there the inventory names no file that is replaced: a kill damages nothing. A
    file that was damaged before does not become whole by that.
    """
    run = run or runs.active()
    root = local_root(run.info.artifact_uri)
    if root is None:
        with _sending(name, run) as temporary:
            yield temporary
        return
    target = root / name
    with staged(target) as staging:
        yield staging
        added = inventory.of(staging)
        known = inventory.read(target) if (target / inventory.FILE).is_file() else inventory.of(target)
        others = _without(known, added)
        inventory.save(others, target)
    inventory.save(others | added, target)


def _without(known: Inventory, added: Inventory) -> Inventory:
    """What an inventory names beside what is added."""
    return {path: written for path, written in known.items() if path not in added}


@contextmanager
def _sending(name: str, run: "Run") -> Iterator[Path]:
    """A folder that is sent to a run's server when the block ends well, in the order of `files`."""
    with tempfile.TemporaryDirectory(prefix="segpipe-") as temporary:
        folder, run_id = Path(temporary), run.info.run_id
        yield folder
        added, before = inventory.of(folder), artifact_cache.find(run.info.artifact_uri, name)
        known = before.entries() if before else {}
        others = _without(known, added)
        if others != known:
            mlflow.log_text(inventory.text(others), f"{name}/{inventory.FILE}", run_id=run_id)
        mlflow.log_artifacts(temporary, name, run_id=run_id)
        inventory.save(others | added, folder)
        mlflow.log_artifact(str(folder / inventory.FILE), name, run_id=run_id)


def sweep(root: str) -> None:
    """Remove what a process that is gone has left half written below an artifact URI, in a store on this machine."""
    here = local_root(root)
    if here is not None:
        for pattern in (".*.partial", ".partial-*", "*/.partial-*"):
            for left in here.glob(pattern):
                shutil.rmtree(left, ignore_errors=True)  # another process does so too, or it is another user's


def discard(run_id: str, path: str) -> None:
    """Remove a folder of a run's artifacts."""
    get_artifact_repository(MlflowClient().get_run(run_id).info.artifact_uri).delete_artifacts(path)


def log_dataset(name: str, uri: str, digest: str, context: str) -> "Dataset":
    """Record a dataset artifact, or one split of it, as the active run's input; what stands for it in MLflow."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource(tags={"artifact": uri})
    data = MetaDataset(source, name=f"{name}-{context}", digest=digest)  # type: ignore[abstract]  # complete at run time
    mlflow.log_input(data, context=context)
    return data
