"""What the pinned MLflow, sqlite and sqlalchemy say and do is what `mlflow_sentences` knows: each thing is provoked."""

import ast
import asyncio
import errno
import json
import logging
import os
import sqlite3
import sys
import uuid

import mlflow
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils
from mlflow.tracking._tracking_service.utils import _get_store
from sqlalchemy import event
from sqlalchemy.engine import Engine

from segpipe.files.project import PROJECT
from segpipe.server.messages import RequestError
from segpipe.server.mlflow_app import Scoring
from segpipe.tracking import mlflow_sentences

PINNED_NAMES = (
    *(sign for sign in mlflow_sentences.FIXES),
    *("RESOURCE_DOES_NOT_EXIST", "TEMPORARILY_UNAVAILABLE", "Failed to predict data"),
)


@pytest.fixture
def client(store):
    return MlflowClient()


def refused(act, kind=MlflowException):
    with pytest.raises(kind) as caught:
        act()
    return caught.value


def fail_in_the_store():
    """Let MLflow meet an operational error of its database."""
    with _get_store().ManagedSessionMaker(read_only=False) as session:
        session.execute(sqlalchemy.text("SELECT * FROM no_such_table"))


def test_nobody_else_looks_at_the_wording():
    for path in [PROJECT / "pipeline.py", *PROJECT.glob("segpipe/**/*.py"), *PROJECT.glob("steps/*.py")]:
        strings = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if path.name != "mlflow_sentences.py":
            compared = {text for text in strings for sign in PINNED_NAMES if text.startswith(sign)}
            assert compared <= {"TEMPORARILY_UNAVAILABLE"}, path  # which our server says itself
            assert not any("sqlalchemy" in text.split() or text.startswith("mlflow.store") for text in strings), path


@pytest.mark.parametrize("by", ["UPDATE x SET y = 1", "BEGIN IMMEDIATE"])
def test_sqlite_says_that_it_is_locked(tmp_path, by):
    path = tmp_path / "x.db"
    one, other = (sqlite3.connect(path, timeout=0, isolation_level=None) for _ in range(2))
    one.execute("CREATE TABLE x (y)")
    one.execute("BEGIN IMMEDIATE")
    try:
        error = refused(lambda: other.execute(by), sqlite3.OperationalError)
    finally:
        one.close()
        other.close()
    assert mlflow_sentences.is_locked(str(error))
    assert not mlflow_sentences.is_lasting(str(error))
    assert "another process" in mlflow_sentences.fix(str(error))


def test_sqlite_says_that_it_is_full_read_only_or_cannot_be_opened(tmp_path):
    path = tmp_path / "x.db"
    writable, readable = sqlite3.connect(path), sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    writable.execute("PRAGMA max_page_count = 1")
    try:
        full = refused(lambda: writable.execute("CREATE TABLE x (y)"), sqlite3.OperationalError)
        locked_away = refused(lambda: readable.execute("CREATE TABLE x (y)"), sqlite3.OperationalError)
    finally:
        writable.close()
        readable.close()
    away = refused(lambda: sqlite3.connect(tmp_path / "no folder" / "x.db"), sqlite3.OperationalError)
    told = [str(full), str(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), str(locked_away), str(away)]
    assert all(mlflow_sentences.is_lasting(message) for message in told), told
    assert [mlflow_sentences.fix(message).split()[0] for message in told] == ["free", "free", "make", "make"]


@pytest.mark.filterwarnings("ignore")
def test_a_server_says_who_is_not_known_and_what_is_not_allowed(monkeypatch):
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "of a test")
    from flask import Flask
    from mlflow.server import auth

    with Flask("of a test").test_request_context():
        unknown = auth.make_basic_auth_response().get_data(as_text=True)
        forbidden = auth.make_forbidden_response().get_data(as_text=True)
    assert mlflow_sentences.fix(unknown).startswith("set MLFLOW_TRACKING_USERNAME")
    assert mlflow_sentences.fix(forbidden).startswith("ask for MANAGE")


