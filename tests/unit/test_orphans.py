"""Runs whose process is gone, and what a store's errors mean."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from segpipe.errors import InputError
from segpipe.runtime import processes
from segpipe.tracking import connection as stores


@pytest.fixture
def client(store):
    from mlflow import MlflowClient

    return MlflowClient()


@pytest.fixture
def begun(client):
    """A function that creates a RUNNING run with tags."""
    return lambda **tags: client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"], tags=tags).info.run_id


def of(pid, host=None):
    return {processes.HOST: host or processes.host(), processes.PID: str(pid), processes.STARTED: "1"}


@pytest.fixture
def gone():
    """The ID of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_whose_process_is_gone_is_killed_with_the_reason(client, begun, gone):
    from segpipe.orchestration import orphans
    from segpipe.tracking import run_tags, runs

    left, said = begun(**of(gone)), []
    assert orphans.reap(said.append) == [left]
    run = client.get_run(left)
    assert run.info.status == "KILLED"
    assert run.data.tags[run_tags.REASON] == f"its process is gone (pid {gone})"
    assert left in said[0]
    assert orphans.reap(said.append) == []
    assert not runs.end(left, "FAILED", "somebody else was first")
    assert client.get_run(left).data.tags == run.data.tags


def test_another_process_with_the_same_number_does_not_keep_a_run(begun):
    from segpipe.orchestration import orphans

    left = begun(**of(os.getpid()))
    assert orphans.reap(lambda _: None) == [left]


def test_runs_at_work_elsewhere_or_without_a_process_stay(client, begun, gone):
    from segpipe.orchestration import orphans

    kept = [begun(**processes.here()), begun(**of(gone, host="another machine")), begun()]
    ended = begun(**of(gone))
    client.set_terminated(ended, "FAILED")
    assert orphans.reap(lambda _: None) == []
    assert [client.get_run(run_id).info.status for run_id in [*kept, ended]] == ["RUNNING"] * 3 + ["FAILED"]


def test_a_run_in_any_experiment_is_found(client, begun, gone):
    from segpipe.orchestration import orphans
    from segpipe.tracking import experiments

    left = client.create_run(experiments.ensure_scratch("aside"), tags=of(gone)).info.run_id
    assert orphans.reap(lambda _: None) == [left]


def test_a_run_that_another_process_has_continued_meanwhile_stays(client, begun):
    from segpipe.orchestration import orphans

    assert not orphans._end(begun(**processes.here()), lambda _: None)


def test_one_run_that_cannot_be_ended_does_not_keep_the_others(client, begun, gone, monkeypatch):
    from mlflow.exceptions import MlflowException

    from segpipe.orchestration import orphans
    from segpipe.tracking import runs

    left, said, end = {begun(**of(gone)), begun(**of(gone))}, [], runs.end
    refused = []

    def end_all_but_one(run_id, *how):
        if not refused:
            refused.append(run_id)
            raise MlflowException("database is locked")
        return end(run_id, *how)

    monkeypatch.setattr(runs, "end", end_all_but_one)
    assert {*orphans.reap(said.append), *refused} == left
    assert orphans.reap(said.append) == refused
    assert any(f"run {refused[0]} was left RUNNING and could not be ended: " in line for line in said)


def test_a_training_that_had_ended_without_its_server_is_sent_and_finished(client, begun, gone, tmp_path, monkeypatch):
    from segpipe.orchestration import orphans
    from segpipe.recording import offline, spool

    left, said = begun(**of(gone)), []
    client.log_param(left, "cfg.tracking.outputs", str(tmp_path))
    recorder = spool.Spool(left, offline.unsent(str(tmp_path), left), said.append)
    with monkeypatch.context() as away:
        away.setattr(spool.Spool, "send", lambda self: None)
        away.setattr(spool, "LAST_WAIT_SECONDS", 0)
        recorder.metrics({"val_dice": 0.5}, 1, 1_700_000_000_000)
        assert not spool.ended(recorder.folder)
        assert not recorder.end("FINISHED", {"segpipe.figure": "Dice 0.5"})
    assert orphans.reap(said.append) == []
    run = client.get_run(left)
    assert (run.info.status, run.data.tags["segpipe.figure"]) == ("FINISHED", "Dice 0.5")
    assert run.data.metrics == {"val_dice": 0.5}
    assert said[-1] == f"run {left} has ended: 2 records that waited have been sent"
    assert not recorder.folder.exists()


# --- the runs that tracking.run opens


def test_a_run_is_continued_in_its_own_experiment(client, begun, monkeypatch):
    from segpipe.config.sections import Config, TrackingConfig
    from segpipe.tracking import experiments, runs

    interrupted = begun()
    client.set_terminated(interrupted, "KILLED")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    with runs.run(stores.Store(), "train", Config(tracking=TrackingConfig(experiment="another"))):
        assert experiments.name_of(runs.active()) == "another"
        runs.continue_run(interrupted, system_metrics=False)
    assert client.get_run(interrupted).info.status == "FINISHED"


