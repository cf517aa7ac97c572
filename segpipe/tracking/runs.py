"""MLflow runs: opening and ending them, what is logged on them, finding those that others build on."""

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.errors import InputError, SegpipeError, redact
from segpipe.runtime import processes
from segpipe.runtime.signals import Interrupted
from segpipe.tracking import connection, experiments, run_tags
from segpipe.tracking.connection import Sender, Store

CONFIG = "config/resolved.yaml"
PARAMS_PER_CALL, LONGEST_PARAM = 100, 6000


@contextmanager
def run(
    store: Store,
    step: str,
    config: Config,
    experiment_id: str | None = None,
    name: str = "",
    *,
    resolved: bool = True,
) -> Iterator[Run]:
    """The MLflow run that stands for one step, or for the whole chain: the one MLflow Projects has opened for this
    process, or a new one of that name (else the step's), in the experiment given or configured. Where a run is active
    already it is nested below that one. The config is logged at once, unless it is not `resolved` yet: then
    `log_config` does.

    An exception ends the run as FAILED with its reason as a tag, an interrupt as KILLED; both pass on.
    """
    above = mlflow.active_run()
    try:
        started = _start(step, config, experiment_id, name or step, above)
        if resolved:
            log_config(config)
        yield started
        _end(store, "FINISHED", {})
    except BaseException as error:
        if mlflow.active_run() not in (None, above):
            _break_off(store, error)
        raise
    finally:
        store.sender = None
        store.wait_with(connection.PATIENT)


def log_config(config: Config) -> None:
    """Log the resolved config on the active run, as parameters and as a recipe."""
    log_params(active().info.run_id, {f"cfg.{knob}": value for knob, value in settings.flat(config).items()})
    mlflow.log_text(settings.dump(config), CONFIG)


def _start(step: str, config: Config, experiment_id: str | None, name: str, above: Run | None) -> Run:
    """Make the run of a step the active one, tagged with this process."""
    given, tags = os.environ.pop("MLFLOW_RUN_ID", None), {run_tags.STEP: step, **processes.here()}
    if above is not None:
        experiment_id = experiment_id or above.info.experiment_id
    metrics = config.tracking.system_metrics and step == "train"
    start = partial(mlflow.start_run, nested=above is not None, log_system_metrics=metrics)
    if given:
        _tag(given, tags)  # before it is RUNNING again: nobody takes it for one whose process is gone
        return start(run_id=given)
    if not experiment_id:
        experiments.check(config.tracking.experiment)
        if not {"MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"} & set(os.environ):
            experiment_id = experiments.ensure(config.tracking.experiment)
    return start(experiment_id=experiment_id, run_name=name, tags=tags)


def _tag(run_id: str, tags: dict[str, str]) -> None:
    MlflowClient().log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _break_off(store: Store, error: BaseException) -> None:
    """Close the active run as KILLED or FAILED, with an error as its reason. What prevents that is noted on the error:
    the run stays RUNNING, until somebody finds its process gone.
    """
    killed = isinstance(error, KeyboardInterrupt)
    reason = (str(error) or "interrupted") if killed else connection.explain(error)
    store.hurry_after(error)
    try:
        if not isinstance(error, SegpipeError | KeyboardInterrupt):
            log_text(redact(traceback.format_exc()), "logs/traceback.txt", store.sender)
    except Exception as second:
        error.add_note(f"its traceback could not be logged: {connection.explain(second)}")
    try:
        _end(store, "KILLED" if killed else "FAILED", {run_tags.REASON: reason, **_traits(error)})
    except Exception as second:
        error.add_note(f"its run could not be closed: {connection.explain(second)}")


def _traits(error: BaseException) -> dict[str, str]:
    """Tags that tell others what kind of error has ended a run: a signal, or one that may pass."""
    if isinstance(error, KeyboardInterrupt):
        return {run_tags.SIGNAL: signal.Signals(error.number).name} if isinstance(error, Interrupted) else {}
    return {run_tags.PASSING: "true"} if connection.passing(error) else {}


