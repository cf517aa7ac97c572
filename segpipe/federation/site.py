"""One site's part of a federation: validate the weights that come, train on its own cases, answer."""

import hashlib
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segpipe.config.sections import Config
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.federation import messages, norms
from segpipe.federation.messages import Figures, Reply, Task, Weights
from segpipe.training import engine
from segpipe.training.checkpoints import Checkpoints
from segpipe.training.engine import OnBatch, Position, Scores, never, unwatched
from segpipe.training.learner import Learner

NETWORK, AVERAGE = "network.", "average."
NORMS = "norms_{:06d}.safetensors"


class Place(NamedTuple):
    """A site: its name, its data set, the folder for what it remembers, and whether it is the only one."""

    name: str
    dataset: Dataset
    folder: Path
    alone: bool = False


def seed(seed: int, site: str) -> int:
    """The seed of a site's random draws."""
    name = hashlib.sha256(site.encode()).digest()
    return int(np.random.SeedSequence([seed, *name]).generate_state(1)[0]) >> 1


def gather(learner: Learner) -> Weights:
    """All that training moves and a server averages: the network and, where there is one, its moving average."""
    network = {NETWORK + name: value for name, value in learner.network.state_dict().items()}
    average = learner.average.state_dict() if learner.average else {}
    return network | {AVERAGE + name: value for name, value in average.items()}


def evaluated(weights: Weights) -> Weights:
    """Of gathered weights those of the network that is validated and saved, by its own names."""
    prefix = f"{AVERAGE}module."
    prefix = prefix if any(name.startswith(prefix) for name in weights) else NETWORK
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def own(learner: Learner) -> frozenset[str]:
    """The names, among gathered weights, of the normalisation layers'."""
    found = norms.names(learner.network)
    return frozenset(
        [NETWORK + name for name in found] + [f"{AVERAGE}module.{name}" for name in found if learner.average]
    )


