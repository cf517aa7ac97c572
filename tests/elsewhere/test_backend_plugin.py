"""The chain where each step is sent away: a fresh clone in another folder, an empty home, and URIs."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from conftest import TINY, wait_for, write_folder

from segpipe.files.project import PROJECT

pytestmark = pytest.mark.slow

PLUGIN = Path(__file__).parent / "plugin"
PUSHED = ("segpipe", "steps", "configs", "pipeline.py", "MLproject", "conda.yaml", "requirements.txt")
MODEL = "elsewhere"
STEPS = ("preprocess", "train", "evaluate", "register")


@dataclass(frozen=True)
class Here:
    """The driver's side: its checkout, the folder that stands for other machines, the server, its environment."""

    home: Path
    uri: str

    @property
    def checkout(self):
        return self.home / "check out"

    @property
    def away(self):
        return self.home / "other machines"

    @property
    def environment(self):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"MLFLOW_TRACKING_URI": self.uri, "PYTHONPATH": str(self.home / "installed"), "PATH": path}
        caches = {"SEGPIPE_CACHE": str(self.home / "driver's cache"), "HOME": str(self.home / "driver's home")}
        return {**os.environ, **own, **caches, "MLFLOW_DISABLE_TELEMETRY": "true"}

    def command(self, data, *more):
        sent = ["--backend=clone", f"--backend-config={self.home / 'clone.json'}"]
        knobs = ["--data.format=folder", f"--data.root={data}", f"--registry.model_name={MODEL}", *TINY]
        return [sys.executable, "pipeline.py", *sent, *knobs, "--gate.alpha=0.3", *more]

    def run(self, program):
        return subprocess.run(
            program, cwd=self.checkout, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def drive(self, data, *more):
        return self.run(self.command(data, *more))

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def runs(self, step, query=""):
        """The runs of a step, newest first."""
        client = self.client()
        everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
        return client.search_runs(everywhere, f"tags.`segpipe.step` = '{step}'{query}")

    def places(self, step=""):
        """The folders that steps were sent to."""
        return sorted(self.away.glob(f"{step}*"))


def install(site):
    """What `pip install tests/elsewhere/plugin` leaves: the module, and the entry points of its pyproject.toml."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = site / f"clone_backend-{project['version']}.dist-info"
    about.mkdir(parents=True)
    shutil.copy(PLUGIN / "clone_backend.py", site)
    (about / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {target}" for name, target in rows.items())])
        for group, rows in project["entry-points"].items()
    ]
    (about / "entry_points.txt").write_text("\n".join(groups) + "\n", encoding="utf-8")


def push(checkout):
    """A git repository of the working tree as it is now: a clone has only what was committed."""
    checkout.mkdir()
    for name in PUSHED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, checkout)
    (checkout / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    author = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "as it is"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    home = tmp_path_factory.mktemp("elsewhere")
    for name in ("other machines", "driver's home"):
        (home / name).mkdir()
    install(home / "installed")
    push(home / "check out")
    (home / "clone.json").write_text(json.dumps({"folder": str(home / "other machines")}), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = Here(home, f"http://127.0.0.1:{port}")
    served = ["--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}", "--artifacts-destination", str(home / "store")]
    with (home / "server's log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *served],
            env={**place.environment, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{place.uri}/health", timeout=1).read()
                break
            except OSError:
                assert server.poll() is None, (home / "server's log").read_text()
                assert time.monotonic() < until, (home / "server's log").read_text()
                time.sleep(0.1)
        yield place
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture(scope="module")
def chain(here, tmp_path_factory):
    """The chain, run once: its data and what the driver printed."""
    data = write_folder(tmp_path_factory.mktemp("raw") / "pictures", cases=12)
    done = here.drive(data)
    assert done.returncode == 0, done.stderr
    return data, done


def test_a_step_that_fails_elsewhere_gives_its_reason_here(here, tmp_path):
    data = write_folder(tmp_path / "incomplete")
    (data / "masks" / "case3.png").unlink()
    done = here.drive(data)
    assert done.returncode == 1, done.stderr
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("segpipe pipeline: ")]
    assert "preprocess failed" in told
    assert "case3.png: no mask of the same name" in told
    assert "Traceback" not in done.stderr
    (step,) = here.runs("preprocess", f" and params.`cfg.data.root` = '{data}'")
    parent = here.client().get_run(step.data.tags["mlflow.parentRunId"])
    assert (step.info.status, parent.info.status) == ("FAILED", "FAILED")
    assert "no mask of the same name" in step.data.tags["segpipe.reason"]


def test_the_chain_ends_with_a_champion_where_nothing_but_uris_crosses(here, chain):
    _, done = chain
    assert f"Champion: {MODEL} version 1" in done.stdout
    for step in STEPS:
        (run,) = here.runs(step, " and attributes.status = 'FINISHED'")
        assert run.data.tags["mlflow.project.backend"] == "clone"
        params = run.data.params
        assert params["config"].startswith("runs:/")
        assert all(re.fullmatch("[0-9a-f]{32}", value) for name, value in params.items() if name.endswith("_run"))
        mine = (str(here.checkout), here.environment["HOME"], here.environment["SEGPIPE_CACHE"])
        assert not [name for name, value in params.items() if any(path in value for path in mine)]
    assert not [name for name in ("outputs", "mlruns", "mlflow.db") if (here.checkout / name).exists()]


def test_what_ran_elsewhere_is_reused_from_here(here, chain):
    data, _ = chain
    before = here.places()
    again = here.drive(data)
    assert again.returncode == 0, again.stderr
    assert [line.split()[:2] for line in again.stderr.splitlines() if ": reuse" in line] == [
        [f"{step}:", "reuse"] for step in STEPS
    ]
    assert here.places() == before
    assert f"Champion: {MODEL} version 1" in again.stdout


def test_a_signal_to_the_driver_ends_the_step_elsewhere(here, chain):
    data, _ = chain
    program = here.command(data, "--train.epochs=3000")
    driver = subprocess.Popen(program, cwd=here.checkout, env=here.environment, stderr=subprocess.PIPE, text=True)
    query = " and params.`cfg.train.epochs` = '3000' and metrics.train_loss > 0"
    wait_for(driver, lambda: here.runs("train", query))
    (step,) = here.runs("train", query)
    began = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    _, shown = driver.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert driver.returncode == 143, shown
    assert "Traceback" not in shown
    (step,) = here.runs("train", query)
    parent = here.client().get_run(step.data.tags["mlflow.parentRunId"])
    assert (step.info.status, parent.info.status) == ("KILLED", "KILLED")
    assert not psutil.pid_exists(int(step.data.tags["segpipe.pid"]))


@pytest.mark.parametrize(
    ("step", "knob", "path", "reason"),
    [
        ("preprocess", "data.root", "/not/there", "data.root /not/there: no such folder"),
        (
            "train",
            "model.encoder_weights",
            "/not/there.pt",
            "model.encoder_weights=/not/there.pt: no such file; give none, imagenet, bundled or the path of a file",
        ),
    ],
)
def test_a_path_that_does_not_lead_anywhere_there_is_named(here, chain, step, knob, path, reason):
    data, _ = chain
    tiny = dict(option.removeprefix("--").split("=") for option in TINY)
    knobs = {"data.format": "folder", "data.root": str(data), **tiny, knob: path}
    asked = [part for name, value in knobs.items() for part in ("-P", f"{name}={value}")]
    sent = ["--backend", "clone", "--backend-config", str(here.home / "clone.json")]
    handed_on = here.run([sys.executable, "-m", "mlflow", "run", ".", "-e", step, *sent, *asked])
    assert handed_on.returncode == 0, handed_on.stderr  # `mlflow run` does not wait for a plugin's step
    query = f" and params.`{knob}` = '{path}' and attributes.status != 'RUNNING'"
    until = time.monotonic() + 60
    while not (ended := here.runs(step, query)):
        assert time.monotonic() < until
        time.sleep(0.2)
    assert (ended[0].info.status, ended[0].data.tags["segpipe.reason"]) == ("FAILED", reason)
    (said,) = [lines for place in here.places(step) if path in (lines := (place / "log").read_text())]
    assert said.splitlines()[-1] == f"segpipe {step}: {reason}"
