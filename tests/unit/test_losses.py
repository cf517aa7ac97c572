"""Losses: against other implementations, at the extremes, without what is ignored, and over several processes."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest
import torch
from double_precision import AGREE
from torch import distributed as torch_distributed
from torch import nn
from torch.nn import functional

from segpipe.config.sections import LossConfig, LossName
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.files.project import PROJECT
from segpipe.models import losses

NAMES = list(losses.LOSSES)
every_loss = pytest.mark.parametrize("name", NAMES)
one_class_or_two = pytest.mark.parametrize("channels", [1, 3])


def draw(channels, samples=3, side=12, ignored=0.0, seed=0):
    """Random logits in double precision, and labels of which a share is ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, channels, side, side, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, max(channels, 2), (samples, side, side), generator=generator)
    left_out = torch.rand(labels.shape, generator=generator) < ignored
    return logits, labels.masked_fill(left_out, IGNORE).to(torch.uint8)


def single(logits, labels):
    """For implementations that know no double precision."""
    return logits.float(), labels


def sure(labels, channels, logit=20.0):
    """Logits N,C,H,W that answer N,H,W labels with certainty."""
    if channels == 1:
        return (labels.unsqueeze(1).double() * 2 - 1) * logit
    return (functional.one_hot(labels.long(), channels).movedim(-1, 1).double() * 2 - 1) * logit


def scored(logits, labels, config):
    """The loss and its gradient with respect to the logits."""
    logits = logits.detach().requires_grad_()
    value = losses.loss(logits, labels, config)
    return value.detach(), torch.autograd.grad(value, logits)[0]


# --- what every loss has in common


def test_the_config_knows_every_loss():
    assert tuple(NAMES) == get_args(LossName)


def test_labels_follow_the_rule_that_evaluation_uses():
    logits = torch.log(torch.tensor([[0.4, 0.35, 0.25], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]))[:, :, None, None]
    assert losses.predictions(logits).flatten().tolist() == [1, 0, 2]
    assert losses.predictions(torch.tensor([-0.1, 0.0, 0.1])[:, None, None, None]).flatten().tolist() == [0, 1, 1]


@every_loss
@one_class_or_two
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_loss_is_a_finite_float_with_a_finite_gradient(name, channels, dtype):
    logits, labels = draw(channels, ignored=0.1)
    empty, full = torch.zeros_like(labels), torch.ones_like(labels)
    for scale in (0, 1, 20, 100):
        signs = logits.sign() if scale > 1 else logits
        for wanted in (labels, empty, full):
            value, gradient = scored((signs * scale).to(dtype), wanted, LossConfig(name=name))
            assert value.dtype == torch.float32
            assert value.shape == ()
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()


@every_loss
@one_class_or_two
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_are_computed_with_in_full(name, channels, dtype):
    logits, labels = draw(channels, ignored=0.1)
    config = LossConfig(name=name)
    half, full = (losses.loss(given, labels, config) for given in (logits.to(dtype), logits.to(dtype).float()))
    torch.testing.assert_close(half, full)


@one_class_or_two
@pytest.mark.parametrize(
    "knobs",
    [
        *({"name": "focal", "focal_gamma": gamma} for gamma in (0, 0.01, 0.5, 10)),
        *({"name": "focal_tversky", "tversky_gamma": gamma} for gamma in (1, 3)),
        *({"name": "tversky", "tversky_alpha": alpha, "tversky_beta": 1 - alpha} for alpha in (0, 1)),
        *({"name": "cldice", "cldice_share": share, "cldice_iterations": 50} for share in (0, 1)),
    ],
)
def test_knobs_at_their_bounds_leave_it_finite(channels, knobs):
    _, labels = draw(channels)
    for logit in (-100, -20, 0, 20, 100):
        value, gradient = scored(sure(labels, channels, logit), labels, LossConfig(**knobs))
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@every_loss
@one_class_or_two
def test_the_right_answer_costs_nothing_and_the_opposite_much(name, channels):
    _, labels = draw(channels)
    config = LossConfig(name=name)
    opposite = (labels + 1) % max(channels, 2)
    for logit in (20, 100):
        assert losses.loss(sure(labels, channels, logit), labels, config).abs() < 1e-4
        assert losses.loss(sure(opposite, channels, logit), labels, config) > 0.9


@every_loss
@one_class_or_two
@pytest.mark.parametrize("value", [0, 1])
def test_masks_that_are_empty_or_full_are_learnt_too(name, channels, value):
    labels = torch.full((3, 12, 12), value, dtype=torch.uint8)
    config = LossConfig(name=name)
    assert losses.loss(sure(labels, channels), labels, config).abs() < 1e-4
    assert losses.loss(sure(1 - labels, channels), labels, config) > 0.2


