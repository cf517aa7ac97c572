"""A database that an older or a newer MLflow has made: every command says so in one line, and leaves it as it is."""

import importlib
import shlex
import shutil
import sqlite3
import subprocess
import sys

import mlflow
import pytest
import sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

import pipeline
from segpipe.errors import StoreError, redact
from segpipe.tracking import connection, mlflow_sentences
from segpipe.tracking.mlflow_sentences import Schema

COMMANDS = {
    "pipeline": [[], ["--plan"], ["reproduce", "models:/m@champion"]],
    "preprocess": [[]],
    "train": [[]],
    "evaluate": [[]],
    "register": [[], ["history"], ["rollback"], ["approve", "1"]],
    "lineage": [["models:/m@champion"], ["models:/m/1", "--verify", "--json"]],
    "serve": [[]],
    "send": [["no folder"]],
}


@pytest.fixture(scope="module")
def databases(tmp_path_factory):
    """Databases by the MLflow that has made them; their folder has a space in its name."""
    home = tmp_path_factory.mktemp("other databases")
    config = utils._get_alembic_config("")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    for name, revision in (("ours", revisions[0]), ("older", revisions[30])):
        engine = sqlalchemy.create_engine(f"sqlite:///{home / name}.db")
        InitialBase.metadata.create_all(engine)
        with engine.begin() as opened:
            config.attributes["connection"] = opened
            command.upgrade(config, revision)
        engine.dispose()
    shutil.copy(home / "ours.db", home / "newer.db")
    with sqlite3.connect(home / "newer.db") as newer:
        newer.execute("UPDATE alembic_version SET version_num = 'fedcba987654'")
    newer.close()
    return home


@pytest.fixture
def tell(store, capfd):
    """A function that runs a command in this process; its exit code and what it wrote to stderr."""

    def run(name, arguments):
        main = pipeline.command() if name == "pipeline" else importlib.import_module(f"steps.{name}").main
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main.main(arguments)
        return stop.value.code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("made_by", ["older", "newer"])
@pytest.mark.parametrize(("name", "arguments"), [(name, each) for name, those in COMMANDS.items() for each in those])
def test_every_command_tells_the_same_line_and_leaves_the_database_as_it_is(
    databases, tell, monkeypatch, made_by, name, arguments
):
    path = databases / f"{made_by}.db"
    uri, before = f"sqlite:///{path}", path.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    ours = f"this environment's {mlflow.__version__}"
    told = {
        "older": f"made by an older MLflow than {ours}; back it up, then: mlflow db upgrade {shlex.quote(uri)}",
        "newer": f"made by a newer MLflow than {ours}; install that one, or set MLFLOW_TRACKING_URI to another store",
    }[made_by]
    code, shown = tell(name, arguments)
    assert (code, shown.partition(": ")[2]) == (1, f"tracking store {uri}: {told}\n")
    assert path.read_bytes() == before


def test_what_the_line_says_mends_an_older_database(databases, tmp_path, store, monkeypatch):
    path = shutil.copy(databases / "older.db", tmp_path / "a store.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    with pytest.raises(StoreError) as caught:
        connection.connect()
    asked = shlex.split(str(caught.value).partition("then: ")[2])
    subprocess.run([sys.executable, "-m", *asked], check=True, capture_output=True)
    connection.connect()


def test_a_new_database_and_one_of_this_mlflow_are_taken(databases, tmp_path):
    assert mlflow_sentences.schema(f"sqlite:///{databases / 'ours.db'}") is Schema.OURS
    assert mlflow_sentences.schema(f"sqlite:///{tmp_path / 'new.db'}") is Schema.OURS
    assert mlflow_sentences.schema("http://127.0.0.1:9") is Schema.OURS


@pytest.mark.parametrize("found", [Schema.OLDER, Schema.NEWER])
@pytest.mark.parametrize(
    "uri", ["postgresql://ada:s%40c@key@host:5/flow", "postgresql+psycopg://host/flow?user=ada&password=s%40c@key"]
)
def test_a_password_is_told_in_no_line(monkeypatch, found, uri):
    monkeypatch.setattr(mlflow_sentences, "schema", lambda _: found)
    with pytest.raises(StoreError) as caught:
        connection._check_schema(uri)
    assert "s%40c" not in str(caught.value)
    assert "key" not in str(caught.value)
    assert redact(uri) in str(caught.value)
    assert found is Schema.NEWER or str(caught.value).endswith('mlflow db upgrade "$MLFLOW_TRACKING_URI"')
