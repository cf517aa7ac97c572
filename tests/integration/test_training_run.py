"""What a training leaves behind, with MLflow and without; and a comparison of several."""

import json
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, write_folder
from PIL import Image

from segpipe.config import settings
from segpipe.files.project import PROJECT

EPOCHS = 13
KNOBS = (*TINY, f"--train.epochs={EPOCHS}", "--tracking.artifact_every=5", "--data.format=folder")
TREE = {
    "config/resolved.yaml",
    "config/environment.txt",
    "config/git.diff",
    "logs/training/train.log",
    "summaries/training/summary.md",
    "visualizations/augmentation/augmented_batch.png",
    "checkpoints/best_model/metadata/metadata.json",
    "checkpoints/best_model/context/context.json",
    "final_model/weights/weights.safetensors",
    "final_model/weights/spec.json",
    "final_model/configuration/resolved.yaml",
    "final_model/validation/cases.csv",
    "final_model/training_history/training_history.json",
    "final_model/summary/summary.md",
}
LAST = ("best_val_dice", "best_epoch", "final_train_dice", "final_val_dice", "total_epochs_trained", "inference_ms")


def call(*arguments, **environment):
    program = [sys.executable, *arguments]
    return subprocess.run(
        program,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "raw", cases=12)


@pytest.fixture(scope="module")
def tracked(store, raw, tmp_path_factory):
    """A finished run and the folder of its artifacts."""
    from segpipe.tracking import connection, locations, runs

    outputs = tmp_path_factory.mktemp("outputs")
    done = call(
        "-m", "steps.train", *KNOBS, f"--data.root={raw}", f"--tracking.outputs={outputs}",
        "--tracking.system_metrics=true", MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL="0.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    connection.connect()
    run = runs.finished("train")[0]
    return run, locations.local_root(run.info.artifact_uri)


@pytest.fixture(scope="module")
def untracked(raw, tmp_path_factory):
    """The folder of a training without MLflow, and what MLflow was asked for."""
    outputs = tmp_path_factory.mktemp("out puts")
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(sorted(n for n in sys.modules if n.split('.')[0] == 'mlflow')))\n"
        "runpy.run_module('steps.train', run_name='__main__')"
    )
    done = call("-c", program, *KNOBS, f"--data.root={raw}", f"--tracking.outputs={outputs}", "--no-mlflow")
    assert done.returncode == 0, done.stderr
    (root,) = (path.parent for path in outputs.glob("*/run.json"))
    return root, done.stdout


def files(root):
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_the_tree_is_complete(tracked):
    _, root = tracked
    found = files(root)
    assert found >= TREE
    history = json.loads((root / "final_model/training_history/training_history.json").read_text())
    assert [report["epoch"] for report in history] == list(range(EPOCHS))
    dice = [report["val_dice"] for report in history]
    bests = {n for n in range(EPOCHS) if dice[n] > max(dice[:n], default=-1)}
    for n in range(EPOCHS):
        due = n in bests | {0, 5, 10, EPOCHS - 1}
        assert (f"metrics/epoch_{n:03d}/metrics.json" in found) == due
        assert (f"summaries/epoch_{n:03d}/summary.md" in found) == due
        assert (f"visualizations/training_curves/epoch_{n:03d}/curves.png" in found) == due
        assert any(path.startswith(f"predictions/epoch_{n:03d}/") for path in found) == due
    kept = {path.split("/")[2] for path in found if re.match(r"checkpoints/best_model/epoch", path)}
    assert kept == {f"epoch_{max(bests):03d}"}
    assert not [path for path in found if "partial" in path]


def test_pictures_can_be_opened_and_the_log_has_a_line_an_epoch(tracked):
    _, root = tracked
    for path in root.rglob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 100
    lines = (root / "logs/training/train.log").read_text().splitlines()
    assert len(lines) == EPOCHS
    assert "epoch 13/13" in lines[-1]


