"""A training that was killed and started again is the training that never was."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import EPOCH_TIMES, TIMES, TINY, network, training_set, wait_for, with_knobs, write_folder

from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.errors import InputError
from segpipe.files.project import PROJECT
from segpipe.runtime import process_group
from segpipe.training import engine
from segpipe.training.checkpoints import Checkpoints

EVERYTHING = (
    *TINY,
    "--train.epochs=20",
    "--train.ema_decay=0.9",
    "--train.accumulate=2",
    "--train.batch_size=2",
    "--train.schedule=plateau",
    "--train.plateau_patience=2",
    "--model.arch=fpn",
    "--augment.noise_p=0.5",
    "--augment.elastic_p=0.5",
)


class Killed(Exception):
    pass


@pytest.fixture
def dataset(tmp_path):
    return training_set(tmp_path)


def batches(dataset, split, config):
    selected = Dataset(dataset[2], dataset[1]).where(split=split)
    return Batches(selected, config.train, torch.device("cpu"), training=split == "train")


def trained(dataset, folder, key="key", stop=engine.never, on_epoch=lambda *_: None, warned=None, **train):
    """Fit with checkpoints in `folder`."""
    knobs = {"epochs": 6, "ema_decay": 0.9, "accumulate": 2, "batch_size": 2, **train}
    config = with_knobs(dataset[0], train=knobs, model={"arch": "fpn"})
    splits = (batches(dataset, split, config) for split in ("train", "val"))
    checkpoints = Checkpoints(folder, key, (warned if warned is not None else []).append)
    accelerator = process_group.start(config.train)
    return engine.fit(network(config), *splits, config, accelerator, on_epoch, checkpoints, checkpoints.newest(), stop)


def same(one, other):
    assert one.weights.keys() == other.weights.keys()
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    shown = [[{k: v for k, v in r.metrics().items() if k not in EPOCH_TIMES} for r in x.history] for x in (one, other)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("fit", "optimizer", "schedule"), [("resize", "adamw", "plateau"), ("patch", "sgd", "onecycle")]
)
def test_a_training_that_ended_at_any_epoch_goes_on_to_the_same_end(tmp_path, fit, optimizer, schedule):
    dataset = training_set(tmp_path, **{"preprocess.fit": fit})
    knobs = {"optimizer": optimizer, "schedule": schedule, "plateau_patience": 1, "lr": 1e-2}
    whole = trained(dataset, tmp_path / "whole", **knobs)
    for last in (0, 4):

        def fail(history, _network, last=last):
            if history[-1].epoch == last:
                raise Killed

        with pytest.raises(Killed):
            trained(dataset, tmp_path / str(last), on_epoch=fail, **knobs)
        same(trained(dataset, tmp_path / str(last), **knobs), whole)


@pytest.mark.parametrize("fit", ["resize", "patch"])
def test_a_training_stopped_between_two_steps_goes_on_from_there(tmp_path, fit):
    dataset = training_set(tmp_path, **{"preprocess.fit": fit})
    whole = trained(dataset, tmp_path / "whole")
    steps = 0

    def fourth():
        nonlocal steps
        steps += 1
        return steps == 4

    with pytest.raises(KeyboardInterrupt):
        trained(dataset, tmp_path / "stopped", stop=fourth)
    (newest, *_) = Checkpoints(tmp_path / "stopped", "key", print).paths()
    assert "batch_00000000" not in newest.name
    same(trained(dataset, tmp_path / "stopped"), whole)


def test_a_training_of_one_batch_an_epoch_stops_between_epochs(dataset, tmp_path):
    asked = []

    def third():
        asked.append(1)
        return len(asked) == 3

    knobs = {"batch_size": 64, "accumulate": 1}
    with pytest.raises(KeyboardInterrupt):
        trained(dataset, tmp_path / "stopped", stop=third, **knobs)
    assert Checkpoints(tmp_path / "stopped", "key", print).paths()[0].name.startswith("epoch_000002")
    same(trained(dataset, tmp_path / "stopped", **knobs), trained(dataset, tmp_path / "whole", **knobs))


def interrupted(dataset, folder):
    """Two checkpoints, after two and three epochs."""

    def fail(history, _network):
        if history[-1].epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        trained(dataset, folder, on_epoch=fail)
    return Checkpoints(folder, "key", print).paths()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or cut short"),
        (lambda path: path.write_bytes(path.read_bytes()[:10]), "not a checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5] + b"xxxxx"), "damaged or cut short"),
        (lambda path: path.write_bytes(b""), "not a checkpoint"),
    ],
    ids=["cut", "stump", "flipped", "empty"],
)
def test_a_spoilt_checkpoint_is_refused_and_the_one_before_used(dataset, tmp_path, spoil, told):
    whole = trained(dataset, tmp_path / "whole")
    newest, _older = interrupted(dataset, tmp_path / "spoilt")
    spoil(newest)
    warned, epochs = [], []
    result = trained(dataset, tmp_path / "spoilt", warned=warned, on_epoch=lambda h, _: epochs.append(h[-1].epoch))
    assert len(warned) == 1
    assert told in warned[0]
    assert newest.name in warned[0]
    assert epochs == [1, 2, 3, 4, 5]
    same(result, whole)


def test_a_checkpoint_of_another_config_is_refused_with_the_reason(dataset, tmp_path):
    interrupted(dataset, tmp_path / "one")
    warned, epochs = [], []
    trained(dataset, tmp_path / "one", key="other", warned=warned, on_epoch=lambda h, _: epochs.append(h[-1].epoch))
    assert epochs[0] == 0
    assert len(warned) == 2
    assert "of another config" in warned[0]


def test_a_pickle_with_code_is_not_run(dataset, tmp_path):
    import hashlib
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch '{tmp_path / 'pwned'}'",))

    content = pickle.dumps(Evil())
    folder = tmp_path / "evil"
    folder.mkdir()
    head = f"segpipe checkpoint 1 {hashlib.sha256(content).hexdigest()}\n".encode()
    (folder / "epoch_000001_batch_00000000.ckpt").write_bytes(head + content)
    warned = []
    trained(dataset, folder, warned=warned)
    assert "unreadable" in warned[0]
    assert not (tmp_path / "pwned").exists()


def test_two_whole_checkpoints_are_kept_and_no_partial_one(dataset, tmp_path):
    trained(dataset, tmp_path / "kept")
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == ["epoch_000005_batch_00000000.ckpt", "epoch_000006_batch_00000000.ckpt"]


# --- the step, killed by real signals


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "raw", cases=12)


def start(raw, outputs, *more):
    knobs = ["--data.format=folder", f"--data.root={raw}", f"--tracking.outputs={outputs}", *EVERYTHING, *more]
    program = [sys.executable, "-m", "steps.train", *knobs]
    return subprocess.Popen(program, cwd=PROJECT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process):
    _, shown = process.communicate(timeout=240)
    return process.returncode, shown


def checkpoints(outputs):
    return list((Path(outputs) / "checkpoints").glob("*/*.ckpt"))


def result(client, run):
    """Weights, and every metric's points but their times."""
    from segpipe.recording import logged_models

    folder = logged_models.folder(f"models:/{run.data.tags['segpipe.model_id']}")
    points = {
        name: [(p.step, None if name in TIMES else p.value) for p in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return safetensors.torch.load_file(folder / "weights.safetensors"), points


@pytest.fixture(scope="module")
def undisturbed(store, raw, tmp_path_factory):
    from segpipe.tracking import connection, runs

    code, shown = finish(start(raw, tmp_path_factory.mktemp("outputs"), "--train.resume=never"))
    assert code == 0, shown
    connection.connect()
    return result(runs.MlflowClient(), runs.finished("train")[0])


def check_equal(found, expected):
    assert found[0].keys() == expected[0].keys()
    assert all(torch.equal(found[0][name], expected[0][name]) for name in found[0])
    assert found[1] == expected[1]


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(8))
def test_killed_at_an_arbitrary_moment_and_started_again_it_is_the_same(undisturbed, raw, tmp_path, moment):
    from segpipe.tracking import runs

    client, rng = runs.MlflowClient(), random.Random(moment)
    before = {run.info.run_id for run in runs.finished("train")}
    first = start(raw, tmp_path)
    wait_for(first, lambda: checkpoints(tmp_path))
    time.sleep(rng.uniform(0, 2))
    name = client.get_run(checkpoints(tmp_path)[0].parent.name).info.run_name
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, shown = finish(start(raw, tmp_path))
    assert code == 0, shown
    assert "continues run" in shown
    (run,) = [run for run in runs.finished("train") if run.info.run_id not in before]
    assert run.data.tags["segpipe.resumed"] == "1"
    assert run.info.run_name == name
    check_equal(result(client, run), undisturbed)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_the_run_killed(undisturbed, raw, tmp_path, number):
    from segpipe.tracking import runs

    client = runs.MlflowClient()
    first = start(raw, tmp_path)
    wait_for(first, lambda: checkpoints(tmp_path))
    run_id = checkpoints(tmp_path)[0].parent.name
    first.send_signal(number)
    code, shown = finish(first)
    assert code == 128 + number, shown
    assert "Traceback" not in shown
    assert client.get_run(run_id).info.status == "KILLED"
    code, shown = finish(start(raw, tmp_path, f"--train.resume={run_id}"))
    assert code == 0, shown
    check_equal(result(client, client.get_run(run_id)), undisturbed)


def stop_while_it_writes_nothing(process, database):
    """Stop a process that does not hold the lock of an SQLite database, which nobody else could write to then."""
    while process.poll() is None:
        process.send_signal(signal.SIGSTOP)
        with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.02)