def _end(store: Store, status: str, tags: dict[str, str]) -> None:
    """Close the active run. One whose server is away is closed here, and there by the records that wait."""
    if store.sender is None:
        try:
            mlflow.set_tags(tags)
        finally:
            mlflow.end_run(status)  # in any case no longer the active one, which MLflow would end as FINISHED at exit
        return
    try:
        sender, store.sender = store.sender, None
        sent = sender.end(status, tags)
    except OSError:  # there is no room to keep its records, which are left where they are
        if status == "FINISHED":
            raise
        _end(store, status, tags)
        return
    try:
        mlflow.end_run(status if sent else "RUNNING")
    except MlflowException:
        if sent:
            raise


def log_text(text: str, path: str, sender: Sender | None = None) -> None:
    """Write a file among the active run's artifacts, now or as soon as its sender can."""
    if sender is None:
        mlflow.log_text(text, path, run_id=active().info.run_id)
        return
    with sender.files() as folder:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


def continue_run(run_id: str, system_metrics: bool) -> None:
    """Make an interrupted run the active one, in the place of the run opened for this process, which is deleted."""
    client, opened, earlier = MlflowClient(), active(), MlflowClient().get_run(run_id).data.tags
    parent = opened.data.tags.get(MLFLOW_PARENT_RUN_ID)
    mlflow.set_tag(run_tags.CONTINUED, run_id)
    mlflow.end_run("KILLED")
    tags = {run_tags.RESUMED: str(int(earlier.get(run_tags.RESUMED, "0")) + 1), **processes.here()}
    _tag(run_id, tags | ({MLFLOW_PARENT_RUN_ID: parent} if parent else {}))
    mlflow.start_run(run_id=run_id, nested=mlflow.active_run() is not None, log_system_metrics=system_metrics)
    for outdated in {run_tags.REASON, run_tags.PASSING, run_tags.SIGNAL} & earlier.keys():
        client.delete_tag(run_id, outdated)
    client.delete_run(opened.info.run_id)


def of_site(run_id: str, site: str) -> str:
    """The run below a training's that holds what one of its sites showed; it is made where there is none, and has ended
    as soon as it is there, so that nothing can leave it running.
    """
    client, parent = MlflowClient(), MlflowClient().get_run(run_id)
    experiment = parent.info.experiment_id
    query = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'"
    below = (found for found in client.search_runs([experiment], query) if found.data.tags.get(run_tags.SITE) == site)
    found = next(below, None)
    if found is None:
        tags = {MLFLOW_PARENT_RUN_ID: run_id, run_tags.SITE: site}
        found = client.create_run(experiment, run_name=site, tags=tags)
    if found.info.status == "RUNNING":
        client.set_terminated(found.info.run_id)
    return str(found.info.run_id)


def unfinished(step: str, key: str) -> list[Run]:
    """Runs of a step with that key that have not finished, newest first."""
    return _search(step, key, "!= 'FINISHED'")


@contextmanager
def within(run_id: str) -> Iterator[None]:
    """Make a run the active one, if it is not, and leave it running."""
    current = mlflow.active_run()
    if current is not None and current.info.run_id == run_id:
        yield
        return
    mlflow.start_run(run_id=run_id)
    try:
        yield
    finally:
        mlflow.end_run("RUNNING")


def name_run(name: str) -> None:
    """Name the active run."""
    MlflowClient().update_run(active().info.run_id, name=name)


def log_params(run_id: str, values: dict[str, str]) -> None:
    """Log those that the run does not have: a resumed run keeps what it began with."""
    client = MlflowClient()
    known = client.get_run(run_id).data.params
    fresh = [Param(name, value[:LONGEST_PARAM]) for name, value in values.items() if name not in known]
    for first in range(0, len(fresh), PARAMS_PER_CALL):
        client.log_batch(run_id, params=fresh[first : first + PARAMS_PER_CALL])


def end_given_run(store: Store, step: str, error: BaseException, reason: str) -> None:
    """End the run that MLflow Projects opened for a step in this process, before the process does."""
    store.hurry_after(error)
    store.reach()
    _tag(os.environ["MLFLOW_RUN_ID"], {run_tags.STEP: step, **_traits(error)})
    end(os.environ["MLFLOW_RUN_ID"], "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", reason)