def test_parameters_tags_and_name(tracked):
    run, _ = tracked
    params = run.data.params
    assert len(params) >= 100
    assert params["cfg.train.epochs"] == str(EPOCHS)
    assert int(params["cfg.model.parameters"]) > 1000
    for name in ("hardware.device", "hardware.gpu", "hardware.precision", "version.torch", "version.mlflow"):
        assert params[f"cfg.{name}"], name
    tags = {"architecture": "unet", "encoder": "tu-test_resnet", "pretrained": "no", "augmentation": "on"}
    tags |= {"loss_type": "dice_bce", "task": "binary", "device": params["cfg.hardware.device"]}
    assert run.data.tags.items() >= tags.items()
    assert re.fullmatch(r"unet_tu-test_resnet_rand_\d{8}_\d{6}", run.info.run_name)


def test_metrics_of_the_end_and_of_the_machine(tracked):
    run, _ = tracked
    metrics = run.data.metrics
    assert metrics.keys() >= set(LAST)
    assert metrics["total_epochs_trained"] == EPOCHS
    assert metrics["training_time_minutes"] == pytest.approx(60 * metrics["training_time_hours"])
    assert 0 < metrics["data_wait_share"] < 1
    assert metrics["images_per_second"] > 0
    assert "system/cpu_utilization_percentage" in metrics


def test_without_mlflow_the_same_files_and_no_import(tracked, untracked):
    _, root = tracked
    alone, printed = untracked
    assert printed.strip() == "[]"
    own = {"params.json", "tags.json", "metrics.json", "metrics.jsonl", "run.json"}
    own |= {"model/spec.json", "model/weights.safetensors"}
    assert files(alone) - own == files(root) - {"logs/step.log", "config/made_of.json"}
    assert alone.name.startswith("unet_tu-test_resnet_rand_")
    assert json.loads((alone / "run.json").read_text())["status"] == "FINISHED"
    assert json.loads((alone / "tags.json").read_text())["architecture"] == "unet"
    same = "final_model/weights/weights.safetensors"
    assert (alone / same).read_bytes() == (root / same).read_bytes()


def test_two_trainings_without_mlflow_at_once_have_a_folder_each(raw, tmp_path):
    knobs = [*TINY, "--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={tmp_path}"]
    program = [sys.executable, "-m", "steps.train", "--no-mlflow", "--tracking.run_name=exp", *knobs]
    both = [subprocess.Popen(program, cwd=PROJECT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    shown = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    for name in ("exp", "exp_2"):
        assert json.loads((tmp_path / name / "run.json").read_text())["status"] == "FINISHED"
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 2
    assert len(list((tmp_path / "datasets").iterdir())) == 1


@pytest.mark.parametrize("program", [["-m", "steps.evaluate"], ["-m", "steps.register"], ["pipeline.py"]])
def test_what_needs_mlflow_says_so(program):
    done = call(*program, "--no-mlflow")
    assert done.returncode == 2
    assert "without it" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unforeseen_error_is_an_artifact_and_a_tag(store, raw, tmp_path):
    from segpipe.tracking import connection, locations, runs

    program = (
        "import runpy\nfrom segpipe.plots import training\n"
        "def broken(*_): raise ZeroDivisionError('curves are round')\n"
        "training.curves = broken\nrunpy.run_module('steps.train', run_name='__main__')"
    )
    done = call("-c", program, *KNOBS, f"--data.root={raw}", f"--tracking.outputs={tmp_path}", "--seed=3")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "segpipe train: ZeroDivisionError: curves are round"
    connection.connect()
    client = runs.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.`segpipe.reason` = 'curves are round'")
    assert run.info.status == "FAILED"
    told = (locations.local_root(run.info.artifact_uri) / "logs/traceback.txt").read_text()
    assert "ZeroDivisionError" in told


@pytest.fixture(scope="module")
def compared(store, raw, tmp_path_factory):
    """A comparison with a member that fails, as a function of what comes after it."""
    outputs = tmp_path_factory.mktemp("outputs")
    knobs = [*TINY, "--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={outputs}"]
    wanted = ["--compare.archs=unet,dpt", "--compare.seeds=0,1", "--compare.parallel=2", "--registry.model_name=best"]
    return cache(lambda then: call("pipeline.py", "compare", *knobs, *wanted, "--then", then))


def board(run_id):
    from segpipe.tracking import artifacts

    return pd.read_csv(artifacts.local(f"runs:/{run_id}/compare/leaderboard.csv"))


def test_a_comparison_ranks_its_members_and_shows_what_failed(compared):
    from segpipe.tracking import connection, runs

    first = compared("stop")
    assert first.returncode == 0, first.stderr
    connection.connect()
    run = runs.finished("compare")[-1]
    table = board(run.info.run_id)
    assert list(table["model"][2:]) == ["dpt_seed0", "dpt_seed1"]
    assert table["val_dice"][0] >= table["val_dice"][1]
    assert table["status"].str.contains("needs a ViT encoder").tolist() == [False, False, True, True]
    assert table["parameters"][0] > 0
    assert list(table["group"][:2]) == ["a", "a"]
    assert (table["val_dice_ci_low"] <= table["val_dice"])[:2].all()
    assert {"unet_seed0", "unet_seed1"} == set(table["model"][:2])
    assert all(name in first.stdout for name in table["model"])
    children = runs.MlflowClient().search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}' and tags.`segpipe.step` = 'train'"
    )
    assert {child.info.run_id for child in children} >= set(table["run"][:2])
    assert len({child.data.tags["segpipe.input.preprocess"] for child in children}) == 1


