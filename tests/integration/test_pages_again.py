"""Pages of a finished chain are made again from what was measured: no step runs, no model is touched."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import TINY, write_folder
from mlflow import MlflowClient

from segpipe.files.project import PROJECT
from segpipe.tracking import run_tags

MODEL = "paged"
STEPS = ("preprocess", "train", "evaluate", "register")
MEASURED = ("cases.csv", "lesions.csv", "look_first.csv", "summary.json", "measured.npz")
# A driver that can't import torch, and is killed where a MOMENT says.
DRIVER = """
import os, pathlib, signal, sys
from mlflow import MlflowClient
sys.modules["torch"] = None
moment, *words = sys.argv[1:]
wait, tags, moves = MlflowClient.set_tag, [], pathlib.Path.replace

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def set_tag(self, run_id, key, value, *more, **named):
    if key == "segpipe.pages":
        tags.append(value)
        if (moment, len(tags)) in {("before the tag", 2), ("before the tag of register", 4)}:
            kill()
    return wait(self, run_id, key, value, *more, **named)

def replace(self, target):
    if moment == "amid the pages" and self.name == "report.html":
        kill()
    return moves(self, target)

MlflowClient.set_tag, pathlib.Path.replace = set_tag, replace
import pipeline
pipeline.command().main(words)
"""


@pytest.fixture(scope="module")
def chain(store, tmp_path_factory):
    """The words of the command line of a finished chain."""
    raw = write_folder(tmp_path_factory.mktemp("raw data") / "pictures", cases=9)
    data = ["--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={tmp_path_factory.mktemp('outputs')}"]
    words = [*data, f"--registry.model_name={MODEL}", *TINY, "--train.epochs=1"]
    done = run([sys.executable, "pipeline.py", *words, "--in-process"])
    assert done.returncode == 0, done.stderr
    return words


def run(program, project=PROJECT):
    return subprocess.run(program, cwd=project, capture_output=True, text=True, timeout=300, check=False)


def driver(*words, moment="", project=PROJECT):
    return run([sys.executable, "-c", DRIVER, moment, *words], project)


def finished(step):
    from segpipe.tracking import runs

    (found,) = runs.finished(step)
    return found


def folder(step):
    from segpipe.orchestration.step_table import STEPS
    from segpipe.tracking import artifacts

    return artifacts.local(f"runs:/{finished(step).info.run_id}/{STEPS[step].output}")


def damage():
    from segpipe.orchestration import chain

    return [chain.damage(step, finished(step)) for step in STEPS]


def kept():
    """What no page's making may change: times and status of the runs, bytes and times of what was measured."""
    states = [vars(finished(step).info) for step in STEPS]
    files = [folder("evaluate") / name for name in MEASURED]
    return states, [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in files]


def planned(*words):
    done = run([sys.executable, "pipeline.py", *words, "--plan"])
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


def reused(**more):
    return {step: f"reuse {finished(step).info.run_id}{more.get(step, '')}" for step in STEPS}


def described():
    return MlflowClient().get_model_version_by_alias(MODEL, "champion").description


def check_all_pages_say(author):
    assert f"Authors and copyright: {author}\n" in (folder("evaluate") / "model_card.md").read_text(encoding="utf-8")
    assert f"Authors and copyright: {author}\n" in described()
    for step in ("evaluate", "register"):
        assert len(json.loads(finished(step).data.tags[run_tags.PAGES])) > 20
    assert damage() == [""] * 4
    assert not list(folder("evaluate").glob(".partial*"))


def test_a_changed_card_makes_pages_again_and_runs_nothing(chain):
    before, charts = kept(), {p.name: p.read_bytes() for p in folder("evaluate").rglob("*.csv")}
    words = [*chain, "--card.authors=Ada L."]
    again = ", pages again: card.authors changed"
    assert planned(*words) == reused(evaluate=again, register=again)
    done = driver(*words)
    assert done.returncode == 0, done.stderr
    for step, line in reused(evaluate=again, register=again).items():
        assert f"{step}: {line}\n" in done.stderr
    assert "run: because" not in done.stderr
    check_all_pages_say("Ada L.")
    assert kept() == before
    assert {path.name: path.read_bytes() for path in folder("evaluate").rglob("*.csv")} == charts
    verified = run([sys.executable, "-m", "steps.lineage", f"models:/{MODEL}@champion", "--verify"])
    assert verified.returncode == 0, verified.stderr
    assert planned(*words) == reused()