class Site:
    """A site with its batches. Sites in one process share a learner: all that a site remembers lies in its folder."""

    def __init__(
        self,
        place: Place,
        config: Config,
        learner: Learner,
        fresh: dict[str, Any],
        key: str,
        warn: Callable[[str], None],
    ) -> None:
        """`fresh` is the state of an optimizer that has made no step. Raises InputError where the site has no case to
        train on.
        """
        self.place, self.learner, self.fresh = place, learner, fresh
        if not place.alone:
            config = config.model_copy(update={"seed": seed(config.seed, place.name)})
        self.config = config
        device = learner.accelerator.device
        of = place.dataset.where
        self.train = Batches(of(split="train", site=place.name), config.train, device, training=True)
        known = of(split="val", site=place.name)
        self.val = Batches(known, config.train, device, training=False, foreground=False) if known.cases else None
        self.own = own(learner) if config.federate.strategy == "fedbn" else frozenset[str]()
        self.checkpoints = Checkpoints(place.folder, key, warn)

    def perform(
        self, message: Path, reply: Path, stop: Callable[[], bool] = never, on_batch: OnBatch = unwatched
    ) -> None:
        """Do what a task asks and write the answer. Raises KeyboardInterrupt, its position saved, where `stop` says so
        between two steps, InputError where the loss is not finite.
        """
        began, task = time.perf_counter(), messages.header(message, Task)
        weights = dict(messages.tensors(message))
        if task.kind == "train":
            answer, sent = self._train(task, weights, stop, on_batch)
        else:
            self._load(weights, task.round if task.kind == "validate" else 0)
            answer, sent = self._answer(task, received=self._validate()), Weights()
        answer = answer.model_copy(update={"seconds": answer.seconds + time.perf_counter() - began})
        messages.write(reply, answer, sent)

    def _train(
        self, task: Task, weights: Weights, stop: Callable[[], bool], on_batch: OnBatch
    ) -> tuple[Reply, Weights]:
        state = self.checkpoints.newest()
        if state and state["round"] == task.round:
            self.learner.restore(state)
            at, passed = Position(**state["position"]), state["passed"]
            received = Scores(*state["received"]) if state["received"] else None
        else:
            self._load(weights, task.round)
            keeps = state is not None and self.config.federate.optimizer == "keep"
            self.learner.restore_optimizer(state if state and keeps else self.fresh)
            at, passed = Position(task.round * self.config.federate.local_epochs), []
            received = self._validate() if task.round else None
        self._pull_to(weights)
        return self._go_on(task, at, passed, received, stop, on_batch)

    def _go_on(
        self,
        task: Task,
        at: Position,
        passed: list[list[Any]],
        received: Scores | None,
        stop: Callable[[], bool],
        on_batch: OnBatch,
    ) -> tuple[Reply, Weights]:
        """Train from a position to the end of the round. `passed` has, for each epoch that is done, its scores, its
        last learning rate, its seconds, and those in which it waited for data.
        """

        def save() -> None:
            known = {"round": task.round, "position": vars(at), "passed": passed}
            scores = list(received) if received else []
            self.checkpoints.save(at.epoch, at.batch, {**self.learner.state(), **known, "received": scores})

        until = (task.round * self.config.federate.local_epochs) + task.epochs
        while at.epoch < until:
            done = engine.train_one_epoch(self.learner, self.train, self.config, at, (), stop, on_batch)
            if done is None:
                save()
                raise KeyboardInterrupt
            passed.append([list(done.scores), done.learning_rate, at.seconds, at.waited])
            at = Position(at.epoch + 1)
            save()
        if self.own:
            kept = {name: value for name, value in gather(self.learner).items() if name in self.own}
            messages.write(self._norms(task.round), task, kept)
        scores, rate, *_ = passed[-1]
        reply = self._answer(task, received, Scores(*scores)).model_copy(
            update={"learning_rate": rate, "waited": sum(done[3] for done in passed)}
        )
        return reply, gather(self.learner)

    def _pull_to(self, weights: Weights) -> None:
        """Let FedProx pull each step towards the weights that the round began with."""
        federate = self.config.federate
        if federate.strategy != "fedprox" or not federate.mu:
            self.learner.pull = None
            return
        named = self.learner.network.named_parameters()
        anchors = [weights[NETWORK + name].to(value.device) for name, value in named]
        self.learner.pull = federate.mu, anchors

    def _load(self, weights: Weights, number: int) -> None:
        """Take the weights that came, but for the site's own, which are those of its last round before `number`."""
        kept = {}
        if self.own and number and (path := self._last_norms(number)):
            kept = dict(messages.tensors(path))
        wanted = {name: kept.get(name, value) for name, value in weights.items()}
        network = {name.removeprefix(NETWORK): v for name, v in wanted.items() if name.startswith(NETWORK)}
        self.learner.network.load_state_dict(network)
        self.learner.optimizer.zero_grad(set_to_none=True)
        if self.learner.average:
            average = {name.removeprefix(AVERAGE): v for name, v in wanted.items() if name.startswith(AVERAGE)}
            self.learner.average.load_state_dict(average)

    def _norms(self, number: int) -> Path:
        return self.place.folder / NORMS.format(number)

    def _last_norms(self, before: int) -> Path | None:
        """The site's own layers after its last round before the one given; none where it has not trained yet."""
        known = sorted(self.place.folder.glob(NORMS.format(0).replace("000000", "*")))
        return next((path for path in reversed(known) if path.name < NORMS.format(before)), None)

    def _validate(self) -> Scores | None:
        return engine.validate(self.learner, self.val, self.config) if self.val else None

    def _answer(self, task: Task, received: Scores | None = None, trained: Scores | None = None) -> Reply:
        cases = tuple(None if math.isnan(value) else value for value in received.cases) if received else ()
        return Reply(
            site=self.place.name,
            round=task.round,
            examples=sum(self.train.sizes()),
            seconds=0.0,
            trained=_figures(trained, self.train),
            received=_figures(received, self.val),
            cases=cases,
        )


def _figures(scores: Scores | None, batches: Batches | None) -> Figures | None:
    if scores is None or batches is None:
        return None
    known: Collection[float] = [value for value in scores.cases if not math.isnan(value)]
    dice = scores.dice if known else 0.0
    return Figures(loss=scores.loss, samples=sum(batches.sizes()), dice=dice, cases=len(known))
