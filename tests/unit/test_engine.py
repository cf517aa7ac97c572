"""Batches, schedules and the training loop."""

import itertools

import numpy as np
import pytest
import torch
from conftest import EPOCH_TIMES, fit, network, training_set, with_knobs
from double_precision import AGREE

from segpipe.config.sections import AugmentConfig, TrainConfig
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.runtime import devices, process_group
from segpipe.training import engine, learner, schedule


@pytest.fixture
def dataset(tmp_path):
    return training_set(tmp_path)


def batches(dataset, split, **knobs):
    config, manifest, folder = dataset
    train = with_knobs(config, train=knobs).train
    selected = Dataset(folder, manifest).where(split=split)
    return Batches(selected, train, torch.device("cpu"), training=split == "train")


# --- batches


def test_an_epoch_shows_every_slice_once_and_epochs_differ(dataset):
    train, plain = batches(dataset, "train"), AugmentConfig(enabled=False)
    first, again, second = (
        torch.cat([batch.cases for batch in train.shuffled(0, epoch, plain)]) for epoch in (0, 0, 1)
    )
    assert sorted(first.tolist()) == list(range(len(train.cases)))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("size", "lengths"), [(3, [3, 4]), (2, [2, 2, 3]), (7, [7]), (1, [1] * 7)])
def test_no_batch_of_one_is_left_over(dataset, size, lengths):
    train = batches(dataset, "train")
    train.size = size
    assert len(train.samples) == 7
    assert train.sizes() == lengths


def test_empty_slices_are_drawn_anew_and_filled_ones_always_shown(dataset):
    train = batches(dataset, "train")
    drawn = train.samples
    drawn.filled, drawn.empty, drawn.empties = np.arange(3), np.arange(3, 7), 2
    seen = [
        torch.cat([b.cases for b in train.shuffled(0, epoch, AugmentConfig(enabled=False))]).tolist()
        for epoch in range(6)
    ]
    assert all({0, 1, 2} < set(cases) and len(cases) == 5 for cases in seen)
    assert set().union(*seen) == set(range(7))


def test_a_split_without_foreground_is_refused(dataset):
    _, _, folder = dataset
    masks = np.load(folder / "val_masks.npy")
    np.save(folder / "val_masks.npy", np.zeros_like(masks))
    with pytest.raises(InputError, match="val split has no foreground"):
        batches(dataset, "val")


def test_a_slice_shown_again_is_another_sample(dataset):
    once, thrice = batches(dataset, "train"), batches(dataset, "train", oversample=3)
    assert sum(thrice.sizes()) == 3 * sum(once.sizes())
    assert batches(dataset, "val", oversample=3).sizes() == batches(dataset, "val").sizes()
    shown = list(thrice.shuffled(0, 0, AugmentConfig(rotation_p=1)))
    images = torch.cat([batch.images for batch in shown])[torch.cat([batch.cases for batch in shown]) == 0]
    assert len(images) == 3
    assert not torch.equal(images[0], images[1])


def test_an_epoch_can_be_entered_in_the_middle(dataset):
    train, how = batches(dataset, "train"), AugmentConfig()
    whole, rest = list(train.shuffled(0, 1, how)), list(train.shuffled(0, 1, how, start=1))
    assert len(rest) == len(whole) - 1
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[1:], rest, strict=True))


def test_examples_show_the_most_foreground_of_each_case(dataset):
    val = batches(dataset, "val")
    batch, cases = val.examples(2)
    assert len(batch.images) == len(cases) == 2
    assert all(plane.any() for plane in batch.labels)


# --- schedules

RISING, FLAT = [0.1, 0.2, 0.3], [0.5] * 12


