"""A project folder that was moved: every command says so in a line, one corrects it, then all goes on from there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY, copy_project, write_folder

MODEL = "wanderer"
STEPS = ("preprocess", "train", "evaluate", "register")
BETTER = ("--train.lr=0.01", "--train.epochs=4", "--gate.alpha=0.49")


class Project:
    """A copy of the project with its store in it, as it is without $MLFLOW_TRACKING_URI, and the knobs of its chain."""

    def __init__(self, folder, raw):
        self.folder = folder
        self.knobs = [*TINY, "--train.epochs=1", "--train.lr=1e-7", "--data.format=folder", f"--data.root={raw}"]
        self.knobs += [f"--registry.model_name={MODEL}"]

    def run(self, *arguments, **environment):
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        kept |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path} | environment
        program = [sys.executable, *arguments]
        return subprocess.run(
            program, cwd=self.folder, env=kept, capture_output=True, text=True, timeout=300, check=False
        )

    def succeed(self, *arguments):
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done

    def plan(self, *more):
        shown = self.succeed("pipeline.py", "--plan", *self.knobs, *more).stdout
        return dict(line.split(": ", 1) for line in shown.splitlines())


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a project in which two models became champion one after the other, and which was moved away."""
    home = tmp_path_factory.mktemp("a home")
    project = Project(copy_project(home / "old place"), write_folder(home / "raw data", cases=9))
    for better in ((), BETTER):
        project.succeed("pipeline.py", "--in-process", *project.knobs, *better)
    project.folder.rename(home / "kept")
    return home


@pytest.fixture
def moved(home, tmp_path):
    """The project at a new place; what its store says of the old one, where nothing may be made again, is as it was."""
    yield Project(shutil.copytree(home / "kept", tmp_path / "new place"), home / "raw data")
    assert not (home / "old place").exists()


def test_every_command_stops_with_the_line_that_says_what_to_do(moved, home):
    old, new = home / "old place" / "mlruns", moved.folder / "mlruns"
    for words in (
        ["pipeline.py"],
        ["pipeline.py", "--plan"],
        ["-m", "steps.preprocess"],
        ["-m", "steps.register", "history"],
        ["-m", "steps.serve"],
    ):
        done = moved.run(*words, *moved.knobs)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1
        assert f"{moved.folder / 'mlflow.db'} points to artifacts in {old}, but they are in {new}" in line
        assert line.endswith("correct that with: python -m steps.moved")


def test_a_run_of_mlflow_projects_fails_with_that_reason(moved):
    from mlflow import MlflowClient

    done = moved.run("-m", "mlflow", "run", ".", "-e", "preprocess", "--env-manager", "local")
    assert done.returncode != 0
    assert len([line for line in done.stderr.splitlines() if line.startswith("segpipe ")]) == 1
    assert "Traceback" not in done.stderr
    (run,) = MlflowClient(f"sqlite:///{moved.folder / 'mlflow.db'}").search_runs(["0"])
    assert run.info.status == "FAILED"
    assert "python -m steps.moved" in run.data.tags["segpipe.reason"]


def test_after_the_correction_everything_is_found_and_made_at_the_new_place(moved):
    said = moved.succeed("-m", "steps.moved").stderr
    assert re.search(r"runs 10, logged models \d, model versions 2\)", said), said
    assert "nothing was changed" in moved.succeed("-m", "steps.moved").stderr
    assert [line.split()[0] for line in moved.plan(*BETTER).values()] == ["reuse"] * 4
    verified = moved.succeed("-m", "steps.lineage", f"models:/{MODEL}@champion", "--verify")
    assert ", 0 differs, 0 gone" in verified.stderr
    assert re.search(r"\* .*│ 2 +│ promoted", moved.succeed("-m", "steps.register", "history", *moved.knobs).stdout)
    assert "version 1 is champion" in moved.succeed("-m", "steps.register", "rollback", *moved.knobs).stderr
    program = f"import mlflow; print(mlflow.pyfunc.load_model('models:/{MODEL}@champion').metadata.model_id)"
    assert moved.succeed("-c", program).stdout.startswith("m-")
    moved.succeed("pipeline.py", "--in-process", "--until=preprocess", *moved.knobs, "--preprocess.size=48")
    assert len(list((moved.folder / "mlruns").rglob("manifest.json"))) == 2


def test_the_store_of_a_server_is_not_touched(moved, server):
    done = moved.run("-m", "steps.moved", MLFLOW_TRACKING_URI=server.uri)
    assert done.returncode == 1
    assert "a server's" in done.stderr
    assert len(done.stderr.splitlines()) == 1
