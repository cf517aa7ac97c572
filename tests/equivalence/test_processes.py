"""Two processes train what one would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch
from conftest import TINY, training_set, wait_for, with_knobs, write_folder
from double_precision import AGREE

from segpipe.config import settings
from segpipe.files.project import PROJECT
from segpipe.models import architectures

PROGRAM = Path(__file__).with_name("several_processes.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
EXACT = {
    "plain": {"train": {"epochs": 2}},
    "odd batches": {"train": {"epochs": 1, "batch_size": 3}},
    "fewer slices than processes": {"train": {"epochs": 1, "batch_size": 1}},
    "accumulated": {"train": {"epochs": 1, "batch_size": 2, "accumulate": 2, "optimizer": "sgd"}},
    "averaged, clipped": {"train": {"epochs": 1, "ema_decay": 0.9, "clip_norm": 0.1}},
    "lovasz": {"train": {"epochs": 1}, "loss": {"name": "lovasz"}},
    "windows": {"train": {"epochs": 2, "batch_size": 3, "patches": 2}, "preprocess": {"fit": "patch"}},
    "tversky": {"train": {"epochs": 1, "batch_size": 3}, "loss": {"name": "focal_tversky"}},
}


WORKERS = "steps.worker"


def run(processes, job, out):
    path = os.pathsep.join(map(str, (PROJECT, PROJECT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    program = [*TORCHRUN, str(processes), str(PROGRAM), str(job), str(out)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The same trainings by one process and by two."""
    folder = tmp_path_factory.mktemp("trainings")
    sets = {fit: training_set(folder / fit, **{"preprocess.fit": fit}) for fit in ("resize", "patch")}
    alone = with_knobs(sets["resize"][0], model={"norm": "group"})
    trainings = {name: with_knobs(alone, **knobs) for name, knobs in EXACT.items()}
    job = folder / "job.json"
    values = {name: training.model_dump(mode="json") for name, training in trainings.items()}
    job.write_text(json.dumps({"datasets": {fit: str(made[2]) for fit, made in sets.items()}, "trainings": values}))
    return [run(n, job, folder / f"{n}.pt") for n in (1, 2)]


@pytest.mark.parametrize("name", EXACT)
def test_every_step_has_the_same_loss_and_the_weights_agree(found, name):
    one, two = (result[name] for result in found)
    assert len(one["losses"]) == len(two["losses"]) > 1
    assert two["losses"] == pytest.approx(one["losses"], abs=AGREE["atol"], rel=AGREE["rtol"])
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, **AGREE)


@pytest.mark.parametrize("name", EXACT)
def test_loss_and_dice_are_those_of_all_processes(found, name):
    one, two = (result[name] for result in found)
    assert two["train"] == pytest.approx(one["train"], abs=AGREE["atol"])
    assert two["val"] == pytest.approx(one["val"], abs=AGREE["atol"])


@pytest.mark.slow
def test_every_architecture_trains_in_two_processes(tmp_path):
    config, _, dataset = training_set(tmp_path)
    trainings = {
        arch: with_knobs(
            config, model={"arch": arch, "encoder": row.test_encoder}, train={"epochs": 2, "batch_size": 8}
        ).model_dump(mode="json")
        for arch, row in architectures.ARCHITECTURES.items()
    }
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"datasets": {"resize": str(dataset)}, "trainings": trainings}))
    found = run(2, job, tmp_path / "out.pt")
    assert set(found) == set(architectures.ARCHITECTURES)
    for arch, result in found.items():
        assert all(value == value for value in result["losses"]), arch


# --- the step

KNOBS = (
    *TINY,
    "--train.epochs=12",
    "--train.optimizer=sgd",
    "--train.lr=0.001",
    "--model.norm=group",
    "--data.format=folder",
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "raw", cases=12)


