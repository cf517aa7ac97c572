"""The experiments that runs are in; those of scratch ones are only to be compared, and no other run builds on them."""

import os

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException

from segpipe.errors import InputError
from segpipe.files import hashes
from segpipe.tracking import connection, locations, run_tags


def ensure(name: str) -> str:
    """The ID of an experiment, created if need be; with an sqlite store its artifacts lie beside the database."""
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        path = connection.database()
        location = (path.parent / locations.FOLDER / hashes.of_json(name)[:8]).as_uri() if path else None
        try:
            return str(mlflow.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = mlflow.get_experiment_by_name(name)
            if found is None:
                raise
    _check_active(found)
    return str(found.experiment_id)


def check(name: str) -> None:
    """Raises InputError where the experiment of new runs was deleted: the one that MLflow's environment names, or else
    this one.
    """
    given, client = os.environ.get("MLFLOW_EXPERIMENT_ID"), MlflowClient()
    by_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", name)
    found = client.get_experiment(given) if given else client.get_experiment_by_name(by_name)
    if found is not None:
        _check_active(found)


def _check_active(found: Experiment) -> None:
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise InputError(
            f"experiment {found.name} was deleted; bring it back with: mlflow experiments restore --experiment-id "
            f"{found.experiment_id}; or name another one: tracking.experiment"
        )


def name_of(run: Run) -> str:
    """The name of a run's experiment."""
    return str(MlflowClient().get_experiment(run.info.experiment_id).name)


def ensure_scratch(name: str) -> str:
    """The ID of an experiment whose runs no other run builds on, created if need be. Raises InputError where there is
    one of that name whose runs are built on.
    """
    known, client = mlflow.get_experiment_by_name(name), MlflowClient()
    experiment_id = ensure(name)
    if known is not None and run_tags.SCRATCH not in known.tags:
        raise InputError(f"experiment {name}: its runs are built on; give another name for what is only to be compared")
    client.set_experiment_tag(experiment_id, run_tags.SCRATCH, "true")
    return experiment_id


def built_on() -> list[str]:
    """The experiments whose runs others may build on."""
    return [e.experiment_id for e in MlflowClient().search_experiments() if run_tags.SCRATCH not in e.tags]
