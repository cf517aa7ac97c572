"""The training loop."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segpipe import losses, metrics, models
from segpipe.config import Config, TrainConfig
from segpipe.data.batches import Batch, Batches
from segpipe.errors import InputError


@dataclass(frozen=True)
class EpochReport:
    """What one epoch showed; Dice per case, in the convention of `metrics`."""

    epoch: int
    train_loss: float
    train_dice: float
    val_loss: float
    val_dice: float
    learning_rate: float
    epoch_time_seconds: float
    overfitting_gap: float

    def metrics(self) -> dict[str, float]:
        """Everything but the epoch, by name."""
        return {name: float(value) for name, value in asdict(self).items() if name != "epoch"}


@dataclass(frozen=True)
class FitResult:
    """The best epoch by validation Dice, its weights (on the CPU), and every epoch's report."""

    best: EpochReport
    weights: dict[str, Tensor]
    history: list[EpochReport]


class Runtime(NamedTuple):
    """Where and how precisely to compute."""

    device: torch.device
    autocast: torch.dtype | None


def runtime(config: TrainConfig) -> Runtime:
    """Resolve train.device and train.precision. Raises InputError for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if config.device == "cuda" and not has_gpu:
        raise InputError("train.device=cuda: no GPU found; use auto or cpu")
    device = torch.device("cuda" if has_gpu and config.device != "cpu" else "cpu")
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("train.precision=fp16 needs a GPU; use fp32 or bf16 on the CPU")
    return Runtime(device, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision])


class Tally:
    """Sums a loss over samples and counts voxels per case and class, on the device."""

    def __init__(self, cases: int, classes: int, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.samples, self.classes = 0, classes
        self.counts = torch.zeros(3, cases, classes, dtype=torch.int64, device=device)

    def add(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        """Take in one batch."""
        self.loss += loss.detach().double() * len(batch.images)
        self.samples += len(batch.images)
        predicted = losses.predictions(logits.detach())
        for k in range(self.classes):
            found, wanted = predicted == k + 1, batch.labels == k + 1
            for row, mask in enumerate((found & wanted, found, wanted)):
                self.counts[row, :, k].index_add_(0, batch.cases, mask.sum(dim=(1, 2)))

    def result(self) -> tuple[float, float]:
        """Mean loss over samples and mean Dice over cases."""
        both, predicted, reference = self.counts.cpu().numpy()
        values = metrics.overlap("dice", metrics.Counts(both, predicted, reference))
        return float(self.loss) / self.samples, metrics.class_mean(np.array([metrics.class_mean(v) for v in values]))


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then half a cosine to 0 (Loshchilov and Hutter 2017), at a step counted from 0."""
    total, warm = config.epochs * steps_per_epoch, round(config.warmup_epochs * steps_per_epoch)
    if step < warm:
        return config.lr * (step + 1) / warm
    progress = (step - warm) / max(total - warm, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def train_one_epoch(
    model: models.SegmentationModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Batches,
    epoch: int,
    config: Config,
    run: Runtime,
) -> tuple[float, float]:
    """One pass over the training set; mean loss and Dice as seen while training.

    Raises InputError, naming the batch, before a step is taken on a loss that is not finite.
    """
    model.train()
    tally = Tally(len(batches.cases), len(batches.classes), run.device)
    for index, batch in enumerate(batches.shuffled(config.seed, epoch, config.augment)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.train, epoch * len(batches) + index, len(batches))
        loss, logits = _forward(model, batch, config, run)
        if not torch.isfinite(loss):
            names = ", ".join(sorted({batches.cases[i].case for i in batch.cases.tolist()})[:4])
            raise InputError(f"loss is {loss.item()} in epoch {epoch}, batch {index} (cases {names}); lower train.lr")
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        tally.add(loss, logits, batch)
    return tally.result()


@torch.no_grad()
def validate(model: models.SegmentationModel, batches: Batches, config: Config, run: Runtime) -> tuple[float, float]:
    """Mean loss over slices and mean Dice over whole cases of the validation set."""
    model.eval()
    tally = Tally(len(batches.cases), len(batches.classes), run.device)
    for batch in batches.in_order():
        loss, logits = _forward(model, batch, config, run)
        tally.add(loss, logits, batch)
    return tally.result()


def _forward(model: models.SegmentationModel, batch: Batch, config: Config, run: Runtime) -> tuple[Tensor, Tensor]:
    with torch.autocast(run.device.type, dtype=run.autocast, enabled=run.autocast is not None):
        logits = model(batch.images.contiguous(memory_format=torch.channels_last))
    return losses.dice_bce(logits, batch.labels, config.loss), logits


def fit(
    model: models.SegmentationModel,
    train: Batches,
    val: Batches,
    config: Config,
    run: Runtime,
    on_epoch: Callable[[EpochReport], None],
) -> FitResult:
    """Train for train.epochs and keep the weights with the best validation Dice; `on_epoch` gets every report."""
    models.check_batches(config.model.arch, {last - first for first, last in train.bounds()})
    model.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub leaves it out
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.autocast is torch.float16)
    weights: dict[str, Tensor] = {}
    history: list[EpochReport] = []
    for epoch in range(config.train.epochs):
        began = time.perf_counter()
        train_loss, train_dice = train_one_epoch(model, optimizer, scaler, train, epoch, config, run)
        val_loss, val_dice = validate(model, val, config, run)
        report = EpochReport(
            epoch=epoch,
            train_loss=train_loss,
            train_dice=train_dice,
            val_loss=val_loss,
            val_dice=val_dice,
            learning_rate=float(optimizer.param_groups[0]["lr"]),
            epoch_time_seconds=time.perf_counter() - began,
            overfitting_gap=train_dice - val_dice,
        )
        if not history or report.val_dice > max(earlier.val_dice for earlier in history):
            weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        history.append(report)
        on_epoch(report)
    return FitResult(max(history, key=lambda r: r.val_dice), weights, history)
