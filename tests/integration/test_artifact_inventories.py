"""Inventories of what steps leave in a store on this machine, written where it stays."""

import os
import subprocess
import sys

import mlflow
import pytest

from segpipe.files import inventory, staging
from segpipe.files.project import PROJECT
from segpipe.tracking import artifacts

TIMES = 30
ADD = f"""
import sys, mlflow
from segpipe.tracking import artifacts, connection, runs
connection.connect()
with runs.within(sys.argv[1]):
    for number in range({TIMES}):
        with artifacts.files("compare") as folder:
            (folder / f"{{sys.argv[2]}} {{number}}.txt").write_text(str(number))
            (folder / "leaderboard.csv").write_text(sys.argv[2] * number)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGPIPE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(store):
    """An active run."""
    with mlflow.start_run() as run:
        yield run.info.run_id


def damage(run, name):
    return artifacts.damage(mlflow.get_run(run).info.artifact_uri, name)


def add(name, text, file="record.md"):
    with artifacts.files(name) as folder:
        (folder / file).write_text(text)


def test_a_folder_is_whole_once_its_block_has_ended_and_not_there_before(run):
    with artifacts.folder("dataset") as folder:
        (folder / "a b.npy").write_bytes(b"x" * 10)
        assert damage(run, "dataset") == "dataset/inventory.json is missing"
    assert damage(run, "dataset") == ""
    path = artifacts.local(f"runs:/{run}/dataset")
    assert set(inventory.read(path)) == {"a b.npy"}
    os.truncate(path / "a b.npy", 9)
    assert damage(run, "dataset") == "dataset/a b.npy is cut short"


def test_a_block_that_fails_leaves_nothing(run):
    def write():
        with artifacts.folder("evaluation") as folder:
            (folder / "half").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert damage(run, "evaluation") == "evaluation/inventory.json is missing"
    assert not artifacts.has(run, "evaluation")


def test_files_that_join_a_folder_join_its_inventory(run):
    add("register", "{}", "decision.json")
    add("register", "approved")
    add("register", "approved twice")
    assert damage(run, "register") == ""
    assert set(inventory.read(artifacts.local(f"runs:/{run}/register"))) == {"decision.json", "record.md"}


def test_files_that_join_a_damaged_folder_do_not_make_it_whole(run):
    add("register", "{}", "decision.json")
    os.truncate(artifacts.local(f"runs:/{run}/register/decision.json"), 1)
    add("register", "approved")
    assert damage(run, "register") == "register/decision.json is cut short"


def test_files_cut_off_between_two_moves_leave_a_folder_that_is_not_whole(run):
    add("register", "{}", "decision.json")
    folder = artifacts.local(f"runs:/{run}/register")
    with staging.staged(folder) as half:  # as far as a process comes that dies before it writes the inventory
        (half / "decision.json").write_text("[]")
    assert damage(run, "register") == "register/decision.json is not what was written"


@pytest.mark.slow
def test_processes_that_add_to_a_folder_at_once_never_leave_a_wrong_inventory(run):
    command = [sys.executable, "-c", ADD, run]
    several = [subprocess.Popen([*command, letter], cwd=PROJECT) for letter in "ab"]
    assert [process.wait(timeout=60) for process in several] == [0, 0]
    fault = damage(run, "compare")
    assert fault in ("", *(f"compare/leaderboard.csv is {how}" for how in ("cut short", "not what was written")))
    assert len(inventory.read(artifacts.local(f"runs:/{run}/compare"))) >= TIMES