def test_a_run_is_tagged_with_its_process_and_a_given_one_as_well(client, begun, monkeypatch):
    from segpipe.config.sections import Config
    from segpipe.tracking import runs

    with runs.run(stores.Store(), "pipeline", Config(), name="mine") as run:
        assert client.get_run(run.info.run_id).data.tags.items() >= processes.here().items()
        assert run.info.run_name == "mine"
        given = begun(**of(1))
        monkeypatch.setenv("MLFLOW_RUN_ID", given)
        with runs.run(stores.Store(), "preprocess", Config()) as inner:
            assert inner.info.run_id == given
        with runs.run(stores.Store(), "evaluate", Config()) as inner:
            assert inner.data.tags["mlflow.parentRunId"] == run.info.run_id
        assert runs.active().info.run_id == run.info.run_id
    assert client.get_run(given).data.tags.items() >= processes.here().items()
    assert client.get_run(given).info.status == client.get_run(run.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt("interrupted (SIGHUP)"), "KILLED", "interrupted (SIGHUP)"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
        (SystemExit(3), "FAILED", "3"),
        (InputError("no such thing"), "FAILED", "no such thing"),
    ],
)
def test_how_a_run_is_left_is_its_status(client, error, status, reason):
    from segpipe.config.sections import Config
    from segpipe.tracking import run_tags, runs

    with pytest.raises(type(error)), runs.run(stores.Store(), "evaluate", Config()) as run:
        raise error
    found = client.get_run(run.info.run_id)
    assert (found.info.status, found.data.tags[run_tags.REASON]) == (status, reason)
    assert run_tags.PASSING not in found.data.tags


def test_a_failure_that_can_pass_is_tagged_so(client):
    from segpipe.config.sections import Config
    from segpipe.tracking import run_tags, runs

    with pytest.raises(ConnectionRefusedError), runs.run(stores.Store(), "evaluate", Config()) as run:
        raise ConnectionRefusedError
    assert client.get_run(run.info.run_id).data.tags[run_tags.PASSING] == "true"


# --- the store


def session():
    from mlflow.tracking._tracking_service.utils import _get_store

    return _get_store().ManagedSessionMaker(read_only=False)


def execute(*statements):
    """Run statements as MLflow does; the last one's answer."""
    import sqlalchemy

    with session() as opened:
        for statement in statements:
            answer = opened.execute(sqlalchemy.text(statement))
        return answer.scalar() if answer.returns_rows else None


def refused(*statements):
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException) as caught:
        execute(*statements)
    return caught.value


def test_sqlite_waits_a_minute_for_a_lock(store):
    assert execute("PRAGMA busy_timeout") == 60_000


def test_a_new_store_comes_whole_and_never_over_another_one_also_without_hard_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    for content in ("first", "second"):
        (tmp_path / "partial").write_text(content)
        stores._put(tmp_path / "partial", tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "first"


def test_a_locked_store_is_told_in_a_line_and_can_pass(store, monkeypatch):
    stores.connect().wait_with(stores.Patience(0, 0))
    other = sqlite3.connect(store / "mlflow.db")
    other.execute("BEGIN IMMEDIATE")
    try:
        error = refused("UPDATE experiments SET name = name")
    finally:
        other.close()
    assert stores.explain(error) == "database is locked; another process keeps it so; start again when that has ended"
    assert stores.passing(error)


def test_a_full_store_is_told_in_a_line_and_does_not_pass(store):
    full = "PRAGMA max_page_count = 1"
    try:
        error = refused(full, "CREATE TABLE more (x)", f"INSERT INTO more VALUES ('{'x' * 9000}')")
    finally:
        execute("PRAGMA max_page_count = 1000000000")
    assert stores.explain(error) == "database or disk is full; free some space, then start again"
    assert not stores.passing(error)


def test_a_server_that_is_away_can_pass_and_what_it_refuses_can_not(store):
    from mlflow.exceptions import RestException
    from mlflow.utils.rest_utils import MlflowHostCreds, http_request

    with pytest.raises(Exception, match="API request") as caught:
        http_request(MlflowHostCreds("http://127.0.0.1:9"), "/api", "GET", max_retries=0)
    assert stores.passing(caught.value)
    assert stores.passing(RestException({"error_code": "TEMPORARILY_UNAVAILABLE", "message": ""}))
    assert not stores.passing(RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": ""}))
    assert not stores.passing(ValueError("connection"))
    wrapped = InputError("runs:/1/dataset: away")
    wrapped.__context__ = caught.value
    assert stores.passing(wrapped)


def test_patience_with_a_server_never_exceeds_the_users(monkeypatch):
    for asked, expected in (("4", ["1", "2", "4"]), ("0", ["0", "0", "0"]), ("9", ["1", "2", "4"])):
        monkeypatch.setenv(stores.RETRIES, asked)
        made, shown = stores.Store(), []
        for patience in (stores.ENDING, stores.SPOOLING, stores.PATIENT):
            made.wait_with(patience)
            shown.append(os.environ[stores.RETRIES])
        assert shown == expected


def test_a_run_has_a_link_on_a_server_and_a_number_elsewhere(client, begun):
    import mlflow

    from segpipe.tracking import connection

    run = client.get_run(begun())
    assert connection.link(run) == f"run {run.info.run_id}"
    kept = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("https://me:secret@example.org:5000/team/")
    try:
        page = f"https://example.org:5000/team/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert connection.link(run) == page
    finally:
        mlflow.set_tracking_uri(kept)