def history(run_id: str, metric: str) -> list[float]:
    """A metric's values, one an epoch."""
    return [point.value for point in sorted(MlflowClient().get_metric_history(run_id, metric), key=lambda p: p.step)]


def tag(sender: Sender | None = None, /, **values: str) -> None:
    """Set tags `segpipe.NAME` on the active run, now or as soon as its sender can."""
    named = {f"segpipe.{name}": value for name, value in values.items()}
    if sender:
        sender.tags(named)
    else:
        mlflow.set_tags(named)


def finished(step: str, key: str | None = None, most: int = 5, deleted: bool = False) -> list[Run]:
    """Finished runs of a step in any experiment but scratch ones, newest first; with `key` only those with that key;
    either those that are there, or those that were deleted.
    """
    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    return _search(step, key, "= 'FINISHED'", run_view_type=view, max_results=most)


def built_on(step: str, upstream: str, run_id: str) -> Run | None:
    """The newest finished run of a step that was built on that run of `upstream`."""
    query = f"tags.`{run_tags.STEP}` = '{step}' and attributes.status = 'FINISHED'"
    query += f" and tags.`{run_tags.INPUT}{upstream}` = '{run_id}'"
    order = ["attributes.start_time DESC"]
    return next(iter(MlflowClient().search_runs(experiments.built_on(), query, order_by=order, max_results=1)), None)


def last(step: str, knob: str, value: str) -> Run | None:
    """The newest finished run of a step, but scratch ones, with that value of a knob."""
    query = f"tags.`{run_tags.STEP}` = '{step}' and attributes.status = 'FINISHED' and params.`cfg.{knob}` = '{value}'"
    found = MlflowClient().search_runs(
        experiments.built_on(), query, order_by=["attributes.start_time DESC"], max_results=1
    )
    return next(iter(found), None)


def _search(step: str, key: str | None, status: str, **more: Any) -> list[Run]:
    query = f"tags.`{run_tags.STEP}` = '{step}' and attributes.status {status}"
    query += f" and tags.`{run_tags.KEY}` = '{key}'" if key else ""
    order = ["attributes.start_time DESC"]
    return list(MlflowClient().search_runs(experiments.built_on(), query, order_by=order, **more))


def deleted(run_id: str) -> str:
    """That a run was deleted, with the command that brings it back."""
    return f"run {run_id} was deleted; bring it back with: mlflow runs restore --run-id {run_id}"


def _given(knob: str, run_id: str) -> Run:
    """The run that a knob names. Raises InputError where there is none, or it was deleted."""
    try:
        found = MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise connection.refusal(f"{knob}={run_id}", error) from None
    if found.info.lifecycle_stage == LifecycleStage.DELETED:
        raise InputError(f"{knob}={run_id}: {deleted(run_id)}")
    return found


def upstream(run_id: str, step: str) -> Run:
    """A finished run of `step`. Raises InputError where there is none of that ID, it was deleted, is not finished or of
    another step.
    """
    found = _given(f"{step}_run", run_id)
    actual = found.data.tags.get(run_tags.STEP, "no segpipe step")
    if actual != step:
        raise InputError(f"{step}_run={run_id}: that run belongs to '{actual}', not to '{step}'")
    if found.info.status != "FINISHED":
        raise InputError(f"{step}_run={run_id}: that run is {found.info.status}, not FINISHED")
    return found


def interrupted(run_id: str, step: str) -> Run:
    """A run of `step` that has not finished. Raises InputError where there is none of that ID, or it has finished."""
    found = _given(f"{step}.resume", run_id)
    if found.data.tags.get(run_tags.STEP) != step or found.info.status == "FINISHED":
        raise InputError(f"{step}.resume={run_id}: that is no interrupted run of {step}; use auto or never")
    return found


def end(run_id: str, status: str, reason: str) -> bool:
    """End a run that nobody else can end any more; whether it was still RUNNING."""
    client = MlflowClient()
    if client.get_run(run_id).info.status != "RUNNING":
        return False
    client.set_tag(run_id, run_tags.REASON, reason)
    client.set_terminated(run_id, status)
    return True


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
