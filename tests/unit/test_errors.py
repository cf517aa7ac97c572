"""Who is to act, by the exception's type; what a command ends with; and that no password is told."""

import os
import subprocess
import sys
import uuid

import mlflow
import pytest

from segpipe import errors
from segpipe.errors import InputError, SegpipeError, StoreError, redact
from segpipe.files.project import PROJECT
from segpipe.tracking import artifacts, lineage, runs
from steps import command


@pytest.fixture
def away(store, monkeypatch):
    """A tracking server that nobody started."""
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://ada:s3cret@127.0.0.1:9")
    yield
    mlflow.set_tracking_uri(before)


ABSENT = {
    "artifact": lambda name: artifacts.local(f"runs:/{name}/dataset"),
    "model": lambda name: artifacts.local(f"models:/m-{name}"),
    "version": lambda name: artifacts.local(f"models:/{name}/1"),
    "upstream": lambda name: runs.upstream(name, "train"),
    "interrupted": lambda name: runs.interrupted(name, "train"),
    "registered": lambda name: lineage.registered(f"models:/{name}@champion"),
}


@pytest.mark.parametrize("asked", ABSENT)
def test_what_is_not_there_is_the_users_to_mend(store, asked):
    name = uuid.uuid4().hex
    with pytest.raises(InputError, match=name):
        ABSENT[asked](name)


@pytest.mark.parametrize("asked", ABSENT)
def test_a_store_that_is_away_is_not_taken_for_one_that_has_nothing(away, asked):
    name = uuid.uuid4().hex
    with pytest.raises(StoreError, match=name) as caught:
        ABSENT[asked](name)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("kind", [InputError, errors.StepError, StoreError, errors.ConflictError])
def test_a_command_ends_with_1_and_with_2_where_nothing_has_run(kind):
    assert command.exit_code(kind("x")) == 1
    with pytest.raises(kind) as caught, command.refusing():
        raise kind("x")
    assert command.exit_code(caught.value) == 2
    assert command.exit_code(kind("x")) == 1
    assert command.exit_code(errors.UsageError("x")) == 2


def test_every_error_of_ours_says_who_is_to_act():
    kinds = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert {kind.__base__ for kind in kinds - {SegpipeError}} == {SegpipeError, InputError}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://ada:s3cret@host/x", "http://***@host/x"),
        ("postgresql://ada:s3@cret@host/x is away", "postgresql://***@host/x is away"),
        ("postgresql://host/x?user=ada&password=s3@cret&y=1", "postgresql://host/x?user=ada&password=***&y=1"),
        ("mysql://host/x?sslpassword=s3cret", "mysql://host/x?sslpassword=***"),
        ("sqlite:////home/x/mlflow.db", "sqlite:////home/x/mlflow.db"),
    ],
)
def test_a_uri_is_told_without_its_password(text, shown):
    assert redact(text) == shown


def test_a_damaged_knob_in_a_process_is_one_line_and_2():
    program = [sys.executable, "-m", "steps.train", "--train.epochs", "many"]
    ended = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "train.epochs" in ended.stderr


def test_a_number_of_retries_that_is_none_is_named_and_noted_on_the_run(step, monkeypatch):
    client = mlflow.MlflowClient()
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    told = "MLFLOW_HTTP_REQUEST_MAX_RETRIES=many: not a whole number from 0 on; unset it, or give one"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "many")
    assert step("lineage", "models:/m@champion") == (1, f"segpipe lineage: {told}\n")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "many")
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    assert step("preprocess") == (1, f"segpipe preprocess: {told}\n")
    run = client.get_run(given)
    assert (run.info.status, run.data.tags["segpipe.reason"]) == ("FAILED", told)