@every_loss
@one_class_or_two
def test_a_step_down_the_gradient_reduces_the_loss(name, channels):
    logits, labels = draw(channels, ignored=0.1)
    before, gradient = scored(logits, labels, LossConfig(name=name))
    assert losses.loss(logits - 0.1 * gradient / gradient.norm(), labels, LossConfig(name=name)) < before


@every_loss
@one_class_or_two
def test_the_order_of_samples_does_not_matter(name, channels):
    logits, labels = draw(channels, ignored=0.1)
    value, gradient = scored(logits, labels, LossConfig(name=name))
    other, moved = scored(logits.flip(0), labels.flip(0), LossConfig(name=name))
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(moved.flip(0), gradient)


@every_loss
@one_class_or_two
def test_nothing_is_fetched_from_the_device(name, channels):
    logits, labels = (tensor.to("meta") for tensor in draw(channels))
    config = LossConfig(name=name, class_weights=(2.0,) * max(channels - 1, 1))
    value, gradient = scored(logits, labels, config)
    assert value.is_meta
    assert gradient.is_meta


# --- what is ignored


@every_loss
@one_class_or_two
def test_an_ignored_pixel_has_no_influence_and_no_gradient(name, channels):
    logits, labels = draw(channels, ignored=0.3)
    config = LossConfig(name=name, class_weights=(0.5, 2.0)[: max(channels - 1, 1)])
    ignored = (labels == IGNORE).unsqueeze(1)
    value, gradient = scored(logits, labels, config)
    assert (gradient.masked_select(ignored) == 0).all()
    assert (gradient.masked_select(~ignored) != 0).any()
    for other in (-100.0, 0.0, 3.0, 100.0):
        changed, same = scored(logits.masked_fill(ignored, other), labels, config)
        assert torch.equal(changed, value)
        assert torch.equal(same, gradient)


@every_loss
@one_class_or_two
def test_an_ignored_sample_is_as_good_as_absent(name, channels):
    logits, labels = draw(channels)
    labels[1] = IGNORE
    value, gradient = scored(logits, labels, LossConfig(name=name))
    alone, expected = scored(logits[[0, 2]], labels[[0, 2]], LossConfig(name=name))
    torch.testing.assert_close(value, alone)
    torch.testing.assert_close(gradient[[0, 2]], expected)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"cldice"}))
@one_class_or_two
def test_an_ignored_margin_is_as_good_as_cut_off(name, channels):
    logits, labels = draw(channels)
    labels[:, :, 7:] = IGNORE
    value, gradient = scored(logits, labels, LossConfig(name=name))
    alone, expected = scored(logits[..., :7], labels[..., :7], LossConfig(name=name))
    torch.testing.assert_close(value, alone)
    torch.testing.assert_close(gradient[..., :7], expected)


@every_loss
@one_class_or_two
def test_a_batch_of_ignored_pixels_costs_nothing(name, channels):
    logits, labels = draw(channels)
    for config in (LossConfig(name=name), LossConfig(name=name, class_weights=(3.0,) * max(channels - 1, 1))):
        value, gradient = scored(logits, torch.full_like(labels, IGNORE), config)
        assert value == 0
        assert (gradient == 0).all()


# --- other implementations


def one_hot(labels, channels):
    """Labels N,H,W as foreground masks N,K,H,W."""
    if channels == 1:
        return labels.unsqueeze(1).double()
    return functional.one_hot(labels.long(), channels).movedim(-1, 1)[:, 1:].double()


