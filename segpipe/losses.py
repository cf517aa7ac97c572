"""Soft Dice and cross-entropy on logits."""

import torch
from torch import Tensor
from torch.nn import functional

from segpipe.config import LossConfig


def dice_bce(logits: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Weighted sum of soft Dice loss (Milletari et al. 2016, over the foreground of the whole batch) and cross-entropy.

    `logits` N,1,H,W for one class or N,K+1,H,W for K; `labels` N,H,W integers. Computed in float32, a scalar.
    """
    logits = logits.float()
    if logits.shape[1] == 1:
        target = (labels > 0).unsqueeze(1).to(logits.dtype)
        entropy = functional.binary_cross_entropy_with_logits(logits, target)
        probabilities = logits.sigmoid()
    else:
        entropy = functional.cross_entropy(logits, labels.long())
        probabilities = logits.softmax(dim=1)[:, 1:]
        target = functional.one_hot(labels.long(), logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    axes = (0, 2, 3)
    overlap = (probabilities * target).sum(axes)
    total = probabilities.sum(axes) + target.sum(axes)
    dice = 1 - (2 * overlap + 1) / (total + 1)
    return config.dice_weight * dice.mean() + config.bce_weight * entropy


def predictions(logits: Tensor) -> Tensor:
    """Labels N,H,W uint8 from logits: foreground where its classes together reach probability 0.5, and there the most
    probable class; the rule of `inference.Predictor.segment` at its default threshold.
    """
    if logits.shape[1] == 1:
        return (logits[:, 0] >= 0).to(torch.uint8)
    foreground = logits.float().softmax(dim=1)[:, 1:]
    labels = foreground.argmax(dim=1) + 1
    return torch.where(foreground.sum(dim=1) >= 0.5, labels, 0).to(torch.uint8)
