"""Runs that nothing would ever end: RUNNING, and the process that worked for them is gone."""

from collections.abc import Callable

from mlflow import MlflowClient

from segpipe import processes, tracking


def reap(say: Callable[[str], None]) -> list[str]:
    """End as KILLED what processes of this host left RUNNING, in any experiment; their IDs."""
    client = MlflowClient()
    experiments = [found.experiment_id for found in client.search_experiments()]
    query = f"attributes.status = 'RUNNING' and tags.`{processes.HOST}` = '{processes.host()}'"
    gone = [run for run in client.search_runs(experiments, query) if processes.alive(run.data.tags) is False]
    for run in gone:
        pid = run.data.tags[processes.PID]
        tracking.end(run.info.run_id, "KILLED", f"its process is gone (pid {pid})")
        say(f"run {run.info.run_id} ({run.info.run_name}) was left RUNNING, its process is gone: now KILLED")
    return [run.info.run_id for run in gone]