def rates(**knobs):
    config = TrainConfig(**{"epochs": 10, "lr": 1.0, "warmup_epochs": 2, **knobs})
    return [schedule.learning_rate(config, step, 5, FLAT[: step // 5]) for step in range(50)]


@pytest.mark.parametrize("name", ["cosine", "polynomial", "plateau", "constant"])
def test_the_learning_rate_warms_up_and_never_rises_again(name):
    found = rates(schedule=name, plateau_patience=2)
    assert found[0] == pytest.approx(0.1)
    assert max(found) == found[9] == 1
    assert all(a >= b for a, b in itertools.pairwise(found[9:]))


def test_where_each_schedule_ends():
    assert rates(schedule="cosine")[-1] < 0.01
    assert rates(schedule="polynomial", poly_power=1)[-1] == pytest.approx(1 / 40)
    assert rates(schedule="constant")[-1] == 1


def test_one_cycle_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50)
    for ours in rates(schedule="onecycle"):
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_a_plateau_lowers_the_rate_each_time_patience_is_lost():
    assert [schedule.reductions(FLAT[:n], 3) for n in (1, 3, 4, 6, 7, 10)] == [0, 0, 1, 1, 2, 3]
    assert schedule.reductions(RISING, 1) == 0
    assert rates(schedule="plateau", plateau_patience=3, warmup_epochs=0)[-1] == 0.5**2


def test_waiting_counts_epochs_without_enough_of_a_gain():
    assert schedule.waited([0.1, 0.5, 0.505, 0.509], 0.01) == 2
    assert schedule.waited([0.1, 0.5, 0.505, 0.509], 0.0) == 0
    assert schedule.waited([], 0.0) == 0


# --- the loop


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def untimed(history):
    return [{k: v for k, v in report.metrics().items() if k not in EPOCH_TIMES} for report in history]


@pytest.mark.parametrize(
    "knobs",
    [
        {"lr": 1e-2},
        {"lr": 5e-2, "optimizer": "sgd", "schedule": "polynomial"},
        {"lr": 1e-2, "ema_decay": 0.9, "clip_norm": 1.0},
        {"lr": 1e-2, "accumulate": 2, "batch_size": 2},
    ],
    ids=["adamw", "sgd", "averaged", "accumulated"],
)
def test_training_learns_and_keeps_the_best_epoch(dataset, knobs):
    result = fit(dataset, train={"epochs": 12, **knobs})
    assert [r.epoch for r in result.history] == list(range(12))
    assert result.history[-1].train_loss < 0.75 * result.history[0].train_loss
    assert result.best.val_dice == max(r.val_dice for r in result.history)
    assert result.best.val_dice > 0.5
    assert np.nanmean(result.val_cases) == pytest.approx(result.best.val_dice)
    assert [r.is_best for r in result.history].count(True) >= 1


def test_same_seed_same_weights_and_same_history(dataset):
    one, again = fit(dataset), fit(dataset)
    assert same(one.weights, again.weights)
    assert untimed(one.history) == untimed(again.history)


def test_dropout_does_not_depend_on_what_was_drawn_before(dataset):
    knobs = {"model": {"arch": "fpn"}, "train": {"epochs": 1}}
    one = fit(dataset, **knobs)
    torch.rand(7)
    assert same(one.weights, fit(dataset, **knobs).weights)


def test_gradients_of_several_batches_make_the_step_of_their_union(dataset):
    knobs = {"augment": {"enabled": False}, "model": {"norm": "group"}, "loss": {"name": "bce"}}
    whole, parts = (
        fit(dataset, double=True, train={"epochs": 1, "optimizer": "sgd", **batches}, **knobs)
        for batches in ({"batch_size": 4}, {"batch_size": 2, "accumulate": 2})
    )
    for name, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], value, **AGREE)


def test_the_moving_average_is_what_is_validated_and_kept(dataset):
    plain, averaged = (fit(dataset, train={"epochs": 2, "ema_decay": d}) for d in (0.0, 0.99))
    assert untimed(plain.history)[0]["train_loss"] == untimed(averaged.history)[0]["train_loss"]
    assert untimed(plain.history)[0]["val_loss"] != untimed(averaged.history)[0]["val_loss"]
    assert not same(plain.weights, averaged.weights)


def test_the_moving_average_follows_its_formula():
    update = learner.averaging(0.9)
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    update(averaged, current, torch.tensor(5))
    torch.testing.assert_close(averaged[0], torch.full((3,), 1 - 6 / 15))
    update(averaged, current, torch.tensor(10_000))
    torch.testing.assert_close(averaged[0], torch.full((3,), 1 - 0.9 * 6 / 15))


def test_clipping_bounds_a_step(dataset):
    knobs = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "warmup_epochs": 0.0}
    before = network(dataset[0]).state_dict()
    result = fit(dataset, train={**knobs, "batch_size": 64, "clip_norm": 1e-3}, augment={"enabled": False})
    moved = [result.weights[n] - before[n] for n in before if "running" not in n and before[n].is_floating_point()]
    assert torch.cat([m.flatten() for m in moved]).norm() == pytest.approx(1e-3, rel=1e-2)


def test_patience_ends_a_training_that_does_not_get_better(dataset):
    result = fit(dataset, train={"epochs": 20, "lr": 1e-9, "patience": 3, "min_delta": 0.5})
    assert len(result.history) == 4


def test_half_precision_trains_to_nearly_the_same(dataset):
    full, half = (fit(dataset, train={"precision": p, "epochs": 3}) for p in ("fp32", "bf16"))
    assert half.history[-1].train_loss == pytest.approx(full.history[-1].train_loss, rel=0.1)
    assert all(value.dtype != torch.bfloat16 for value in half.weights.values())


def test_ignored_pixels_count_neither_in_loss_nor_in_dice(dataset):
    _, _, folder = dataset
    before = fit(dataset, train={"epochs": 1}, augment={"enabled": False})
    for split in ("train", "val"):
        masks = np.load(folder / f"{split}_masks.npy")
        masks[:, :4] = IGNORE
        np.save(folder / f"{split}_masks.npy", masks)
    after = fit(dataset, train={"epochs": 1}, augment={"enabled": False})
    assert np.isfinite(after.history[0].train_loss)
    assert after.history[0].train_loss != before.history[0].train_loss


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_batch(dataset):
    config, _, _ = dataset
    model, train = network(config), batches(dataset, "train")
    train.samples.images = np.full_like(train.samples.images, np.nan)
    before = {n: v.clone() for n, v in model.named_parameters()}
    with pytest.raises(InputError, match=r"epoch 1, batch 1 \(cases case"):
        engine.fit(model, train, batches(dataset, "val"), config, process_group.start(config.train), lambda *_: None)
    assert all(torch.equal(before[n], v) for n, v in model.named_parameters())


@pytest.mark.parametrize(("knobs", "told"), [({"device": "cuda"}, "no GPU"), ({"precision": "fp16"}, "needs a GPU")])
def test_hardware_that_is_not_there_is_named(knobs, told):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=told):
        devices.precision(TrainConfig(**knobs))