def foreground(logits):
    """Probabilities N,K,H,W."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)[:, 1:]


def agrees(ours, theirs):
    """Up to the roundings of the precision that both were computed in."""
    torch.testing.assert_close(ours, theirs)


@one_class_or_two
def test_dice_jaccard_and_tversky_are_monais_over_the_batch(channels):
    from monai.losses import DiceLoss, TverskyLoss

    logits, labels = draw(channels)
    found, wanted = foreground(logits), one_hot(labels, channels)
    whole = {"batch": True, "smooth_nr": 1, "smooth_dr": 1}
    halves = {"batch": True, "smooth_nr": 0.5, "smooth_dr": 0.5, "alpha": 0.2, "beta": 0.9}
    agrees(losses.loss(logits, labels, LossConfig(name="dice")), DiceLoss(**whole)(found, wanted))
    agrees(losses.loss(logits, labels, LossConfig(name="jaccard")), DiceLoss(jaccard=True, **whole)(found, wanted))
    config = LossConfig(name="tversky", tversky_alpha=0.2, tversky_beta=0.9)
    agrees(losses.loss(logits, labels, config), TverskyLoss(**halves)(found, wanted))
    config = config.model_copy(update={"name": "focal_tversky", "tversky_gamma": 1.5})
    each = TverskyLoss(**halves, reduction="none")(found, wanted)
    agrees(losses.loss(logits, labels, config), (each ** (1 / 1.5)).mean())


def test_jaccard_is_that_of_segmentation_models():
    from segmentation_models_pytorch.losses import JaccardLoss

    config = LossConfig(name="jaccard")
    logits, labels = draw(1)
    agrees(losses.loss(logits, labels, config), JaccardLoss("binary", smooth=0.5)(logits, labels))
    logits, labels = draw(3)
    theirs = JaccardLoss("multiclass", classes=[1, 2], smooth=0.5)(logits, labels.long())
    agrees(losses.loss(logits, labels, config), theirs)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_monais(gamma):
    from monai.losses import FocalLoss

    config = LossConfig(name="focal", focal_gamma=gamma)
    logits, labels = single(*draw(1))
    agrees(losses.loss(logits, labels, config), FocalLoss(gamma=gamma)(logits, labels.unsqueeze(1).float()))
    logits, labels = single(*draw(3))
    of_pixels_and_classes = FocalLoss(gamma=gamma, use_softmax=True, to_onehot_y=True)(logits, labels.unsqueeze(1))
    agrees(losses.loss(logits, labels, config), 3 * of_pixels_and_classes)


def test_focal_without_focus_is_cross_entropy():
    logits, labels = draw(3, ignored=0.2)
    ours = losses.loss(logits, labels, LossConfig(name="focal", focal_gamma=0, class_weights=(3, 5)))
    agrees(ours, losses.loss(logits, labels, LossConfig(name="bce", class_weights=(3, 5))))


def test_cross_entropy_is_that_of_torch():
    weights = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)
    logits, labels = draw(3, ignored=0.2)
    theirs = functional.cross_entropy(logits, labels.long(), ignore_index=IGNORE)
    agrees(losses.loss(logits, labels, LossConfig(name="bce")), theirs)
    theirs = functional.cross_entropy(logits, labels.long(), weights, ignore_index=IGNORE)
    agrees(losses.loss(logits, labels, LossConfig(name="ce", class_weights=(3.0, 0.2))), theirs)
    logits, labels = draw(1)
    theirs = functional.binary_cross_entropy_with_logits(logits[:, 0], labels.double())
    agrees(losses.loss(logits, labels, LossConfig(name="bce")), theirs)


@pytest.mark.parametrize(("channels", "mode"), [(1, "binary"), (3, "multiclass")])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_lovasz_is_that_of_segmentation_models_image_by_image(channels, mode, ignored):
    from segmentation_models_pytorch.losses import LovaszLoss

    logits, labels = single(*draw(channels, ignored=ignored))
    labels[0, labels[0] != IGNORE] = 0
    theirs = LovaszLoss(mode, per_image=True, ignore_index=IGNORE)(logits, labels.long())
    agrees(losses.loss(logits, labels, LossConfig(name="lovasz")), theirs)


@one_class_or_two
def test_mcc_is_that_of_segmentation_models_with_two_more_pixels(channels):
    from segmentation_models_pytorch.losses import MCCLoss

    logits, labels = draw(channels)
    right = torch.tensor([0.0, 1.0], dtype=torch.float64)
    theirs = [
        MCCLoss(eps=0)(torch.cat([found.flatten(), right])[None], torch.cat([wanted.flatten(), right])[None])
        for found, wanted in zip(foreground(logits).unbind(1), one_hot(labels, channels).unbind(1), strict=True)
    ]
    agrees(losses.loss(logits, labels, LossConfig(name="mcc")), torch.stack(theirs).mean())


@pytest.mark.parametrize("iterations", [1, 5])
def test_cldice_is_monais_and_dice(iterations):
    from monai.losses import DiceLoss, SoftclDiceLoss

    logits, _ = draw(3, samples=1, side=40)
    labels = functional.max_pool2d(draw(3, samples=1, side=8)[1].float(), 1).repeat_interleave(5, 1)
    labels = labels.repeat_interleave(5, 2).to(torch.uint8)
    found, wanted = foreground(logits), one_hot(labels, 3)
    config = LossConfig(name="cldice", cldice_iterations=iterations, cldice_share=0.3)
    line = SoftclDiceLoss(iter_=iterations, smooth=1e-12)
    lines = torch.stack([line(found[:, k : k + 1], wanted[:, k : k + 1]) for k in range(2)]).mean()
    dice = DiceLoss(batch=True, smooth_nr=1, smooth_dr=1)(found, wanted)
    agrees(losses.loss(logits, labels, config), 0.7 * dice + 0.3 * lines)


def test_dice_bce_is_the_weighted_sum():
    logits, labels = draw(3, ignored=0.2)
    dice, bce, both = (
        losses.loss(logits, labels, LossConfig(name=name, dice_weight=0.3, bce_weight=2))
        for name in ("dice", "bce", "dice_bce")
    )
    agrees(both, 0.3 * dice + 2 * bce)


# --- class weights


@every_loss
@one_class_or_two
def test_weights_of_one_change_nothing(name, channels):
    logits, labels = draw(channels, ignored=0.1)
    weighted = LossConfig(name=name, class_weights=(1.0,) * max(channels - 1, 1))
    agrees(losses.loss(logits, labels, weighted), losses.loss(logits, labels, LossConfig(name=name)))


@pytest.mark.parametrize("name", ["dice", "jaccard", "tversky", "focal_tversky", "mcc", "cldice"])
def test_a_region_loss_is_the_weighted_mean_over_foreground_classes(name):
    logits, labels = draw(3)
    first, second, mixed = (
        losses.loss(logits, labels, LossConfig(name=name, class_weights=weights))
        for weights in ((1, 1e-9), (1e-9, 1), (3, 1))
    )
    agrees(mixed, (3 * first + second) / 4)


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_pixels_of_one_class_are_weighted_against_the_background(name):
    logits, labels = draw(1, ignored=0.2)
    background, lesion = (
        losses.loss(logits, labels.masked_fill(labels == other, IGNORE), LossConfig(name=name)) for other in (1, 0)
    )
    outside, inside = (labels == 0).sum(), 4 * (labels == 1).sum()
    expected = (outside * background + inside * lesion) / (outside + inside)
    agrees(losses.loss(logits, labels, LossConfig(name=name, class_weights=(4,))), expected)


def test_a_classs_weight_counts_in_lovasz():
    logits, labels = draw(3)
    plain, weighted = (
        losses.loss(logits, labels, LossConfig(name="lovasz", class_weights=weights)) for weights in ((), (9, 1))
    )
    assert plain != weighted


@pytest.mark.parametrize(
    ("knobs", "classes", "told"),
    [
        ({"class_weights": (1, 2)}, 1, r"loss\.class_weights: 2 weights for 1 class\(es\)"),
        ({"class_weights": (1,)}, 3, r"loss\.class_weights: 1 weights for 3 class\(es\)"),
        ({"name": "tversky", "tversky_alpha": 0, "tversky_beta": 0}, 1, r"loss\.tversky_alpha and loss\.tversky_beta"),
        ({"name": "focal_tversky", "tversky_alpha": 0, "tversky_beta": 0}, 2, "focal_tversky needs one"),
    ],
)
def test_an_impossible_loss_is_refused_in_one_line(knobs, classes, told):
    with pytest.raises(InputError, match=told) as caught:
        losses.check(LossConfig(**knobs), classes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("knobs", [{}, {"class_weights": (1, 2)}, {"tversky_alpha": 0, "tversky_beta": 0}])
def test_a_possible_loss_is_accepted(knobs):
    losses.check(LossConfig(**knobs), 2)


# --- several processes


def trials():
    """Every loss with its labels: ordinary ones, and some where the second process has nothing but ignored pixels."""
    for name in NAMES:
        for channels, weights in ((1, ()), (3, ()), (3, (0.5, 2.0))):
            for blind in (False, True):
                images = draw(1, samples=5)[0]
                labels = draw(channels, samples=5, ignored=0.2, seed=1)[1]
                labels[3:] = IGNORE if blind else labels[3:]
                yield channels, LossConfig(name=name, class_weights=weights), images, labels


def learnt(channels, config, images, labels, wrap):
    """The loss of a tiny network and its parameters' gradients."""
    torch.manual_seed(0)
    network = wrap(nn.Conv2d(1, channels, 3, padding=1, dtype=torch.float64))
    value = losses.loss(network(images), labels, config)
    value.backward()
    return torch.cat([value.detach()[None], *(parameter.grad.flatten() for parameter in network.parameters())])


def process(rank, folder):
    """One of two processes: three of the five samples, or the other two."""
    torch_distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    part = (slice(0, 3), slice(3, 5))[rank]
    wrap = nn.parallel.DistributedDataParallel
    results = [learnt(c, config, images[part], labels[part], wrap) for c, config, images, labels in trials()]
    torch.save(results, f"{folder}/{rank}.pt")
    torch_distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    path = os.pathsep.join(map(str, (PROJECT, PROJECT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve())]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    complaints = [child.communicate(timeout=120)[1] for child in started]
    assert [child.returncode for child in started] == [0, 0], complaints
    alone = [learnt(*trial, lambda network: network) for trial in trials()]
    for rank in range(2):
        together = torch.load(tmp_path / f"{rank}.pt")
        for (channels, config, _, _), found, expected in zip(trials(), together, alone, strict=True):
            told = f"{config.name}, {channels} channels"
            torch.testing.assert_close(found, expected, **AGREE, msg=lambda m, told=told: f"{told}: {m}")


if __name__ == "__main__":
    process(int(sys.argv[1]), sys.argv[2])