def test_a_changed_template_comes_to_the_report_of_both_and_the_decision_stays_in_it(chain, tmp_path):
    copy = tmp_path / "a copy"
    for name in ("segpipe", "steps", "configs"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pipeline.py", "MLproject", "requirements.txt"):
        shutil.copy(PROJECT / name, copy)
    template = copy / "segpipe" / "evaluation" / "report" / "template.html"
    template.write_text(template.read_text(encoding="utf-8").replace("test report</title>", "a test</title>"))
    before = kept()
    done = driver(*chain, "--card.authors=Ada L.", project=copy)
    assert done.returncode == 0, done.stderr
    for step in ("evaluate", "register"):
        assert f"{step}: reuse" in done.stderr
        assert "pages again: segpipe/evaluation/report/template.html changed\n" in done.stderr
        assert "a test</title>" in (folder(step) / "report.html").read_text(encoding="utf-8")
    assert "Promoted" in (folder("register") / "report.html").read_text(encoding="utf-8")
    assert "Not decided yet" in (folder("evaluate") / "report.html").read_text(encoding="utf-8")
    assert kept() == before
    check_all_pages_say("Ada L.")


@pytest.mark.parametrize("moment", ["amid the pages", "before the tag", "before the tag of register"])
def test_what_a_kill_leaves_half_done_the_next_command_completes(chain, moment):
    before = kept()
    words = [*chain, f"--card.authors=killed {moment}"]
    assert driver(*words, moment=moment).returncode == -9
    assert damage() == [""] * 4
    half = "register" if "register" in moment else "evaluate"
    assert planned(*words)[half].endswith(", pages again: they were left unfinished")
    done = driver(*words)
    assert done.returncode == 0, done.stderr
    assert "run: because" not in done.stderr
    check_all_pages_say(f"killed {moment}")
    assert kept() == before
    assert planned(*words) == reused()


@pytest.mark.slow
def test_pages_that_were_left_unfinished_for_another_card_are_made_for_this_one(chain):
    words = [*chain, "--card.authors=one"]
    assert driver(*words).returncode == 0
    assert driver(*chain, "--card.authors=two", moment="amid the pages").returncode == -9
    assert driver(*words).returncode == 0
    check_all_pages_say("one")


@pytest.mark.slow
def test_two_drivers_make_them_once(chain):
    program = [sys.executable, "-c", DRIVER, "", *chain, "--card.authors=both"]
    both = [subprocess.Popen(program, cwd=PROJECT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120) and process.returncode for process in both] == [0, 0]
    check_all_pages_say("both")


def test_an_evaluation_of_an_earlier_version_stays_as_it_is_and_that_is_told(chain):
    client, words = MlflowClient(), [*chain, "--card.authors=nobody"]
    tags = {step: finished(step).data.tags[run_tags.PAGES] for step in ("evaluate", "register")}
    card = (folder("evaluate") / "model_card.md").read_bytes()
    for step in tags:
        client.delete_tag(finished(step).info.run_id, run_tags.PAGES)
    try:
        stays = ", its pages stay as they were: made before 0.6.0"
        assert planned(*words) == reused(evaluate=stays, register=stays)
        assert driver(*words).returncode == 0
    finally:
        for step, value in tags.items():
            client.set_tag(finished(step).info.run_id, run_tags.PAGES, value)
    assert (folder("evaluate") / "model_card.md").read_bytes() == card


def test_what_pages_are_made_of_and_is_gone_leaves_them_as_they_were(chain):
    path = folder("train").parent / "config" / "resolved.yaml"
    hidden, card = path.rename(path.with_suffix(".gone")), described()
    try:
        done = driver(*chain, "--card.authors=late")
    finally:
        hidden.rename(path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"evaluate: its pages stay as they were: .*resolved\.yaml", done.stderr)
    assert described() == card
    assert damage() == [""] * 4
    assert driver(*chain, "--card.authors=late").returncode == 0
    check_all_pages_say("late")
