"""In which precision a network trains fastest on this processor."""

import copy
from functools import partial
from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from segpipe.data.batches import Batch, Batches
from segpipe.models import architectures
from segpipe.runtime import devices, process_group, timing
from segpipe.training.learner import Learner

if TYPE_CHECKING:
    from accelerate import Accelerator


def choose(network: architectures.SegmentationModel, train: Batches, config: Config, accelerator: "Accelerator") -> str:
    """train.precision, where that is auto on a processor with bf16: the faster one of a few steps of each on copies of
    the network. The same in all processes.
    """
    if not devices.may_gain_from_bf16(config.train.precision, accelerator.device.type):
        return devices.precision(config.train)
    batch = next(train.shuffled(config.seed, 0, config.augment))
    knobs = [config.train.model_copy(update={"precision": name}) for name in ("bf16", "fp32")]
    learners = [Learner(copy.deepcopy(network).train(), one, accelerator) for one in knobs]
    faster = timing.clearly_faster(*(partial(_step, learner, batch, config) for learner in learners))
    accelerator.free_memory(*(part for learner in learners for part in (learner.model, learner.optimizer)))
    return "bf16" if process_group.share(faster) else "fp32"


def _step(learner: Learner, batch: Batch, config: Config) -> None:
    loss, _ = learner.forward(learner.model, batch, config)
    learner.accelerator.backward(loss)
    learner.step(config.train, config.train.lr)
