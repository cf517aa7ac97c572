"""The installed command `segpipe`, from a folder that is not the project's."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import TINY, write_folder
from mlflow import MlflowClient

from segpipe import __version__
from segpipe.files.project import PROJECT
from segpipe.orchestration.step_table import STEPS

NOT_TINY = ("--preprocess.size", "--plan.auto")


def run(folder, *arguments, path=PROJECT, timeout=300, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "SEGPIPE"))}
    more = {"MLFLOW_DISABLE_TELEMETRY": "true", "SEGPIPE_CACHE": os.environ["SEGPIPE_CACHE"], "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-m", "segpipe", *arguments],
        cwd=folder, env={**kept, **more, **environment}, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def test_without_a_command_it_says_what_there_is(tmp_path):
    from steps import cli

    for words in ((), ("--help",)):
        shown = run(tmp_path, *words)
        assert shown.returncode == 0, shown.stderr
        listed = shown.stdout.partition("Commands (")[2].partition("Options:")[0]
        assert re.findall(r"^  (\w+) ", listed, re.MULTILINE) == [*cli.COMMANDS]
        assert max(map(len, shown.stdout.splitlines())) <= 80
    assert run(tmp_path, "--version").stdout == f"segpipe {__version__}\n"
    assert list(tmp_path.iterdir()) == []


def test_each_command_has_its_own_help_on_a_screen(tmp_path):
    from steps import cli

    for name in cli.COMMANDS:
        shown = run(tmp_path, name, "--help")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.startswith(f"Usage: segpipe {name}")
        lines = shown.stdout.splitlines()
        assert len(lines) <= 90
        assert max(map(len, lines)) <= 80


def test_help_all_tells_each_knob(tmp_path):
    from segpipe.config import settings

    shown = run(tmp_path, "train", "--help-all").stdout
    assert all(f"--{name} " in shown for name in settings.knobs())
    assert "highest" not in shown[:100]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rum"], "segpipe: no command 'rum' (nearest: run); segpipe --help lists them"),
        (["run"], "segpipe run: no segpipe.yaml here, and no --data.root: segpipe init FOLDER writes one"),
        (["compare"], "segpipe compare: no segpipe.yaml here, and no --data.root: segpipe init FOLDER writes one"),
        (["init"], "segpipe init: Missing argument 'FOLDER'"),
        (["init", "nowhere"], "segpipe init: data.root"),
        (["init", "pictures", "--config", "x.yaml"], "segpipe init: init looks at FOLDER and writes a recipe"),
        (["check", "nowhere"], "segpipe check: data.root nowhere: no such folder"),
        (["predict"], "segpipe predict: predict.input: not given; files, a folder"),
        (["predict", "no such.png"], "segpipe predict: predict.input=no such.png: no such file or folder"),
        (["predict", "pictures", "--predict.input", "pictures"], "segpipe predict: predict.input: give files after"),
        (["approve"], "segpipe approve: VERSION goes with approve"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_and_nothing_is_made(tmp_path, words, told):
    write_folder(tmp_path / "pictures")
    shown = run(tmp_path, *words)
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1), shown.stderr
    assert shown.stderr.startswith(told)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_own_data_gets_to_a_champion_in_two_lines_and_predicts(tmp_path):
    write_folder(tmp_path / "my pictures", cases=12)
    made = run(tmp_path, "init", "my pictures", "--data.channels=grey")
    assert made.returncode == 0, made.stderr
    assert (
        "folder, 12 cases with masks, the first 36x40 grey, mask values 0/255, 12 patients; every case counts as"
        in made.stderr
    )
    assert made.stderr.splitlines()[-1].endswith("then: segpipe run")
    recipe = (tmp_path / "segpipe.yaml").read_text(encoding="utf-8")
    assert recipe in made.stdout
    values = yaml.safe_load(recipe)
    assert values["data"] == {"format": "folder", "root": "my pictures", "channels": ["grey"]}
    assert values["registry"] == {"model_name": "my-pictures"}
    assert run(tmp_path, "init", "my pictures").returncode == 2

    quick = [knob for knob in TINY if not knob.startswith(NOT_TINY)]
    done = run(tmp_path, "run", "--train.minutes=0", "--model.encoder_weights=none", "--in-process", *quick)
    assert done.returncode == 0, done.stderr
    assert "using segpipe.yaml of this folder; --config FILE takes another recipe" in done.stderr.splitlines()
    assert {path.name for path in tmp_path.iterdir()} >= {"mlflow.db", "mlruns", "outputs"}
    shown = done.stdout
    assert "Champion: my-pictures version 1" in shown
    (report,) = re.findall(r"^Report: (.*report\.html)$", shown, re.MULTILINE)
    assert "<h2>Failures</h2>" in Path(report).read_text(encoding="utf-8")
    assert re.search(r"^All runs: mlflow ui --backend-store-uri '?sqlite:///", shown, re.MULTILINE)
    assert "segpipe serve --registry.model_name my-pictures" in shown
    assert '"params":{"output":"none"}' in shown

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (parent,) = client.search_runs(["0", "1"], "tags.`segpipe.step` = 'pipeline'")
    (evaluated,) = client.search_runs(["0", "1"], "tags.`segpipe.step` = 'evaluate'")
    assert parent.data.metrics["test_dice"] == evaluated.data.metrics["test_dice"]
    note = parent.data.tags["mlflow.note.content"]
    assert [line.partition("]")[0] for line in note.splitlines()] == [f"- [{step}" for step in STEPS]
    assert f"runs/{evaluated.info.run_id}/artifacts/evaluation/report.html" in note
    (trained,) = client.search_runs(["0", "1"], "tags.`segpipe.step` = 'train'")
    best = int(trained.data.metrics["best_epoch"])
    assert f"in epoch {best} of " in trained.data.tags["segpipe.figure"]
    assert f"epoch {best}/" in done.stderr

    images = sorted((tmp_path / "my pictures" / "images").iterdir())
    found = run(tmp_path, "predict", str(images[0]), str(images[1]), "my pictures/images")
    assert found.returncode == 0, found.stderr
    assert re.search(r"^12 of 12 segmented, .*, the model was trained on 9 of them", found.stderr, re.MULTILINE)
    whole = run(tmp_path, "predict", "my pictures")
    apart = r"^Dice 0\.\d+ over 1[0-2] cases, \d+ of them trained on; 0\.\d+ over the others$"
    assert re.search(apart, whole.stderr, re.MULTILINE), whole.stderr
    assert run(tmp_path, "predict", str(images[0])).returncode == 0
    history = run(tmp_path, "history")
    assert "promoted" in history.stdout


@pytest.mark.slow
def test_the_installed_package_is_the_project(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "wheel")]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    site, empty = tmp_path / "site", tmp_path / "an empty folder"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    beside = {path.name for path in site.iterdir()} - {"segpipe.pth", "segpipe_project"}
    assert beside == {f"segpipe-{__version__}.dist-info"}
    project = site / (site / "segpipe.pth").read_text().strip()
    shown = run(empty, "--version", path=project)
    assert shown.stdout == f"segpipe {__version__}\n"
    done = run(empty, "demo", "--data.patients=12", "--in-process", *TINY, path=project)
    assert done.returncode == 0, done.stderr
    assert "Champion: " in done.stdout
    assert {path.name for path in empty.iterdir()} >= {"mlflow.db", "mlruns", "outputs", "data"}
    written = {path.relative_to(project).parts[0] for path in project.rglob("*") if "__pycache__" not in path.parts}
    assert written == {"MLproject", "conda.yaml", "requirements.txt", "pipeline.py", "configs", "segpipe", "steps"}
