"""Runs that nothing would ever end: RUNNING, and the process that worked for them is gone."""

from collections.abc import Callable
from http import HTTPStatus

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from segpipe import artifacts, processes, tracking


def reap(say: Callable[[str], None]) -> list[str]:
    """End as KILLED what processes of this host left RUNNING, in any experiment; their IDs."""
    client = MlflowClient()
    experiments = [found.experiment_id for found in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`{processes.HOST}` = '{processes.host()}'"
    gone = [run for run in client.search_runs(experiments, query) if processes.alive(run.data.tags) is False]
    return [run.info.run_id for run in gone if _ended(run, say)]


def _ended(run: Run, say: Callable[[str], None]) -> bool:
    """End a run as KILLED; whether this user may."""
    try:
        tracking.end(run.info.run_id, "KILLED", f"its process is gone (pid {run.data.tags[processes.PID]})")
    except MlflowException as error:
        if error.get_http_status_code() != HTTPStatus.FORBIDDEN:
            raise
        return False
    artifacts.sweep(run.info.artifact_uri)
    say(f"run {run.info.run_id} ({run.info.run_name}) was left RUNNING, its process is gone: now KILLED")
    return True