@pytest.mark.slow
def test_finished_members_are_reused_and_the_best_goes_on(compared):
    from segpipe.tracking import artifacts, connection, runs

    compared("stop")
    second = compared("promote")
    assert second.returncode == 0, second.stderr
    connection.connect()
    run = runs.finished("compare")[0]
    table = board(run.info.run_id)
    assert list(table["status"][:2]) == ["reused", "reused"]
    best = runs.MlflowClient().get_model_version_by_alias("best", "champion")
    assert best.tags["train_run"] == table["run"][0]
    assert "Champion: best version 1" in second.stdout
    for name in ("leaderboard.png", "curves.png"):
        with Image.open(artifacts.local(f"runs:/{run.info.run_id}/compare/{name}")) as picture:
            assert min(picture.size) > 100


def test_members_that_differ_in_every_patient_share_no_letter():
    from segpipe.orchestration import compare

    def table(gain, **values):
        dice = np.linspace(0.5, 0.7, 12) + gain
        rows = pd.DataFrame({"patient": [f"p{k}" for k in range(12)], "dice": dice}, index=[f"c{k}" for k in range(12)])
        return rows.assign(**values)

    same = table(0.1)[::-1]
    assert compare.groups({"a": table(0.1), "b": same, "c": table(0)}, 500, seed=0) == {"a": "a", "b": "a", "c": "b"}
    silent, loud = table(0, dice=np.nan), table(0, dice=0.0)
    assert compare.groups({"silent": silent, "loud": loud}, 500, seed=0) == {"silent": "a", "loud": "b"}
    assert compare.groups({"alone": same}, 500, seed=0) == {"alone": "a"}


def test_members_are_every_combination_named_by_what_differs():
    from segpipe.orchestration import compare

    config = settings.load(None, {"compare.archs": "unet,fpn", "compare.encoders": "resnet18,resnet34"})
    assert [m.name for m in compare.members(config)] == [
        "unet_resnet18",
        "unet_resnet34",
        "fpn_resnet18",
        "fpn_resnet34",
    ]
    assert [m.config.model.encoder for m in compare.members(config)] == ["resnet18", "resnet34"] * 2
