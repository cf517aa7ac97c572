"""The training loop."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segpipe.config.sections import Config, TrainConfig
from segpipe.data.batches import Batch, Batches
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.metrics import overlaps
from segpipe.models import architectures, losses
from segpipe.recording.artifact_tree import PLANNED
from segpipe.runtime import process_group
from segpipe.training import schedule
from segpipe.training.checkpoints import Checkpoints
from segpipe.training.learner import Finite, Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

Weights = dict[str, Tensor]
OnBatch = Callable[[int, int, int, int], None]  # epoch from 0, epochs, batches done, batches
DROPOUT = 0xD80
NOT_METRICS = ("epoch", "ended_ms", "is_best")


@dataclass(frozen=True)
class EpochReport:
    """What one epoch showed; Dice per case, in the convention of `metrics`. `ended_ms` is milliseconds since 1970."""

    epoch: int
    train_loss: float
    train_dice: float
    val_loss: float
    val_dice: float
    learning_rate: float
    epoch_time_seconds: float
    overfitting_gap: float
    images_per_second: float
    data_wait_share: float
    ended_ms: int
    is_best: bool

    def metrics(self) -> dict[str, float]:
        """What is measured, by name."""
        return {name: float(value) for name, value in asdict(self).items() if name not in NOT_METRICS}


@dataclass(frozen=True)
class FitResult:
    """The best epoch by validation Dice, its weights (on the CPU), its Dice of each validation case, NaN where both
    masks are empty, and every epoch's report.
    """

    best: EpochReport
    weights: Weights
    val_cases: list[float]
    history: list[EpochReport]


class Scores(NamedTuple):
    """Mean loss over samples, mean Dice over cases, and the Dice of each case, NaN where both masks are empty."""

    loss: float
    dice: float
    cases: list[float]


class Tally:
    """Sums a loss over samples and counts voxels per case and class, on the device."""

    def __init__(self, batches: Batches) -> None:
        self.classes = len(batches.classes)
        self.samples = 0
        self.loss = torch.zeros((), dtype=torch.float64, device=batches.device)
        self.counts = torch.zeros(3, len(batches.cases), self.classes, dtype=torch.int64, device=batches.device)

    def add(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        """Take in one batch, whose loss is that of all processes' parts."""
        self.loss += loss.detach().double() * batch.size
        self.samples += batch.size
        predicted, known = losses.predictions(logits.detach()), batch.labels != IGNORE
        for k in range(self.classes):
            found, wanted = (predicted == k + 1) & known, batch.labels == k + 1
            for row, mask in enumerate((found & wanted, found, wanted)):
                self.counts[row, :, k].index_add_(0, batch.cases, mask.sum(dim=(1, 2)))

    def result(self) -> Scores:
        """The scores of all processes together."""
        both, predicted, reference = process_group.total(self.counts).cpu().numpy()
        values = overlaps.overlap("dice", overlaps.Counts(both, predicted, reference))
        cases = [overlaps.class_mean(v) for v in values]
        return Scores(float(self.loss) / self.samples, overlaps.class_mean(np.array(cases)), cases)

    def state(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {"samples": self.samples, "loss": self.loss, "counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        self.samples = state["samples"]
        self.loss.copy_(state["loss"])
        self.counts.copy_(state["counts"])


@dataclass
class Position:
    """How far a training has come: `batch` batches into `epoch`, and the sums over these batches."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    tally: dict[str, Any] = field(default_factory=dict)


class Passed(NamedTuple):
    """The scores of a pass over the training set, while the weights changed, and its last learning rate."""

    scores: Scores
    learning_rate: float


def never() -> bool:
    """A `stop` that never stops."""
    return False


def unwatched(_epoch: int, _epochs: int, _done: int, _batches: int) -> None:
    """An `on_batch` that tells nobody."""


def train_one_epoch(
    learner: Learner,
    batches: Batches,
    config: Config,
    at: Position,
    dice: Sequence[float] = (),
    stop: Callable[[], bool] = never,
    on_batch: OnBatch = unwatched,
) -> Passed | None:
    """One pass over the training set from `at`, which it advances; `dice` is that of validation in earlier epochs,
    `on_batch` is called on process 0 after each batch.

    None where `stop` ended it between two steps. Raises InputError, naming the batch, before a step is taken on a loss
    that is not finite.
    """
    learner.model.train()
    tally, sizes, per = Tally(batches), batches.sizes(), config.train.accumulate
    if at.tally:
        tally.restore(at.tally)
    steps, rate = -(-len(sizes) // per), 0.0
    coming = batches.shuffled(config.seed, at.epoch, config.augment, at.batch)
    began = asked = time.perf_counter()
    for index, batch in enumerate(coming, start=at.batch):
        at.waited += time.perf_counter() - asked
        step, last = index // per, (index + 1) % per == 0 or index + 1 == len(sizes)
        share = batch.size / sum(sizes[step * per : (step + 1) * per])
        _seed_dropout(config.seed, at.epoch, index, batches.device)
        with nullcontext() if last else learner.accelerator.no_sync(learner.model):
            loss, logits = learner.forward(learner.model, batch, config)
            finite = Finite(loss)
            learner.accelerator.backward(loss * share)
        if not finite:
            names = ", ".join(sorted({batches.cases[i].case for i in batch.cases.tolist()})[:4])
            raise InputError(
                f"loss is {loss.item()} in epoch {at.epoch + 1}, batch {index + 1} (cases {names}); lower train.lr"
            )
        tally.add(loss, logits, batch)
        if not process_group.rank():
            on_batch(at.epoch, config.train.epochs, index + 1, len(sizes))
        if last:
            rate = schedule.learning_rate(config.train, at.epoch * steps + step, steps, dice)
            learner.step(config.train, rate)
            if index + 1 < len(sizes) and stop():
                at.batch, at.tally, at.seconds = index + 1, tally.state(), at.seconds + time.perf_counter() - began
                return None
        asked = time.perf_counter()
    result = Passed(tally.result(), rate)
    at.seconds += time.perf_counter() - began
    return result


def _seed_dropout(seed: int, epoch: int, batch: int, device: torch.device) -> None:
    """Make the device's generator, from which layers such as dropout draw, depend on the batch alone."""
    state = np.random.SeedSequence([seed, epoch, batch, process_group.rank(), DROPOUT]).generate_state(1, np.uint64)
    generator = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    generator.manual_seed(int(state[0]) >> 1)


@torch.no_grad()
def validate(learner: Learner, batches: Batches, config: Config) -> Scores:
    """The validation set: loss over slices, Dice over whole cases."""
    model, tally = learner.evaluated.eval(), Tally(batches)
    process_group.synchronise(model)
    for batch in batches.in_order():
        loss, logits = learner.forward(model, batch, config)
        tally.add(loss, logits, batch)
    return tally.result()


class Course:
    """A training so far: its position, every epoch's report, the best weights; saved in checkpoints with `PLANNED`."""

    def __init__(
        self, learner: Learner, checkpoints: Checkpoints | None, state: dict[str, Any] | None, config: TrainConfig
    ) -> None:
        self.learner, self.checkpoints = learner, checkpoints
        self.planned = {name: getattr(config, name) for name in PLANNED}
        self.at, self.weights = Position(), Weights()
        self.val_cases: list[float] = []
        self.history: list[EpochReport] = []
        if state:
            learner.restore(state)
            self.weights, self.at = state["weights"], Position(**state["position"])
            self.val_cases = state["val_cases"]
            self.history = [EpochReport(**report) for report in state["history"]]
            state.clear()
        if process_group.share((self.at.epoch, self.at.batch)) != (self.at.epoch, self.at.batch):
            raise InputError("tracking.outputs: processes found different checkpoints; give a folder that all share")

    @property
    def dice(self) -> list[float]:
        """Validation Dice of every epoch."""
        return [report.val_dice for report in self.history]

    def save(self) -> None:
        """Write a checkpoint, from the one process that writes."""
        if self.checkpoints is None or process_group.rank():
            return
        best = {"weights": self.weights, "val_cases": self.val_cases}
        course = {"position": vars(self.at), "history": [asdict(r) for r in self.history], "planned": self.planned}
        self.checkpoints.save(self.at.epoch, self.at.batch, {**self.learner.state(), **best, **course})

    def end_epoch(self, passed: Passed, images: int, val: Scores, seconds: float) -> None:
        """Record a finished epoch of so many images, validated in so many seconds, and move on to the next."""
        best = not self.history or val.dice > max(self.dice)
        report = EpochReport(
            epoch=self.at.epoch,
            train_loss=passed.scores.loss,
            train_dice=passed.scores.dice,
            val_loss=val.loss,
            val_dice=val.dice,
            learning_rate=passed.learning_rate,
            epoch_time_seconds=self.at.seconds + seconds,
            overfitting_gap=passed.scores.dice - val.dice,
            images_per_second=images / self.at.seconds,
            data_wait_share=self.at.waited / self.at.seconds,
            ended_ms=round(time.time() * 1000),
            is_best=best,
        )
        if best:
            state = self.learner.evaluated.state_dict()
            self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}
            self.val_cases = val.cases
        self.history.append(report)
        self.at = Position(self.at.epoch + 1)


def fit(
    network: architectures.SegmentationModel,
    train: Batches,
    val: Batches,
    config: Config,
    accelerator: "Accelerator",
    on_epoch: Callable[[list[EpochReport], architectures.SegmentationModel], None],
    checkpoints: Checkpoints | None = None,
    resume: dict[str, Any] | None = None,
    stop: Callable[[], bool] = never,
    on_batch: OnBatch = unwatched,
) -> FitResult:
    """Train for train.epochs, or until patience is lost, and keep the weights with the best validation Dice.

    `on_epoch`, called on process 0 after each epoch, gets all reports so far and the network that the last is about;
    after a resume it gets the last epoch again. With `checkpoints` each epoch is saved before it is reported; `resume`
    is what was saved last, and is emptied. Raises KeyboardInterrupt, its position saved, where `stop` says so.
    """
    architectures.check_batches(config.model, {max(1, len(p)) for n in train.sizes() for p in process_group.parts(n)})
    learner = Learner(network, config.train, accelerator)
    course = Course(learner, checkpoints, resume, config.train)
    if course.history and not course.at.batch and not process_group.rank():
        on_epoch(course.history, learner.evaluated)
    while course.at.epoch < config.train.epochs:
        if stop():
            raise KeyboardInterrupt
        if config.train.patience and schedule.waited(course.dice, config.train.min_delta) >= config.train.patience:
            break
        passed = train_one_epoch(learner, train, config, course.at, course.dice, stop, on_batch)
        if passed is None:
            course.save()
            raise KeyboardInterrupt
        began = time.perf_counter()
        scores = validate(learner, val, config)
        course.end_epoch(passed, sum(train.sizes()), scores, time.perf_counter() - began)
        course.save()
        if not process_group.rank():
            on_epoch(course.history, learner.evaluated)
    accelerator.unwrap_model(learner.model, keep_fp32_wrapper=False)
    return FitResult(max(course.history, key=lambda r: r.val_dice), course.weights, course.val_cases, course.history)