def start(raw, outputs, *more, program=(sys.executable, "-m", "steps.train")):
    arguments = [*program, *KNOBS, f"--data.root={raw}", f"--tracking.outputs={outputs}", *more]
    return subprocess.Popen(arguments, cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def weights(run):
    from segpipe.recording import logged_models

    folder = logged_models.folder(f"models:/{run.data.tags['segpipe.model_id']}")
    return safetensors.torch.load_file(folder / "weights.safetensors")


def newest():
    from segpipe.tracking import connection, runs

    connection.connect()
    client = runs.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(
        experiments, "tags.`segpipe.step` = 'train'", max_results=1, order_by=["attributes.start_time DESC"]
    )
    return run


@pytest.fixture(scope="module")
def alone(store, raw, tmp_path_factory):
    process = start(raw, tmp_path_factory.mktemp("outputs"))
    _, shown = process.communicate(timeout=240)
    assert process.returncode == 0, shown
    return weights(newest())


def check(run, expected):
    """The run has the weights that one process comes to, but for a hundredth of what training changed: roundings to
    single precision stay far below it, and an epoch more or less of twelve would be far above.
    """
    assert run.info.status == "FINISHED"
    config = settings.load(None, dict(knob.removeprefix("--").split("=") for knob in KNOBS))
    start, found = architectures.build(config.model, 1, 1, config.seed).state_dict(), weights(run)
    assert found.keys() == expected.keys()
    changed, apart = (
        sum((expected[name] - other[name]).square().sum() for name in expected).sqrt() for other in (start, found)
    )
    assert apart < changed / 100


def workers(process):
    """The training processes below a step, once each has written a checkpoint or waits for one that has."""
    return [p for p in psutil.Process(process.pid).children(recursive=True) if WORKERS in p.cmdline()]


@pytest.mark.slow
def test_a_lost_process_is_started_again_from_the_checkpoint(alone, raw, tmp_path):
    process = start(raw, tmp_path, "--train.processes=2", "--train.resume=never", "--train.max_restarts=1")
    wait_for(process, lambda: list((tmp_path / "checkpoints").glob("*/*.ckpt")))
    workers(process)[1].send_signal(signal.SIGKILL)
    _, shown = process.communicate(timeout=240)
    assert process.returncode == 0, shown
    run = newest()
    check(run, alone)
    assert run.data.params["cfg.hardware.processes"] == "2"
    history = __import__("mlflow").MlflowClient().get_metric_history(run.info.run_id, "val_dice")
    assert [point.step for point in history] == list(range(12))


def test_a_process_lost_too_often_ends_the_run_as_failed_within_a_minute(alone, raw, tmp_path):
    process = start(raw, tmp_path, "--train.processes=2", "--train.resume=never", "--train.max_restarts=0")
    wait_for(process, lambda: list((tmp_path / "checkpoints").glob("*/*.ckpt")))
    workers(process)[0].send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, shown = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert process.returncode == 1
    assert "exit code -9" in shown.splitlines()[-1]
    run = newest()
    assert run.info.status == "FAILED"
    assert "exit code -9" in run.data.tags["segpipe.reason"]


@pytest.mark.slow
def test_an_error_of_their_own_is_the_runs_reason(alone, raw, tmp_path):
    knobs = ("--train.processes=2", "--train.max_restarts=0", "--model.arch=deeplabv3", "--train.batch_size=2")
    process = start(raw, tmp_path, *knobs, "--model.norm=batch")
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in shown
    assert "deeplabv3 can't train on a batch of one" in newest().data.tags["segpipe.reason"]


@pytest.mark.slow
def test_an_interrupt_ends_all_processes(alone, raw, tmp_path):
    process = start(raw, tmp_path, "--train.processes=2", "--train.resume=never")
    wait_for(process, lambda: list((tmp_path / "checkpoints").glob("*/*.ckpt")))
    mine = workers(process)
    assert len(mine) == 2
    process.send_signal(signal.SIGTERM)
    _, shown = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, shown
    assert newest().info.status == "KILLED"
    assert psutil.wait_procs(mine, timeout=10)[1] == []


@pytest.mark.slow
def test_torchrun_starts_the_step_as_well(alone, raw, tmp_path):
    torchrun = (*TORCHRUN, "2", "-m", "steps.train")
    process = start(raw, tmp_path, "--train.resume=never", program=torchrun)
    _, shown = process.communicate(timeout=240)
    assert process.returncode == 0, shown
    check(newest(), alone)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_too_a_lost_process_ends_the_run_as_failed(alone, raw, tmp_path, rank):
    torchrun = (*TORCHRUN, "2", "-m", "steps.train")
    process = start(raw, tmp_path, "--train.resume=never", "--train.epochs=400", program=torchrun)
    wait_for(process, lambda: list((tmp_path / "checkpoints").glob("*/*.ckpt")))
    (lost,) = [p for p in psutil.Process(process.pid).children() if p.environ().get("RANK") == str(rank)]
    lost.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    run = newest()
    assert run.info.status == "FAILED"
    assert "died" in run.data.tags["segpipe.reason"]
