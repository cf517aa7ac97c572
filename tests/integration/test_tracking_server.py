"""A training whose tracking server is killed while it works."""

import os
import re
import subprocess
import sys
import time

import pytest
from conftest import TINY, wait_for, write_folder

from segpipe.files.project import PROJECT
from segpipe.recording.artifact_tree import HISTORY

EPOCHS = 90


@pytest.fixture
def training(server, tmp_path):
    """A training that has finished a few epochs."""
    raw = write_folder(tmp_path / "raw", cases=12)
    knobs = [*TINY, "--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={tmp_path / 'out puts'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "steps.train", *knobs, f"--train.epochs={EPOCHS}"],
        cwd=PROJECT,
        env={**os.environ, "MLFLOW_TRACKING_URI": server.uri},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    wait_for(process, lambda: reached(tmp_path) > 2)
    yield process
    process.kill()
    process.wait()


def reached(tmp_path):
    """The epoch of the newest checkpoint."""
    names = [path.name for path in (tmp_path / "out puts" / "checkpoints").glob("*/*.ckpt")]
    return max((int(name.split("_")[1]) for name in names), default=0)


def check_complete(server):
    """Everything is on the server, once."""
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.`segpipe.step` = 'train'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["segpipe.figure"].startswith("val Dice")
    for name in ("train_loss", "val_dice", "images_per_second", "learning_rate"):
        assert [p.step for p in client.get_metric_history(run.info.run_id, name)] == list(range(EPOCHS)), name
    assert run.data.metrics["total_epochs_trained"] == EPOCHS
    folder, _, file = HISTORY.rpartition("/")
    assert f"{folder}/{file}" in [item.path for item in client.list_artifacts(run.info.run_id, folder)]
    best = [i.path for i in client.list_artifacts(run.info.run_id, "checkpoints/best_model") if "epoch" in i.path]
    assert best == [f"checkpoints/best_model/epoch_{int(run.data.metrics['best_epoch']) - 1:03d}"]
    assert client.get_logged_model(run.data.tags["segpipe.model_id"]).status == "READY"
    return run


@pytest.mark.slow
def test_a_server_that_is_away_for_twenty_seconds_gets_everything(server, training, tmp_path):
    server.kill()
    before = reached(tmp_path)
    time.sleep(20)
    assert training.poll() is not None or reached(tmp_path) > before + 5
    server.start()
    _, shown = training.communicate(timeout=180)
    assert training.returncode == 0, shown
    assert shown.count("does not take records") == 1
    assert shown.count("is back; all records sent") == 1
    assert "Traceback" not in shown
    check_complete(server)
    assert list((tmp_path / "out puts" / "spool").iterdir()) == []


@pytest.mark.slow
def test_what_a_server_never_took_is_kept_with_the_command_that_sends_it(server, training, tmp_path):
    server.kill()
    _, shown = training.communicate(timeout=240)
    assert training.returncode == 0, shown
    assert "Traceback" not in shown
    told = re.search(r"python -m steps\.send '(.+)'", shown)
    assert told is not None, shown
    program = [sys.executable, "-m", "steps.send", told.group(1)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    away = subprocess.run(program, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert away.returncode == 1
    assert "does not answer" in away.stderr
    server.start()
    sent = subprocess.run(program, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert sent.returncode == 0, sent.stderr
    assert "records sent" in sent.stderr
    check_complete(server)
    again = subprocess.run(program, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "sent already" in again.stderr
