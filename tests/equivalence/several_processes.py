"""Run under torchrun: train a little, in double precision, for each named config, and leave losses and weights behind.

torchrun ... several_processes.py JOB.json OUT.pt
"""

import json
import sys
from pathlib import Path

import torch
from double_precision import DoubleBatches

from segpipe.config import settings
from segpipe.data.dataset import Dataset
from segpipe.models import architectures
from segpipe.runtime import process_group
from segpipe.training import engine
from segpipe.training.learner import Learner


def main(job: Path, out: Path) -> None:
    asked = json.loads(job.read_text())
    found = {}
    for name, knobs in asked["trainings"].items():
        config = settings.build(knobs)
        accelerator = process_group.start(config.train)
        dataset = Dataset.open(Path(asked["datasets"][config.preprocess.fit]))
        train = DoubleBatches(dataset.where(split="train"), config.train, accelerator.device, training=True)
        val = DoubleBatches(dataset.where(split="val"), config.train, accelerator.device, training=False)
        network = architectures.build(config.model, 1, 1, config.seed).double()
        learner, losses = Learner(network, config.train, accelerator), []
        forward = learner.forward

        def noted(*arguments, forward=forward, losses=losses):
            loss, logits = forward(*arguments)
            losses.append(float(loss.detach()))
            return loss, logits

        learner.forward = noted
        for epoch in range(config.train.epochs):
            passed = engine.train_one_epoch(learner, train, config, engine.Position(epoch))
        found[name] = {
            "losses": losses,
            "train": (*flat(passed.scores), passed.learning_rate),
            "val": flat(engine.validate(learner, val, config)),
            "weights": network.state_dict(),
        }
    if not process_group.rank():
        torch.save(found, out)


def flat(scores):
    """All numbers of a pass, in one row."""
    return (scores.loss, scores.dice, *scores.cases)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
