"""The server's part of a round: whose weights count, their mean, and which round was best. Pure functions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from segpipe.config.sections import FederateConfig
from segpipe.errors import InputError, StepError
from segpipe.federation import messages
from segpipe.federation.messages import Figures, Header, Reply, Weights


class Answer(NamedTuple):
    """A site's reply and the file with its weights."""

    reply: Reply
    weights: Path


class Failure(NamedTuple):
    """Why there is no use of a site in a round."""

    site: str
    why: str


class SiteRound(Header):
    """What became of a site in a round: why it failed, if it did, else what it sent (see `messages.Reply`); the figures
    of validation are of the weights that the round ended with.
    """

    site: str
    failed: str = ""
    examples: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    learning_rate: float = 0.0
    trained: Figures | None = None
    validated: Figures | None = None


class Round(Header):
    """One round of so many epochs: each site that was asked, in order, the bytes sent to each of them, how many seconds
    it took, and when it ended, in milliseconds since 1970.
    """

    round: int
    epochs: int
    seconds: float
    ended_ms: int
    bytes_down: int
    sites: tuple[SiteRound, ...]

    @property
    def validated(self) -> dict[str, Figures]:
        """What the weights that the round ended with showed, at each site that validated them."""
        return {site.site: site.validated for site in self.sites if site.validated}


def needed(asked: FederateConfig, sites: Collection[str]) -> int:
    """The fewest sites whose weights make a round: federate.quorum, or more than half. Raises InputError."""
    if asked.quorum > len(sites):
        raise InputError(f"federate.quorum={asked.quorum}: there are {len(sites)} sites; ask for no more")
    return asked.quorum or len(sites) // 2 + 1


def check(answer: Answer, number: int, wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError, in words about the site, where a reply is of another round, brings no examples, or its weights
    are not finite or not those wanted, by name, shape and type.
    """
    if answer.reply.round != number:
        raise InputError(f"answered round {answer.reply.round + 1}, not round {number + 1}")
    if answer.reply.examples < 1:
        raise InputError("trained on no example")
    missing = set(wanted)
    for name, value in messages.tensors(answer.weights):
        if name not in wanted:
            raise InputError(f"sent {name}, which the network does not have")
        shape, ours = tuple(value.shape), wanted[name]
        if shape != tuple(ours.shape) or value.dtype != ours.dtype:
            told = f"{shape} {_type(value)}, not {tuple(ours.shape)} {_type(ours)}"
            raise InputError(f"sent {name} as {told}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"sent {name} with values that are not finite")
        missing.discard(name)
    if missing:
        raise InputError(f"did not send {len(missing)} of {len(wanted)} weights, such as {min(missing)}")


def _type(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def average(answers: Sequence[Answer]) -> Weights:
    """The mean of the sites' weights by examples (McMahan et al. 2017), in float64, in the order of the sites' names
    whatever order they came in; the largest of integers, such as counts of batches. One site's weights are in memory
    at a time.
    """
    total = sum(answer.reply.examples for answer in answers)
    sums, types = Weights(), dict[str, torch.dtype]()
    for answer in sorted(answers, key=lambda one: one.reply.site):
        for name, value in messages.tensors(answer.weights):
            if not value.is_floating_point():
                sums[name] = torch.maximum(sums[name], value) if name in sums else value
                continue
            types[name] = value.dtype
            weighted = value.double().mul_(answer.reply.examples)
            sums[name] = sums[name].add_(weighted) if name in sums else weighted
    return {name: value.div_(total).to(types[name]) if name in types else value for name, value in sums.items()}


def check_changed(before: Weights, after: Weights, number: int) -> None:
    """Raise StepError where a round has left the weights as they were."""
    if all(torch.equal(before[name], value) for name, value in after.items()):
        raise StepError(f"round {number + 1} changed no weight; is train.lr 0, or do the sites not train?")


def together(figures: Iterable[Figures]) -> Figures:
    """The figures of several sites as if they were one."""
    known = list(figures)
    samples, cases = sum(one.samples for one in known), sum(one.cases for one in known)
    return Figures(
        loss=sum(one.loss * (one.samples / samples) for one in known) if samples else 0.0,
        samples=samples,
        dice=sum(one.dice * (one.cases / cases) for one in known) if cases else 0.0,
        cases=cases,
    )


def better(new: Mapping[str, Figures], best: Mapping[str, Figures]) -> bool:
    """Whether weights validate better than the best so far, by the mean Dice of the sites that validated both."""
    shared = sorted(new.keys() & best.keys())
    if not best or not shared:
        return bool(new) and not best
    return together(new[site] for site in shared).dice > together(best[site] for site in shared).dice


def check_quorum(number: int, wanted: int, answers: Sequence[Answer], failures: Sequence[Failure]) -> None:
    """Raise StepError, with what became of the others, where too few sites have answered."""
    if len(answers) >= wanted:
        return
    told = "; ".join(f"{failure.site}: {failure.why}" for failure in failures)
    raise StepError(
        f"round {number + 1}: {len(answers)} of {len(answers) + len(failures)} sites answered, federate.quorum needs "
        f"{wanted}; the last good model is kept, start again to go on from it ({told})"
    )
