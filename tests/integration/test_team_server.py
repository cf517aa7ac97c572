"""The chain through a team's server: PostgreSQL, artifacts behind the server, users with passwords."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pytest
import requests
from conftest import TINY, wait_for, write_nifti
from test_registry_postgres import program, unprivileged

from segpipe.files.project import PROJECT

pytestmark = pytest.mark.slow

MODEL = "stroke of the team"
DATABASE, ADMIN = "database-secret-1", "admin-secret-1234"
ADA, CAROL = "ada's $ecret: 100%@home", "carol-secret-123"
STEPS = ("preprocess", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def database():
    """The URI of an empty PostgreSQL database with a password, on a socket in a folder of its own."""
    who = unprivileged()
    initdb, postgres = program("initdb"), program("postgres")
    with tempfile.TemporaryDirectory(prefix="pg") as home:  # a socket's path may have 107 characters
        password = Path(home, "password")
        password.write_text(DATABASE)
        for path in (home, password) if who else ():
            shutil.chown(path, who["user"])
        asked = [initdb, "-D", f"{home}/data", "-U", "segpipe", "-A", "scram-sha-256", f"--pwfile={password}"]
        subprocess.run([*asked, "--no-sync"], check=True, capture_output=True, cwd=home, **who)
        options = ["-D", f"{home}/data", "-k", home, "-c", "listen_addresses=", "-c", "fsync=off"]
        log = Path(home, "log")
        with log.open("w") as file:
            server = subprocess.Popen([postgres, *options], cwd=home, stdout=file, stderr=file, text=True, **who)
        try:
            wait_for(server, lambda: "ready to accept connections" in log.read_text(), seconds=60)
            yield f"postgresql://segpipe:{DATABASE}@/postgres?host={home}"
        finally:
            server.terminate()
            server.wait(30)


class Team:
    """A real `mlflow server` that knows who asks, the folder it keeps everything in, and what its users were shown."""

    def __init__(self, home, database):
        self.home, self.shown = home, []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        users = home / "users.ini"
        settings = {"default_permission": "READ", "database_uri": f"sqlite:///{home / 'users.db'}"}
        settings |= {"admin_username": "admin", "auth_cache_ttl_seconds": "60"}
        settings["authorization_function"] = "mlflow.server.auth:authenticate_request_basic_auth"
        users.write_text("[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        given = {"MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN}
        given |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        asked = ["--app-name", "basic-auth", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        asked += ["--backend-store-uri", database, "--artifacts-destination", str(home / "artifacts")]
        with (home / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *asked],
                cwd=home,
                env=without_mlflow() | given,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self):
        """Until it answers."""
        until = time.monotonic() + 120
        while True:
            try:
                return urllib.request.urlopen(f"{self.uri}/health", timeout=1).read()
            except OSError:
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < until, self.log()
                time.sleep(0.2)

    def close(self):
        os.killpg(self.process.pid, 15)
        self.process.wait(30)

    def log(self):
        return (self.home / "log").read_text()

    def ask(self, path, **fields):
        """What the server answers to its administrator."""
        answer = requests.post(f"{self.uri}/api/2.0/mlflow/{path}", json=fields, auth=("admin", ADMIN), timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def environment(self, user="ada", password=ADA):
        """What a client sets, and nothing else of MLflow."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        known = {"MLFLOW_TRACKING_URI": self.uri, "PATH": path, "SEGPIPE_CACHE": str(self.home / "cache")}
        known |= {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}
        return without_mlflow() | known

    def run(self, *arguments, **who):
        """A command of the project as that user types it."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=PROJECT,
            env=self.environment(**who),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        self.shown += [done.stdout, done.stderr]
        return done

    def fetched(self):
        """How often each array and file of weights was asked for, by its path in the store."""
        return Counter(re.findall(r'"GET /api/2.0/mlflow-artifacts/artifacts/(\S+(?:npy|safetensors)) ', self.log()))


def without_mlflow():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return kept | {"MLFLOW_DISABLE_TELEMETRY": "true"}


@pytest.fixture(scope="module")
def team(database, tmp_path_factory):
    found = Team(tmp_path_factory.mktemp("team"), database)
    try:
        found.wait()
        for name, password in (("ada", ADA), ("carol", CAROL)):
            found.ask("users/create", username=name, password=password)
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def arguments(team, tmp_path_factory):
    """The command line of the chain on small volumes."""
    root = write_nifti(tmp_path_factory.mktemp("data") / "raw data", cases=6)
    given = ["--data.format=nifti", f"--data.root={root}", f"--registry.model_name={MODEL}", *TINY]
    given += ["--split.test=0.34", "--gate.alpha=0.3", f"--tracking.outputs={team.home / 'outputs'}"]
    return ["pipeline.py", *given]


@pytest.fixture(scope="module")
def chain(team, arguments):
    """One run of the chain."""
    done = team.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def runs(team):
    ids = [e["experiment_id"] for e in team.ask("experiments/search", max_results=100)["experiments"]]
    found = team.ask("runs/search", experiment_ids=ids, max_results=100).get("runs", [])
    return [(run["info"], {tag["key"]: tag["value"] for tag in run["data"]["tags"]}) for run in found]


def test_the_chain_through_the_server_ends_with_a_champion(team, chain):
    assert f"Champion: {MODEL} version 1, test Dice" in chain.stdout
    assert f"MLFLOW_TRACKING_URI={team.uri} " in chain.stdout
    assert {tags["segpipe.step"] for _, tags in runs(team)} == {"pipeline", *STEPS}
    for info, tags in runs(team):
        assert (info["status"], tags["mlflow.user"]) == ("FINISHED", "ada")
    assert list((team.home / "artifacts").rglob("train_images.npy"))


def test_a_second_run_reuses_everything(team, chain, arguments):
    before = team.fetched()
    again = team.run(*arguments)
    assert again.returncode == 0, again.stderr
    for step in STEPS:
        assert f"{step}: reuse" in again.stderr
    assert team.fetched() == before


def test_a_lineage_is_verified_through_the_server(team, chain):
    shown = team.run("-m", "steps.lineage", f"models:/{MODEL}@champion", "--verify")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert ", 0 differs, 0 gone" in shown.stderr


def test_the_champion_is_served_from_the_server(team, chain, arguments):
    (root,) = (Path(a.partition("=")[2]) for a in arguments if a.startswith("--data.root"))
    dwi, adc = (next(root.rglob(f"sub-case0*_{channel}.nii.gz")) for channel in ("dwi", "adc"))
    row = {"dwi": base64.b64encode(dwi.read_bytes()).decode(), "adc": base64.b64encode(adc.read_bytes()).decode()}
    log = team.home / "serving"
    asked = [sys.executable, "-m", "steps.serve", "--registry.model_name", MODEL, "--serving.port", "0"]
    with log.open("w") as file:
        server = subprocess.Popen(asked, cwd=PROJECT, env=team.environment(), stdout=file, stderr=file, text=True)
    try:
        wait_for(server, lambda: "serving models:/" in log.read_text())
        url = re.search(r"on (http://127.0.0.1:\d+)", log.read_text())[1]
        answer = requests.post(f"{url}/invocations", json={"dataframe_records": [row]}, timeout=60)
    finally:
        server.terminate()
        server.wait(30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["foreground_ml"] >= 0
    team.shown.append(log.read_text())


def test_files_are_predicted_by_the_champion_on_the_server(team, chain, arguments, tmp_path):
    (root,) = (Path(a.partition("=")[2]) for a in arguments if a.startswith("--data.root"))
    knobs = [f"--predict.input={root / 'sub-case0'}", f"--predict.output={tmp_path / 'masks'}"]
    done = team.run("-m", "steps.predict", *knobs, f"--registry.model_name={MODEL}")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "masks" / "outputs").rglob("*.nii.gz"))) == 1


def test_arrays_and_weights_are_fetched_once_whatever_was_done_with_them(team, chain, arguments):
    counts = team.fetched()
    assert {Path(path).name for path in counts} >= {"train_images.npy", "test_images.npy", "weights.safetensors"}
    assert set(counts.values()) == {1}, counts


def test_a_wrong_password_is_told_in_one_line(team, chain, arguments):
    done = team.run(*arguments, password="not-the-password")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "not authenticated" in line
    assert "not-the-password" not in line


def test_who_may_only_read_is_told_so_in_one_line_and_nothing_is_left_running(team, chain, arguments):
    done = team.run(*arguments, user="carol", password=CAROL)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Permission denied" in line
    assert {info["status"] for info, _ in runs(team)} == {"FINISHED"}


def test_who_may_only_read_can_plan_with_the_runs_of_others(team, chain, arguments):
    planned = team.run(*arguments, "--plan", user="carol", password=CAROL)
    assert planned.returncode == 0, planned.stderr
    for step in STEPS:
        assert f"{step}: reuse" in planned.stdout + planned.stderr


def test_what_another_user_left_running_on_this_host_stops_nobody(team, chain, arguments):
    (parent,) = {info["experiment_id"] for info, tags in runs(team) if tags.get("segpipe.step") == "train"}
    left = "import mlflow; from segpipe.runtime import processes; from segpipe.tracking import connection\n"
    left += "connection.connect()\n"
    left += f"mlflow.MlflowClient().create_run('{parent}', tags=processes.here())"
    assert team.run("-c", left).returncode == 0
    own = [*arguments, "--until", "preprocess", "--experiment", "carol"]
    done = team.run(*own, user="carol", password=CAROL)
    assert done.returncode == 0, done.stderr
    assert "preprocess: reuse" in done.stderr
    ended = team.run(*arguments, "--until", "preprocess")
    assert "its process is gone: now KILLED" in ended.stderr


def test_a_password_is_in_no_table_no_artifact_no_log_and_nothing_that_was_shown(team, chain, database, arguments):
    inside = team.uri.replace("://", f"://ada:{quote(ADA, safe='')}@")
    with_uri = team.environment() | {"MLFLOW_TRACKING_URI": inside}
    del with_uri["MLFLOW_TRACKING_USERNAME"], with_uri["MLFLOW_TRACKING_PASSWORD"]
    asked = [sys.executable, *arguments, "--fresh", "register"]
    done = subprocess.run(asked, cwd=PROJECT, env=with_uri, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    team.shown += [done.stdout, done.stderr]
    dump = [program("pg_dump"), database]
    stored = subprocess.run(dump, capture_output=True, check=True).stdout
    assert b"cfg.train.epochs" in stored
    files = [path for path in team.home.rglob("*") if path.is_file() and path.name not in ("users.ini", "users.db")]
    assert {path.name for path in files} >= {"resolved.yaml", "step.log", "log", "weights.safetensors"}
    everything = {"database": stored, "shown": "".join(team.shown).encode()}
    everything |= {str(path): path.read_bytes() for path in files}
    spellings = [ADA, quote(ADA, safe=""), base64.b64encode(f"ada:{ADA}".encode()).decode(), json.dumps(ADA)]
    for where, content in everything.items():
        for secret in (*spellings, CAROL, ADMIN, DATABASE):
            assert secret.encode() not in content, where
