"""Epochs that fit into train.minutes."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import Watched, network, training_set, with_knobs

from segpipe.config.sections import TrainConfig
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.errors import InputError
from segpipe.recording.artifact_tree import PLANNED
from segpipe.recording.offline import FolderRecorder
from segpipe.runtime import process_group
from segpipe.training import budget, engine, trainer
from segpipe.training.checkpoints import Checkpoints

COSTS = budget.Costs(step=0.5, validation=2.0, checkpoint=1.0, records=4.0)


@pytest.fixture
def dataset(tmp_path):
    return training_set(tmp_path, **{"train.epochs": "50"})


def trained(dataset, folder, minutes=0.0, stop=engine.never, **train):
    config, _, path = dataset
    config = with_knobs(config, train={"minutes": minutes, **train})
    job = trainer.Job(config=config, dataset=path, key="key", checkpoints=folder / "checkpoints", record=folder)
    said, watched, accelerator = [], Watched(), process_group.start(config.train)
    trainer.run(job, Dataset.open(path), accelerator, FolderRecorder(folder), said.append, watched, stop)
    assert all(0 < done <= batches for _, _, done, batches in watched.batches)
    return said, watched.epochs


def weights(folder):
    return (folder / "final_model/weights/weights.safetensors").read_bytes()


class Epoch(list):
    samples, cases = None, range(3)


def test_what_is_left_of_the_share_is_filled_with_whole_epochs():
    config, epoch = TrainConfig(minutes=10, accumulate=2), Epoch(range(21))
    assert COSTS.epoch(config, 21) == 11 * 0.5 + 2 + 1 + 2
    left = budget.SHARE * 600 - 30
    assert budget.fill(config, 30, COSTS, epoch) == config.model_copy(update={"epochs": int(left / 10.5)})
    assert budget.fill(config, budget.SHARE * 600 - 10.5, COSTS, epoch).epochs == 1


def test_minutes_too_short_for_an_epoch_are_refused_with_what_one_needs():
    with pytest.raises(InputError, match=r"train.minutes=0.1: one epoch needs 0.\d+ here; give more minutes"):
        budget.fill(TrainConfig(minutes=0.1), 3, COSTS, Epoch(range(21)))


@pytest.mark.parametrize("minutes", [1, 10, 60, 600])
def test_windows_that_are_not_given_fill_the_budget_and_leave_a_tenth_to_all_else(tmp_path, minutes):
    _, manifest, folder = training_set(tmp_path, **{"preprocess.fit": "patch"})
    knobs = TrainConfig(minutes=minutes, batch_size=4)
    train = Batches(Dataset(folder, manifest).where(split="train"), knobs, torch.device("cpu"), training=True)
    found = budget.fill(knobs, 10, COSTS, train)
    room, batches = budget.SHARE * 60 * minutes - 10, -(-found.patches * len(train.cases) // 4)
    used = found.epochs * COSTS.epoch(found, batches)
    assert 1 <= found.epochs <= budget.MOST + 1
    assert used <= room
    assert used > room - max(COSTS.epoch(found, batches), 0.1 * room)
    if minutes >= 10:
        assert found.epochs * COSTS.epoch(found, 0) < 0.12 * room
        assert used > 0.9 * room
    assert budget.fill(knobs.model_copy(update={"patches": 3}), 10, COSTS, train).patches == 3


@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_measurement_takes_twenty_steps_and_leaves_no_trace(dataset, tmp_path, batch_size, monkeypatch):
    config = with_knobs(dataset[0], train={"batch_size": batch_size})
    made, steps = Dataset(dataset[2], dataset[1]), []
    train, val = (
        Batches(made.where(split=split), config.train, torch.device("cpu"), training=split == "train")
        for split in ("train", "val")
    )
    taken = budget.Learner.step
    monkeypatch.setattr(budget.Learner, "step", lambda *a: (steps.append(1), taken(*a)))
    model, written = network(config), []
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs = budget.measure(
        model, train, val, config, process_group.start(config.train), written.append, tmp_path / "checkpoints"
    )
    assert min(costs.step, costs.validation, costs.checkpoint) > 0
    assert len(steps) == 1 + budget.STEPS
    assert len(written) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_training_by_minutes_is_that_of_its_epochs_to_the_byte(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "fill", lambda config, *_: config.model_copy(update={"epochs": 3}))
    said, epochs = trained(dataset, tmp_path / "minutes", minutes=0.5)
    assert said == ["3 epochs fit into 0.5 minutes"]
    assert epochs == [(0, 3), (1, 3), (2, 3)]
    params = json.loads((tmp_path / "minutes/params.json").read_text())
    assert (params[PLANNED["epochs"]], params[PLANNED["patches"]]) == ("3", "0")
    assert trained(dataset, tmp_path / "epochs", epochs=3)[0] == []
    assert weights(tmp_path / "minutes") == weights(tmp_path / "epochs")


@pytest.mark.parametrize(("fit", "patches"), [("resize", 0), ("patch", 2)])
def test_an_interrupted_one_goes_on_with_what_it_was_planned_with(tmp_path, monkeypatch, fit, patches):
    dataset = training_set(tmp_path, **{"train.epochs": "50", "preprocess.fit": fit})
    monkeypatch.setattr(budget, "fill", lambda config, *_: config.model_copy(update={"epochs": 5, "patches": patches}))
    asked = []

    def seventh():
        asked.append(1)
        return len(asked) == 7

    with pytest.raises(KeyboardInterrupt):
        trained(dataset, tmp_path / "minutes", minutes=1, stop=seventh)
    assert Checkpoints(tmp_path / "minutes/checkpoints", "key", print).newest()["planned"] == {
        "epochs": 5,
        "patches": patches,
        "precision": "fp32",
    }
    monkeypatch.setattr(budget, "measure", None)
    said, epochs = trained(dataset, tmp_path / "minutes", minutes=1)
    assert said == []
    assert epochs[-1] == (4, 5)
    trained(dataset, tmp_path / "epochs", epochs=5, patches=patches)
    assert weights(tmp_path / "minutes") == weights(tmp_path / "epochs")


def test_a_reproduction_has_the_epochs_and_windows_instead_of_the_minutes(dataset):
    from segpipe.orchestration import reproduce

    config = with_knobs(dataset[0], train={"minutes": 10, "epochs": 50})
    params = {PLANNED["epochs"]: "7", PLANNED["patches"]: "12"}
    found = reproduce._as_planned(config, SimpleNamespace(data=SimpleNamespace(params=params, tags={}))).train
    assert (found.minutes, found.epochs, found.patches) == (0, 7, 12)
    earlier = SimpleNamespace(data=SimpleNamespace(params={}, tags={}))
    assert reproduce._as_planned(config, earlier) == config
