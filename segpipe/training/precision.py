"""In which precision a network trains fastest on this processor."""

import copy
import statistics
import time
from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from segpipe.data.batches import Batch, Batches
from segpipe.models import architectures
from segpipe.runtime import devices, process_group
from segpipe.training.learner import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator

STEPS = 3
CANDIDATES = ("fp32", "bf16")


def choose(network: architectures.SegmentationModel, train: Batches, config: Config, accelerator: "Accelerator") -> str:
    """train.precision, where that is auto on a processor with bf16: the faster one of a few steps of each on copies of
    the network. The same in all processes.
    """
    if not devices.may_gain_from_bf16(config.train.precision, accelerator.device.type):
        return devices.precision(config.train)
    batch = next(train.shuffled(config.seed, 0, config.augment))
    knobs = [config.train.model_copy(update={"precision": name}) for name in CANDIDATES]
    learners = [Learner(copy.deepcopy(network).train(), one, accelerator) for one in knobs]
    seconds = [[_step(learner, batch, config) for learner in learners] for _ in range(1 + STEPS)]
    full, half = (statistics.median(times[1:]) for times in zip(*seconds, strict=True))
    accelerator.free_memory(*(part for learner in learners for part in (learner.model, learner.optimizer)))
    return CANDIDATES[process_group.share(devices.clearly_faster(half, full))]


def _step(learner: Learner, batch: Batch, config: Config) -> float:
    began = time.perf_counter()
    loss, _ = learner.forward(learner.model, batch, config)
    learner.accelerator.backward(loss)
    learner.step(config.train, config.train.lr)
    return time.perf_counter() - began
