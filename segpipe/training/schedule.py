"""Learning rates and early stopping: pure functions of the step and the validation Dice so far, without any state."""

import math
from collections.abc import Sequence

from segpipe.config.sections import TrainConfig

ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1e-4 / 25


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int, dice: Sequence[float]) -> float:
    """The learning rate at an optimizer step counted from 0; `dice` is the validation Dice of the epochs before.

    Cosine: half a cosine to 0 (Loshchilov and Hutter 2017); polynomial: (1 - progress)^power (Chen et al. 2017);
    onecycle: Smith and Topin 2018, as torch's OneCycleLR; plateau: multiplied by plateau_factor each
    time validation Dice has not grown for plateau_patience epochs. Linear warm-up first, but for onecycle.
    """
    total = config.epochs * steps_per_epoch
    if config.schedule == "onecycle":
        return config.lr * _onecycle(step, total)
    warm = round(config.warmup_epochs * steps_per_epoch)
    if step < warm:
        return config.lr * (step + 1) / warm
    progress = min((step - warm) / max(total - warm, 1), 1.0)
    factor = {
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * progress)),
        "polynomial": lambda: (1 - progress) ** config.poly_power,
        "plateau": lambda: config.plateau_factor ** reductions(dice, config.plateau_patience),
        "constant": lambda: 1.0,
    }[config.schedule]()
    return float(config.lr * factor)


def _onecycle(step: int, total: int) -> float:
    peak = max(ONECYCLE_RISE * total - 1, 0.0)
    if step < peak:
        low, high, part = ONECYCLE_START, 1.0, step / peak
    else:
        low, high, part = 1.0, ONECYCLE_END, (step - peak) / max(total - 1 - peak, 1e-9)
    return high + (low - high) * 0.5 * (1 + math.cos(math.pi * part))


def reductions(dice: Sequence[float], patience: int) -> int:
    """How often `patience` epochs in a row brought no better value, the count starting anew each time."""
    best, waited, count = -math.inf, 0, 0
    for value in dice:
        best, waited = (value, 0) if value > best else (best, waited + 1)
        if waited == patience:
            count, waited = count + 1, 0
    return count


def waited(dice: Sequence[float], min_delta: float) -> int:
    """Epochs since the validation Dice last grew by more than `min_delta` over the best before."""
    best, since = -math.inf, 0
    for value in dice:
        best, since = (value, 0) if value > best + min_delta else (best, since + 1)
    return since