@pytest.mark.slow
def test_one_that_is_at_work_is_not_continued(store, raw, tmp_path):
    from segpipe.tracking import connection, runs

    first = start(raw, tmp_path, "--seed=7")
    wait_for(first, lambda: checkpoints(tmp_path))
    run_id = checkpoints(tmp_path)[0].parent.name
    try:
        stop_while_it_writes_nothing(first, store / "mlflow.db")
        code, shown = finish(start(raw, tmp_path, "--seed=7", f"--train.resume={run_id}"))
        assert code == 1
        assert "at work right now" in shown
    finally:
        first.kill()
        first.communicate()
    connection.connect()
    assert runs.MlflowClient().get_run(run_id).info.status == "RUNNING"


def test_what_cannot_be_continued_is_told(undisturbed, raw, tmp_path):
    from segpipe.tracking import runs

    done = runs.finished("train")[0].info.run_id
    for asked, told in ((done, "no interrupted run"), ("0" * 32, "0000")):
        code, shown = finish(start(raw, tmp_path, f"--train.resume={asked}"))
        assert code == 1
        assert told in shown
        assert "Traceback" not in shown


@pytest.mark.slow
def test_without_mlflow_it_goes_on_as_well(raw, tmp_path, undisturbed):
    first = start(raw, tmp_path, "--no-mlflow")
    wait_for(first, lambda: list(tmp_path.glob("*/resume/*.ckpt")))
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, shown = finish(start(raw, tmp_path, "--no-mlflow"))
    assert code == 0, shown
    (root,) = [path.parent for path in tmp_path.glob("*/run.json")]
    weights = safetensors.torch.load_file(root / "final_model" / "weights" / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in undisturbed[0].items())
    assert len((root / "metrics.jsonl").read_text().splitlines()) == 20


def test_nothing_but_its_own_error_ends_a_fit(dataset, tmp_path):
    config, _, _ = dataset
    train = batches(dataset, "train", config)
    train.samples.images = np.full_like(train.samples.images, np.nan)
    with pytest.raises(InputError):
        engine.fit(
            network(config),
            train,
            batches(dataset, "val", config),
            config,
            process_group.start(config.train),
            lambda *_: None,
            Checkpoints(tmp_path / "none", "key", print),
        )
    assert not (tmp_path / "none").exists()
