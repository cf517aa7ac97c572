"""Registrations at once through a real `mlflow server` on PostgreSQL."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
from registrations import Prepared, Registrar

QUALITIES = (0.55, 0.9, 0.6, 0.75, 0.7, 0.85, 0.65, 0.8)


def program(name):
    """PostgreSQL's own program, which Debian keeps off the path."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    return found or pytest.skip(f"PostgreSQL is not installed: no {name}")


def unprivileged():
    """Whom PostgreSQL runs as where this is root, whom it refuses: `postgres`, or nobody."""
    if os.getuid():
        return {}
    known = {entry.pw_name for entry in pwd.getpwall()}
    return {"user": "postgres" if "postgres" in known else "nobody", "extra_groups": []}


@pytest.fixture(scope="module")
def database():
    """The URI of an empty PostgreSQL database on a socket in a folder of its own."""
    who = unprivileged()
    initdb, postgres = program("initdb"), program("postgres")
    with tempfile.TemporaryDirectory(prefix="pg") as home:  # a socket's path may have 107 characters
        if who:
            shutil.chown(home, who["user"])
        data = f"{home}/data"
        asked = [initdb, "-D", data, "-U", "segpipe", "-A", "trust", "--no-sync"]
        subprocess.run(asked, check=True, capture_output=True, cwd=home, **who)
        options = ["-D", data, "-k", home, "-c", "listen_addresses=", "-c", "fsync=off"]
        log = Path(home, "log")
        with log.open("w") as file:
            server = subprocess.Popen([postgres, *options], cwd=home, stdout=file, stderr=file, **who)
        try:
            until = time.monotonic() + 60
            while "ready to accept connections" not in log.read_text():
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield f"postgresql+psycopg://segpipe@/postgres?host={home}"
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture(scope="module")
def uri(database, tmp_path_factory):
    """The URI of a tracking server on that database; this process talks to it meanwhile."""
    home = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    asked = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", database]
    served = ["--artifacts-destination", str(home / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *asked, *served],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    saved = dict(os.environ)
    try:
        for _ in range(480):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.25)
        os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
        yield os.environ["MLFLOW_TRACKING_URI"]
    finally:
        os.environ.clear()
        os.environ.update(saved)
        os.killpg(server.pid, 15)
        server.wait(30)


@pytest.fixture(scope="module")
def prepared(uri, tmp_path_factory):
    from segpipe.tracking import connection, experiments

    connection.connect()
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiments.ensure("segpipe")
    return Prepared(tmp_path_factory.mktemp("prepared"), os.environ["MLFLOW_EXPERIMENT_ID"])


@pytest.fixture(scope="module")
def jobs(prepared, tmp_path_factory):
    registrar = Registrar(tmp_path_factory.mktemp("jobs"))
    yield registrar
    registrar.close()


@pytest.mark.slow
def test_of_eight_registrations_at_once_the_best_becomes_champion(prepared, jobs):
    from mlflow import MlflowClient

    from segpipe.registry import record

    evaluations = {quality: prepared.evaluation(quality) for quality in QUALITIES}
    results = jobs.all_at_once(
        *(
            (f"--evaluate-run={run}", "--registry.model_name=contended", "--evaluate.bootstrap_samples=200")
            for run in evaluations.values()
        )
    )
    assert [code for code, _ in results] == [0] * 8, results
    client = MlflowClient()
    model = client.get_registered_model("contended")
    assert not [tag for tag in model.tags if tag.startswith("segpipe.turn.")]
    assert len(client.search_model_versions("name = 'contended'")) == 8
    champion = client.get_model_version_by_alias("contended", "champion")
    assert champion.tags["evaluate_run"] == evaluations[max(QUALITIES)]
    moves = record.history("contended")
    assert [m.before for m in moves] == ["", *(m.version for m in moves[:-1])]
    assert moves[-1].version == str(champion.version)
    assert str(model.aliases.get("previous", "")) == moves[-1].before
