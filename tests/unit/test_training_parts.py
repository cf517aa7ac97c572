"""Augmentation, batches, models, losses and the training loop."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import write_folder

from segpipe import config as settings
from segpipe import engine, losses, models
from segpipe.config import AugmentConfig, LossConfig, ModelConfig, TrainConfig
from segpipe.data import augment, cache
from segpipe.data.batches import Batches
from segpipe.data.readers import open_reader
from segpipe.errors import InputError

TINY = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}


@pytest.fixture
def dataset(tmp_path):
    """A cached folder data set and its config, four epochs of a tiny network."""
    root = write_folder(tmp_path / "data", cases=12)
    knobs = {"data.format": "folder", "data.root": str(root), "train.epochs": "4", "train.batch_size": "4", **TINY}
    config = settings.load(None, knobs)
    manifest = cache.build(config, open_reader(config), tmp_path / "dataset", lambda *_: None)
    return config, manifest, tmp_path / "dataset"


def batches(dataset, split, **options):
    config, manifest, folder = dataset
    return Batches(manifest, folder, split, config.train.batch_size, torch.device("cpu"), **options)


def fit(dataset, **knobs):
    config, manifest, _ = dataset
    config = settings.build({**config.model_dump(), **{k: {**config.model_dump()[k], **v} for k, v in knobs.items()}})
    model = models.build(config.model, len(manifest.channels), len(manifest.classes), config.seed)
    reports = []
    run = engine.runtime(config.train)
    result = engine.fit(model, batches(dataset, "train"), batches(dataset, "val"), config, run, reports.append)
    return result, reports


# --- augmentation


def test_what_a_sample_gets_depends_on_seed_epoch_and_sample_alone():
    config = AugmentConfig()
    together = augment.draw(config, 1, 2, [5, 9])
    alone = augment.draw(config, 1, 2, [9])
    for name in together:
        assert together[name][1] == alone[name][0]
    assert any(augment.draw(config, 1, 3, [9])[name] != alone[name] for name in alone)


def unchanged(n):
    zero, one = torch.zeros(n), torch.ones(n)
    names = ("mirror_x", "mirror_y", "size", "contrast", "gamma")
    return {**dict.fromkeys(names, one), "angle": zero, "shift": zero}


@pytest.mark.parametrize("shape", [(8, 8), (12, 20)])
def test_parameters_that_change_nothing_change_nothing(shape):
    images, labels = torch.randn(2, 3, *shape), torch.randint(0, 3, (2, *shape), dtype=torch.uint8)
    same_images, same_labels = augment.apply(images, labels, unchanged(2))
    torch.testing.assert_close(same_images, images, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(same_labels, labels)


def test_a_flip_mirrors_image_and_mask_alike():
    images, labels = torch.randn(1, 1, 8, 10), torch.randint(0, 2, (1, 8, 10), dtype=torch.uint8)
    flipped, mirrored = augment.apply(images, labels, {**unchanged(1), "mirror_x": -torch.ones(1)})
    torch.testing.assert_close(flipped, images.flip(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(mirrored, labels.flip(-1))


def test_a_quarter_turn_of_a_rectangle_turns_its_middle():
    labels = torch.zeros(1, 20, 40, dtype=torch.uint8)
    labels[0, 9:11, 14:26] = 1
    quarter = {**unchanged(1), "angle": torch.tensor([torch.pi / 2])}
    _, turned = augment.apply(labels[:, None].float(), labels, quarter)
    assert turned[0, 4:16, 19:21].all()
    assert turned.sum() == labels.sum()


def test_the_extremes_stay_finite():
    config = AugmentConfig(affine=1, intensity=1, gamma=0.9, contrast=0.9, brightness=3, scale=0.9, rotation=180)
    for images in (torch.randn(8, 2, 16, 16) * 1e3, torch.zeros(8, 2, 16, 16)):
        changed, _ = augment.apply(images, torch.zeros(8, 16, 16), augment.draw(config, 0, 0, range(8)))
        assert torch.isfinite(changed).all()


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
    assert len(train.images) == 7
    assert [last - first for first, last in train.bounds()] == lengths


def test_empty_slices_are_drawn_anew_and_filled_ones_always_shown(dataset):
    train = batches(dataset, "train", empty_share=0.5)
    train.filled, train.empty, train.empties = np.arange(3), np.arange(3, 7), 2
    seen = [
        torch.cat([b.cases for b in train.shuffled(0, epoch, AugmentConfig(enabled=False))]).tolist()
        for epoch in range(6)
    ]
    assert all({0, 1, 2} < set(cases) and len(cases) == 5 for cases in seen)
    assert set().union(*seen) == set(range(7))


def test_a_split_without_foreground_is_refused(dataset):
    _, manifest, folder = dataset
    masks = np.load(folder / "val_masks.npy")
    np.save(folder / "val_masks.npy", np.zeros_like(masks))
    with pytest.raises(InputError, match="val split has no foreground"):
        Batches(manifest, folder, "val", 4, torch.device("cpu"))


# --- models


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (3, 2)])
def test_every_architecture_takes_any_size_and_learns_everywhere(arch, channels, classes):
    config = ModelConfig(arch=arch, encoder="tu-test_resnet")
    model = models.build(config, channels, classes, seed=0)
    logits = model(torch.randn(2, channels, 45, 70))
    assert logits.shape == (2, classes if classes == 1 else classes + 1, 45, 70)
    logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
def test_encoder_stages_that_are_not_used_are_dropped(encoder):
    counts = [
        models.parameter_count(models.build(ModelConfig(encoder=encoder, encoder_depth=d), 1, 1, 0)) for d in (3, 5)
    ]
    assert counts[0] < counts[1] / 5


def test_same_seed_same_weights_whatever_was_drawn_before():
    def weights(seed):
        torch.rand(3)
        return models.build(ModelConfig(encoder="tu-test_resnet"), 1, 1, seed).state_dict()

    one, same, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"encoder": "resnet81"}, "nearest: resnet18"),
        ({"encoder": "tu-no_such_net"}, "tu-no_such_net"),
    ],
)
def test_an_unknown_network_is_named(knobs, told):
    with pytest.raises(InputError, match=told) as caught:
        models.build(ModelConfig(**knobs), 1, 1, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("alias", "name"), [("unet++", "unetplusplus"), ("DeepLabV3+", "deeplabv3plus")])
def test_names_with_a_plus_mean_the_same(alias, name):
    assert ModelConfig(arch=alias).arch == name


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"model\.encoder_weights=none"):
        models.build(ModelConfig(encoder="resnet18", encoder_weights="imagenet"), 3, 1, 0)


def test_the_config_knows_every_architecture():
    assert set(get_args(settings.Architecture)) == set(models.ARCHITECTURES)


# --- losses


def test_labels_follow_the_rule_that_evaluation_uses():
    logits = torch.log(torch.tensor([[0.4, 0.35, 0.25], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]))[:, :, None, None]
    assert losses.predictions(logits).flatten().tolist() == [1, 0, 2]
    assert losses.predictions(torch.tensor([-0.1, 0.0, 0.1])[:, None, None, None]).flatten().tolist() == [0, 1, 1]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("scale", [0, 1, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_finite_and_has_a_gradient(classes, scale, dtype):
    logits = (torch.randn(2, classes, 8, 8) * scale).to(dtype).requires_grad_()
    for labels in (torch.zeros(2, 8, 8, dtype=torch.uint8), torch.ones(2, 8, 8, dtype=torch.uint8)):
        loss = losses.dice_bce(logits, labels, LossConfig())
        assert torch.isfinite(loss)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_a_perfect_answer_costs_nothing_and_the_opposite_most():
    labels = torch.randint(0, 2, (2, 8, 8), dtype=torch.uint8)
    sure = (labels[:, None].float() * 2 - 1) * 20
    assert losses.dice_bce(sure, labels, LossConfig()) < 1e-3
    assert losses.dice_bce(-sure, labels, LossConfig()) > 10


def test_the_dice_term_is_monais_batch_dice():
    from monai.losses import DiceLoss

    logits, labels = torch.randn(3, 1, 8, 8), torch.randint(0, 2, (3, 8, 8), dtype=torch.uint8)
    ours = losses.dice_bce(logits, labels, LossConfig(dice_weight=1, bce_weight=0))
    monai = DiceLoss(sigmoid=True, batch=True, smooth_nr=1, smooth_dr=1)(logits, labels[:, None].float())
    torch.testing.assert_close(ours, monai)


# --- the loop


def test_training_learns_and_keeps_the_best_epoch(dataset):
    result, reports = fit(dataset, train={"epochs": 12, "lr": 1e-2})
    assert [r.epoch for r in reports] == list(range(12))
    assert reports[-1].train_loss < 0.7 * reports[0].train_loss
    assert result.best.val_dice == max(r.val_dice for r in reports)
    assert result.best.val_dice > 0.5


def test_same_seed_same_weights_and_same_history(dataset):
    (one, _), (same, _) = fit(dataset), fit(dataset)
    assert all(torch.equal(one.weights[n], same.weights[n]) for n in one.weights)
    timed = {"epoch_time_seconds": 0.0}
    assert [r.metrics() | timed for r in one.history] == [r.metrics() | timed for r in same.history]


def test_half_precision_trains_to_nearly_the_same(dataset):
    (full, _), (half, _) = (fit(dataset, train={"precision": p, "epochs": 3}) for p in ("fp32", "bf16"))
    assert half.history[-1].train_loss == pytest.approx(full.history[-1].train_loss, rel=0.1)
    assert all(value.dtype != torch.bfloat16 for value in half.weights.values())


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_batch(dataset):
    config, _manifest, _ = dataset
    model = models.build(config.model, 1, 1, 0)
    train = batches(dataset, "train")
    train.images = np.full_like(train.images, np.nan)
    before = {n: v.clone() for n, v in model.named_parameters()}
    with pytest.raises(InputError, match=r"epoch 0, batch 0 \(cases case"):
        engine.fit(model, train, batches(dataset, "val"), config, engine.runtime(config.train), lambda _: None)
    assert all(torch.equal(before[n], v) for n, v in model.named_parameters())


def test_the_learning_rate_warms_up_and_ends_at_zero():
    config = TrainConfig(epochs=10, lr=1.0, warmup_epochs=2)
    rates = [engine.learning_rate(config, step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1
    assert rates[-1] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


@pytest.mark.parametrize(("knobs", "told"), [({"device": "cuda"}, "no GPU"), ({"precision": "fp16"}, "needs a GPU")])
def test_hardware_that_is_not_there_is_named(knobs, told):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=told):
        engine.runtime(TrainConfig(**knobs))


def test_a_network_that_normalises_single_values_refuses_batches_of_one():
    with pytest.raises(InputError, match=r"train\.batch_size: pspnet"):
        models.check_batches("pspnet", {4, 1})
