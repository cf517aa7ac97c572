"""Losses on logits. Each is the loss of the whole batch, over all processes, and leaves out what is labelled IGNORE.

Region losses divide after their sums over samples, pixels and processes; other losses are means over all the pixels or
images that count. Quotients are smoothed, so that an empty prediction for an empty target costs nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from segpipe.config.sections import LossConfig, LossName
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.runtime.process_group import total, world

TINY = 1e-7


class Pixels(NamedTuple):
    """What a loss is computed from, for K classes; C = 1 for one class and C = K + 1 for several.

    `logits` N,C,H,W float32, or float64. `labels` N,H,W integers. `valid` N,1,H,W, 0 where a pixel is left out and 1
    elsewhere. `target` N,K,H,W, 1 where a class is and 0 elsewhere. `weights` K, or None where all count the same.
    """

    logits: Tensor
    labels: Tensor
    valid: Tensor
    target: Tensor
    weights: Tensor | None
    config: LossConfig

    @property
    def binary(self) -> bool:
        """Whether there is a single class."""
        return self.logits.shape[1] == 1

    def probabilities(self) -> Tensor:
        """Probabilities N,K,H,W of the foreground classes."""
        return self.logits.sigmoid() if self.binary else self.logits.softmax(dim=1)[:, 1:]

    def entropies(self) -> Tensor:
        """Cross-entropy N,1,H,W of each pixel, 0 where it is ignored."""
        if self.binary:
            return functional.binary_cross_entropy_with_logits(self.logits, self.target, self.valid, reduction="none")
        labels = self.labels.long()
        return functional.cross_entropy(self.logits, labels, ignore_index=IGNORE, reduction="none").unsqueeze(1)


def _prepare(logits: Tensor, labels: Tensor, config: LossConfig) -> Pixels:
    """Compares in place, where the answers are floats: bools are slow to make and to convert on a CPU."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    values = labels.unsqueeze(1).to(logits.dtype)
    classes = torch.arange(1, max(logits.shape[1], 2), device=labels.device).view(-1, 1, 1)
    target = values.sub(classes).eq_(0)
    valid = values.ne_(IGNORE)
    given = config.class_weights
    weights = torch.tensor(given).to(logits.device, non_blocking=True) if given else None
    return Pixels(logits, labels, valid, target, weights, config)


def _totals(*values: Tensor) -> tuple[Tensor, ...]:
    """The sum over all processes of each of several tensors of the same shape, in one message."""
    return values if world() == 1 else total(torch.stack(values)).unbind()