def test_what_is_not_there_is_told_from_what_is_refused(client):
    run_id = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    client.create_registered_model("a model")
    for act in (
        lambda: client.get_run(uuid.uuid4().hex),
        lambda: client.get_run("no ID"),
        lambda: client.list_artifacts(uuid.uuid4().hex),
        lambda: client.delete_tag(run_id, "no such tag"),
        lambda: client.get_logged_model(f"m-{uuid.uuid4().hex}"),
        lambda: client.get_registered_model("no such model"),
        lambda: client.get_model_version_by_alias("a model", "champion"),
        lambda: client.get_model_version_by_alias("no such model", "champion"),
    ):
        assert mlflow_sentences.is_missing(refused(act))
    assert not mlflow_sentences.is_missing(refused(lambda: client.create_registered_model("a model")))
    assert not mlflow_sentences.is_missing(refused(fail_in_the_store))


def test_an_operational_error_of_the_database_may_pass(client):
    assert mlflow_sentences.is_overload(refused(fail_in_the_store))
    assert not mlflow_sentences.is_overload(refused(lambda: client.get_run("no ID")))


def test_a_step_that_failed_is_told_from_one_that_could_not_be_started(client, tmp_path):
    entries = "entry_points:\n  main:\n    command: 'exit 3'\n"
    (tmp_path / "MLproject").write_text(f"name: x\n{entries}", encoding="utf-8")
    run_id = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id

    def start(env_manager):
        mlflow.projects.run(str(tmp_path), run_id=run_id, env_manager=env_manager)

    failed = refused(lambda: start("local"), mlflow.projects.ExecutionException)
    assert mlflow_sentences.is_failed_run(failed, run_id)
    assert not mlflow_sentences.is_failed_run(refused(lambda: start("no such manager")), run_id)


def test_mlflow_begins_a_session_with_its_own_patience_and_works_within_a_transaction(client):
    statements, modules = [], []

    def look(_connection, _cursor, statement, *_):
        statements.append(statement)
        frame = sys._getframe()
        while frame is not None:
            modules.append(frame.f_globals.get("__name__", ""))
            frame = frame.f_back

    event.listen(Engine, "before_cursor_execute", look)
    try:
        client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"])
    finally:
        event.remove(Engine, "before_cursor_execute", look)
    assert any(mlflow_sentences.sets_busy_timeout(statement) for statement in statements)
    inside = {module for module in modules if mlflow_sentences.is_transaction(module)}
    assert "mlflow.store.tracking.sqlalchemy_store" in inside
    assert any(module.startswith("sqlalchemy.") for module in inside)


def test_what_is_raised_is_not_logged_as_well(store, caplog):
    assert utils._logger.name in mlflow_sentences.LOUD
    mlflow_sentences.quieten()
    refused(fail_in_the_store)
    assert [record.name for record in caplog.records if record.name.startswith("mlflow")] == []
    logging.getLogger(utils._logger.name).setLevel(logging.ERROR)
    try:
        refused(fail_in_the_store)
    finally:
        mlflow_sentences.quieten()
    assert [record.name for record in caplog.records] == [utils._logger.name]


MODEL = """
import mlflow
from mlflow.exceptions import MlflowException


class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        if "refuse" in model_input[0]:
            raise MlflowException.invalid_parameter_value("not today")
        raise KeyError("secret")


mlflow.models.set_model(Model())
"""


@pytest.mark.filterwarnings("ignore")
def test_the_scoring_application_repeats_the_request_and_tells_a_stack_trace(tmp_path):
    (tmp_path / "model.py").write_text(MODEL, encoding="utf-8")
    mlflow.pyfunc.save_model(tmp_path / "model", python_model=str(tmp_path / "model.py"), pip_requirements=["mlflow"])
    scoring = Scoring(mlflow.pyfunc.load_model(str(tmp_path / "model")))

    def ask(row):
        return refused(lambda: asyncio.run(scoring.ask(json.dumps({"inputs": [row]}).encode())), RequestError)

    refusal = ask("please refuse: secret")
    assert (refusal.status, str(refusal)) == (400, "not today")
    failure = ask("secret")
    assert (failure.status, str(failure)) == (500, "the model failed on this request")
    assert failure.notes == (f"failed in predict, {tmp_path / 'model' / 'model.py'}:{len(MODEL.splitlines()) - 3}",)
