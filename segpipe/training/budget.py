"""How many epochs, and windows, a training has time for, from what some steps, a validation and a checkpoint take."""

import copy
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segpipe.config.sections import Config, TrainConfig
from segpipe.data.batches import Batches
from segpipe.data.patches import Patches
from segpipe.errors import InputError
from segpipe.models import architectures
from segpipe.recording.artifact_tree import Recorder
from segpipe.recording.offline import FolderRecorder
from segpipe.runtime import process_group, timing
from segpipe.training import engine
from segpipe.training.checkpoints import Checkpoints
from segpipe.training.learner import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARE = 0.88  # of the minutes that are planned; the rest is for what varies
STEPS = 20
APART, MOST = 0.1, 40  # of the planned minutes for all but training, and epochs, where windows are drawn
BEST = 0.5  # share of the epochs that are taken to be a new best, which is recorded with its model and pictures
NEW_BEST = engine.EpochReport(
    epoch=0, train_loss=1, train_dice=0, val_loss=1, val_dice=0, learning_rate=0, epoch_time_seconds=1,
    overfitting_gap=0, images_per_second=1, data_wait_share=0, ended_ms=0, is_best=True,
)  # fmt: skip


class Costs(NamedTuple):
    """Seconds: of one optimizer step, a validation, a checkpoint and the records of a new best epoch."""

    step: float
    validation: float
    checkpoint: float
    records: float

    def epoch(self, config: TrainConfig, batches: int) -> float:
        """Seconds of an epoch of so many batches."""
        steps = -(-batches // config.accumulate)
        return steps * self.step + self.validation + self.checkpoint + BEST * self.records


def fill(config: TrainConfig, spent: float, costs: Costs, train: Batches) -> TrainConfig:
    """The config with as many epochs as fit into what is left of train.minutes, of which some seconds are spent; where
    the windows of an epoch are not given, with so many that all but training takes a tenth of it. The same in all
    processes. Raises InputError where not even one epoch fits.
    """
    room, costs = process_group.share((SHARE * 60 * config.minutes - spent, costs))
    batches = len(train)
    if isinstance(train.samples, Patches) and not config.patches:
        apart = costs.epoch(config, 0)
        count = max(1, min(MOST, int(APART * room / apart)))
        steps = int((room / count - apart) / costs.step)
        windows = steps * config.accumulate * config.batch_size // len(train.cases)
        config = config.model_copy(update={"patches": max(1, windows)})
        batches = -(-config.patches * len(train.cases) // config.batch_size)
    each = costs.epoch(config, batches)
    if room < each:
        least = config.minutes + (each - room) / (60 * SHARE)
        raise InputError(f"train.minutes={config.minutes:g}: one epoch needs {least:.2g} here; give more minutes")
    return config.model_copy(update={"epochs": int(room / each)})


def measure(
    network: architectures.SegmentationModel,
    train: Batches,
    val: Batches,
    config: Config,
    accelerator: "Accelerator",
    record: Callable[[Recorder], None],
    folder: Path,
) -> Costs:
    """Time a training on a copy of the network: twenty steps, after a first one that warms up, a validation, and what
    process 0 writes of an epoch, checkpoint and records, into `folder`, which is left as it was.
    """
    learner = Learner(copy.deepcopy(network), config.train, accelerator)
    ends: list[float] = []

    def enough() -> bool:
        ends.append(time.perf_counter())
        return len(ends) > STEPS

    for epoch in itertools.count():
        passed = engine.train_one_epoch(learner, train, config, engine.Position(epoch), stop=enough)
        if passed is None or enough():
            break
    validation = timing.seconds(lambda: engine.validate(learner, val, config))
    checkpoint = records = 0.0
    if not process_group.rank():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="budget-", dir=folder) as tried:
            course = engine.Course(learner, Checkpoints(Path(tried), "", warn=print), None, config.train)
            checkpoint = timing.seconds(course.save)
            record(FolderRecorder(Path(tried)))  # the first picture of a process takes longer
            records = timing.seconds(lambda: record(FolderRecorder(Path(tried))))
    accelerator.free_memory(learner.model, learner.optimizer)
    return Costs((ends[-1] - ends[0]) / (len(ends) - 1), validation, checkpoint, records)