def _sums(found: Tensor, wanted: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    """Sums K of the product of two N,K,H,W, and of each; `wanted` is 0 where a pixel is ignored."""
    axes = (0, 2, 3)
    return _totals((found * wanted).sum(axes), (found * valid).sum(axes), wanted.sum(axes))


def _over_classes(pixels: Pixels, values: Tensor) -> Tensor:
    """Weighted mean of K values."""
    return values.mean() if pixels.weights is None else (values * pixels.weights).sum() / pixels.weights.sum()


def _over_pixels(pixels: Pixels, values: Tensor) -> Tensor:
    """Mean of N,1,H,W values, 0 where ignored, weighted by the pixels' classes like torch's cross-entropy."""
    counted = pixels.valid.sum()
    if pixels.weights is not None:
        extra = ((pixels.weights - 1).view(-1, 1, 1) * pixels.target).sum(dim=1, keepdim=True)
        values, counted = values * (1 + extra), counted + extra.sum()
    value, count = _totals(values.sum(), counted)
    return value / count.clamp_min(TINY)


def _tversky_losses(pixels: Pixels, alpha: float, beta: float) -> Tensor:
    """1 - Tversky index of K classes, smoothed by half a pixel: false positives cost `alpha`, missed ones `beta`."""
    both, found, wanted = _sums(pixels.probabilities(), pixels.target, pixels.valid)
    wrong = torch.add(alpha * (found - both), wanted - both, alpha=beta)
    return wrong / (both + wrong + 0.5)


def dice(pixels: Pixels) -> Tensor:
    """Soft Dice loss (Milletari et al. 2016): the Tversky loss whose weights are both 1/2."""
    return _over_classes(pixels, _tversky_losses(pixels, 0.5, 0.5))


def jaccard(pixels: Pixels) -> Tensor:
    """Soft Jaccard loss (Rahman and Wang 2016): the Tversky loss whose weights are both 1."""
    return _over_classes(pixels, _tversky_losses(pixels, 1, 1))


def tversky(pixels: Pixels) -> Tensor:
    """Tversky loss (Salehi et al. 2017)."""
    return _over_classes(pixels, _tversky_losses(pixels, pixels.config.tversky_alpha, pixels.config.tversky_beta))


def focal_tversky(pixels: Pixels) -> Tensor:
    """Focal Tversky loss (Abraham and Khan 2018): the Tversky loss to the power 1/gamma, but linear below TINY,
    where the slope of the power has no bound.
    """
    losses = _tversky_losses(pixels, pixels.config.tversky_alpha, pixels.config.tversky_beta)
    return _over_classes(pixels, losses * losses.clamp_min(TINY) ** (1 / pixels.config.tversky_gamma - 1))


def bce(pixels: Pixels) -> Tensor:
    """Cross-entropy: binary for one class, categorical for several."""
    return _over_pixels(pixels, pixels.entropies())


def dice_bce(pixels: Pixels) -> Tensor:
    """Weighted sum of soft Dice loss and cross-entropy."""
    return pixels.config.dice_weight * dice(pixels) + pixels.config.bce_weight * bce(pixels)


def focal(pixels: Pixels) -> Tensor:
    """Focal loss (Lin et al. 2017): cross-entropy times (1 - probability of the true class) to the power gamma."""
    entropies = pixels.entropies()
    doubt = (-torch.expm1(-entropies)).clamp_min(torch.finfo(torch.float32).tiny)
    return _over_pixels(pixels, entropies * doubt**pixels.config.focal_gamma)


def mcc(pixels: Pixels) -> Tensor:
    """1 - soft Matthews correlation (Abhishek and Hamarneh 2021), of a class against all else, smoothed by one correct
    pixel of either kind.
    """
    both, found, wanted = _sums(pixels.probabilities(), pixels.target, pixels.valid)
    counted = total(pixels.valid.sum())
    agreement = (both + 1) * (counted - found - wanted + both + 1) - (found - both) * (wanted - both)
    inside = (found + 1) * (wanted + 1)
    outside = ((counted - found).clamp_min(0) + 1) * ((counted - wanted).clamp_min(0) + 1)
    return _over_classes(pixels, 1 - agreement / (inside.sqrt() * outside.sqrt()))


def _lovasz_extension(errors: Tensor, target: Tensor) -> Tensor:
    """Lovasz extension N,C of the Jaccard loss at errors N,C,H,W >= 0 (Berman et al. 2018, algorithm 1)."""
    errors, order = errors.flatten(2).sort(dim=-1, descending=True)
    hits = target.flatten(2).gather(-1, order).cumsum(-1)
    wanted, seen = hits[..., -1:], torch.arange(1, hits.shape[-1] + 1, device=hits.device, dtype=hits.dtype)
    losses = 1 - (wanted - hits) / (wanted + seen - hits)
    return (errors * losses.diff(dim=-1, prepend=torch.zeros_like(wanted))).sum(-1)


def lovasz(pixels: Pixels) -> Tensor:
    """Mean over images of the Lovasz hinge, or for several classes of the Lovasz softmax: the weighted mean over the
    classes in the image, including the background (Berman et al. 2018).
    """
    if pixels.binary:
        errors = functional.relu(1 - pixels.logits * (2 * pixels.target - 1)) * pixels.valid
        values = _lovasz_extension(errors, pixels.target).squeeze(1)
    else:
        background = pixels.valid - pixels.target.sum(dim=1, keepdim=True)
        target = torch.cat([background, pixels.target], dim=1)
        errors = (pixels.logits.softmax(dim=1) * pixels.valid - target).abs()
        share = target.amax(dim=(2, 3))
        if pixels.weights is not None:
            share = share * functional.pad(pixels.weights, (1, 0), value=1)
        values = (_lovasz_extension(errors, target) * share).sum(1) / share.sum(1).clamp_min(TINY)
    counted = pixels.valid.amax(dim=(1, 2, 3))
    value, count = _totals((values * counted).sum(), counted.sum())
    return value / count.clamp_min(1)


def _skeleton(image: Tensor, iterations: int) -> Tensor:
    """Soft skeleton N,K,H,W of values between 0 and 1 (Shit et al. 2021, algorithm 1)."""
    skeleton = torch.zeros_like(image)
    for _ in range(iterations + 1):
        upright = -functional.max_pool2d(-image, (3, 1), 1, (1, 0))
        eroded = torch.minimum(upright, -functional.max_pool2d(-image, (1, 3), 1, (0, 1)))
        ridge = functional.relu(image - functional.max_pool2d(eroded, 3, 1, 1))
        skeleton = skeleton + ridge * (1 - skeleton)
        image = eroded
    return skeleton


def cldice(pixels: Pixels) -> Tensor:
    """Soft Dice loss and 1 - soft centreline Dice, the harmonic mean of how much of either mask's skeleton lies in the
    other mask, smoothed by a pixel (Shit et al. 2021). Ignored pixels are background in both skeletons.
    """
    config, found = pixels.config, pixels.probabilities() * pixels.valid
    inside, length, _ = _sums(_skeleton(found, config.cldice_iterations), pixels.target, pixels.valid)
    covered, wanted, _ = _sums(_skeleton(pixels.target, config.cldice_iterations), found, pixels.valid)
    precision, sensitivity = (inside + 1) / (length + 1), (covered + 1) / (wanted + 1)
    centreline = _over_classes(pixels, 1 - 2 * precision * sensitivity / (precision + sensitivity))
    return (1 - config.cldice_share) * dice(pixels) + config.cldice_share * centreline


LOSSES: dict[LossName, Callable[[Pixels], Tensor]] = {
    "dice": dice,
    "bce": bce,
    "dice_bce": dice_bce,
    "focal": focal,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "lovasz": lovasz,
    "jaccard": jaccard,
    "mcc": mcc,
    "cldice": cldice,
}


def loss(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """The loss that `config` names: a scalar, the same in every process; float64 for such logits, otherwise float32.

    `logits` N,1,H,W for one class or N,K+1,H,W for K; `labels` N,H,W integers, IGNORE where a pixel is ignored.
    """
    return LOSSES[config.name](_prepare(logits, labels, config))


def check(config: LossConfig, classes: int) -> None:
    """Raise InputError where `config` can't be the loss of that many foreground classes."""
    if len(config.class_weights) not in (0, classes):
        raise InputError(
            f"loss.class_weights: {len(config.class_weights)} weights for {classes} class(es); "
            "give one for each foreground class, or none"
        )
    if config.name in ("tversky", "focal_tversky") and config.tversky_alpha + config.tversky_beta == 0:
        raise InputError(f"loss.tversky_alpha and loss.tversky_beta are both 0; {config.name} needs one of them")


def predictions(logits: Tensor) -> Tensor:
    """Labels N,H,W uint8 from logits: foreground where its classes together reach probability 0.5, and there the most
    probable class; the rule of `inference.Predictor.label` at the default threshold.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] >= 0).to(torch.uint8)
    foreground = logits.float().softmax(dim=1)[:, 1:]
    labels = foreground.argmax(dim=1) + 1
    return torch.where(foreground.sum(dim=1) >= 0.5, labels, 0).to(torch.uint8)
