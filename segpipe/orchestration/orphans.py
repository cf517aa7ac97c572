"""Runs that nothing would ever end: RUNNING, and the process that worked for them is gone."""

from collections.abc import Callable
from http import HTTPStatus

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from segpipe.errors import SegpipeError
from segpipe.recording import offline
from segpipe.runtime import processes
from segpipe.tracking import artifacts, connection, runs


def reap(say: Callable[[str], None]) -> list[str]:
    """End as KILLED what processes of this host left RUNNING, in any experiment; their IDs. A training that has ended,
    but could not send that, is sent instead.
    """
    client = MlflowClient()
    experiments = [found.experiment_id for found in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`{processes.HOST}` = '{processes.host()}'"
    gone = [run for run in client.search_runs(experiments, query) if processes.alive(run.data.tags) is False]
    return [run.info.run_id for run in gone if _end(run.info.run_id, say)]


def _end(run_id: str, say: Callable[[str], None]) -> bool:
    """End a run as KILLED, if it still is one that has lost its process; whether it was."""
    try:
        run = MlflowClient().get_run(run_id)
        if run.info.status != "RUNNING" or processes.alive(run.data.tags) is not False or _send_rest(run, say):
            return False
        if not runs.end(run_id, "KILLED", f"its process is gone (pid {run.data.tags[processes.PID]})"):
            return False
    except MlflowException as error:
        if error.get_http_status_code() != HTTPStatus.FORBIDDEN:  # another user's
            say(f"run {run_id} was left RUNNING and could not be ended: {connection.explain(error)}")
        return False
    artifacts.sweep(run.info.artifact_uri)
    say(f"run {run_id} ({run.info.run_name}) was left RUNNING, its process is gone: now KILLED")
    return True


def _send_rest(run: Run, say: Callable[[str], None]) -> bool:
    """Send the last records of a run that has ended, if they wait on this machine; whether they did."""
    folder = offline.unsent(run.data.params.get("cfg.tracking.outputs", ""), run.info.run_id)
    if not folder.is_dir():
        return False
    from segpipe.recording import spool

    if not spool.ended(folder):
        return False
    try:
        say(f"run {run.info.run_id} has ended: {spool.send(folder, say)} records that waited have been sent")
    except SegpipeError as error:
        say(f"run {run.info.run_id} has ended, but {error}")
    return True
