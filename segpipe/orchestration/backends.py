"""Backends of MLflow Projects that run a step on another machine: what they need, and how a step is handed to one."""

import json
import os
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from segpipe.errors import InputError, nearest, one_line
from segpipe.files import project
from segpipe.runtime import processes
from segpipe.tracking import run_tags, runs

if TYPE_CHECKING:
    from segpipe.orchestration.launch import Attempt

NEEDS: dict[str, tuple[str, ...]] = {"local": (), "kubernetes": ("kubernetes", "docker"), "databricks": ()}
PATIENCE = 8.0  # seconds that a cancelled job has to end


def check(backend: str, config: str) -> None:
    """Raises InputError for a backend that is unknown or lacks a package or its config, a JSON file."""
    known = [*NEEDS, *(point.name for point in metadata.entry_points(group="mlflow.project_backend"))]
    if backend not in known:
        raise InputError(f"--backend {backend}: unknown{nearest(backend, known)}; installed are {', '.join(known)}")
    if missing := [name for name in NEEDS.get(backend, ()) if not _installed(name)]:
        raise InputError(f"--backend {backend} needs more packages: pip install {' '.join(missing)}")
    if backend in ("kubernetes", "databricks") and not config:
        raise InputError(f"--backend {backend} needs --backend-config FILE")
    settings(config)


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def settings(path: str) -> dict[str, Any]:
    """What the JSON file for a backend holds; nothing without a file. Raises InputError."""
    if not path:
        return {}
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--backend-config {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"--backend-config {path}: not valid JSON: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"--backend-config {path}: not a JSON object; write {{...}}")
    return found


def run(attempt: "Attempt") -> tuple[str, str]:
    """Hand a step on and wait for it: the ID of its run, empty where there is none, and why it failed, as far as the
    step itself can't say it.
    """
    import mlflow

    how, parent = attempt.launcher.how, attempt.launcher.parent.info
    os.environ.pop(processes.DRIVER, None)  # means nothing on another machine
    with attempt.launcher.session.submitting:
        try:
            with runs.within(parent.run_id):
                submitted = mlflow.projects.run(
                    str(project.PROJECT),
                    entry_point=attempt.name,
                    parameters=attempt.parameters,
                    experiment_id=parent.experiment_id,
                    backend=how.backend,
                    backend_config=settings(how.backend_config),
                    env_manager=how.env_manager,
                    run_name=attempt.name,
                    synchronous=False,
                )
        except Exception as error:  # whatever the backend can't do: no image, no cluster, no permission
            return _begun(attempt), one_line(error)
        _tag(submitted.run_id, attempt.tags)
    return submitted.run_id, _outcome(attempt, submitted.wait, submitted.cancel)


def _begun(attempt: "Attempt") -> str:
    """The run that MLflow has opened for a step which then could not be handed on; empty where it has not."""
    from mlflow import MlflowClient

    theirs = [f"tags.`{name}` = '{value}'" for name, value in attempt.tags.items() if name.startswith("mlflow.")]
    query = " and ".join([*theirs, "attributes.status = 'RUNNING'"])
    for run in MlflowClient().search_runs([attempt.launcher.parent.info.experiment_id], query):
        if run_tags.BECAUSE not in run.data.tags:
            _tag(run.info.run_id, attempt.tags)
            return str(run.info.run_id)
    return ""


def _tag(run_id: str, tags: dict[str, str]) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    MlflowClient().log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _outcome(attempt: "Attempt", wait: Callable[[], bool], cancel: Callable[[], None]) -> str:
    """Wait for a job, or cancel it when it has to end; what there is to say of it."""
    said: SimpleQueue[str] = SimpleQueue()
    job = f"its job on {attempt.launcher.how.backend}"

    def waited() -> None:
        wait()
        said.put(f"{job} ended without a word")

    _start(waited, said)
    while said.empty() and not attempt.over():
        time.sleep(processes.TICK)
    if said.empty():
        _start(cancel, said)
    try:
        return said.get(timeout=PATIENCE)
    except Empty:
        return f"{job} was cancelled, and had not ended after {PATIENCE:.0f} s"


def _start(act: Callable[[], None], said: "SimpleQueue[str]") -> None:
    """Do something in a thread that nobody has to wait for; what goes wrong is said."""

    def run() -> None:
        try:
            act()
        except Exception as error:  # of another machine's client
            said.put(one_line(error))

    threading.Thread(target=run, daemon=True).start()
