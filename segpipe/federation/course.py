"""How far a federation has come: its newest weights, the best ones, what every round showed."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from segpipe.config.sections import TrainConfig
from segpipe.federation import rounds
from segpipe.federation.messages import Figures, Weights
from segpipe.federation.rounds import Answer, Round
from segpipe.recording.artifact_tree import PLANNED
from segpipe.training.checkpoints import Checkpoints
from segpipe.training.engine import EpochReport


class Course:
    """A federation so far. Weights are known to be good only once sites have validated them, in the next round."""

    def __init__(self, checkpoints: Checkpoints, weights: Weights, planned: TrainConfig) -> None:
        self.checkpoints = checkpoints
        self.planned = {name: getattr(planned, name) for name in PLANNED}
        self.weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        self.rounds: list[Round] = []
        self.history: list[EpochReport] = []
        self.best = Weights()
        self.best_figures: dict[str, Figures] = {}
        self.val_cases: dict[str, list[float]] = {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `save` wrote."""
        self.weights, self.best, self.val_cases = state["weights"], state["best"], state["val_cases"]
        self.rounds = [Round.model_validate(one) for one in state["rounds"]]
        self.history = [EpochReport(**report) for report in state["history"]]
        self.best_figures = {name: Figures(**one) for name, one in state["best_figures"].items()}

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "weights": self.weights,
            "best": self.best,
            "val_cases": self.val_cases,
            "rounds": [one.model_dump() for one in self.rounds],
            "history": [asdict(report) for report in self.history],
            "best_figures": {name: one.model_dump() for name, one in self.best_figures.items()},
            "planned": self.planned,
        }
        self.checkpoints.save(len(self.rounds), 0, state)

    def end_round(self, done: Round, weights: Weights) -> None:
        """Take the mean of a round's weights."""
        self.rounds.append(done)
        self.weights = weights
        self.save()

    def end_validation(self, answers: Sequence[Answer]) -> None:
        """Report the newest round, whose weights these sites have validated."""
        figures = {reply.site: reply.received for reply, _ in answers if reply.received}
        last = self.rounds[-1]
        sites = tuple(one.model_copy(update={"validated": figures.get(one.site)}) for one in last.sites)
        self.rounds[-1] = last = last.model_copy(update={"sites": sites})
        best = rounds.better(figures, self.best_figures)
        if best:
            self.best, self.best_figures = self.weights, figures
            self.val_cases = validation_cases(answers)
        self.history.append(_report(last, best))


def validation_cases(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """The Dice of each validation case of each site, NaN where there is none."""
    return {reply.site: [float("nan") if value is None else value for value in reply.cases] for reply, _ in answers}


def _report(done: Round, best: bool) -> EpochReport:
    """A round as a training reports an epoch."""
    trained = rounds.together(one.trained for one in done.sites if one.trained)
    validated = rounds.together(done.validated.values())
    seconds = sum(one.seconds for one in done.sites)
    return EpochReport(
        epoch=done.round,
        train_loss=trained.loss,
        train_dice=trained.dice,
        val_loss=validated.loss,
        val_dice=validated.dice,
        learning_rate=max(one.learning_rate for one in done.sites),
        epoch_time_seconds=done.seconds,
        overfitting_gap=trained.dice - validated.dice,
        images_per_second=done.epochs * sum(one.examples for one in done.sites) / seconds,
        data_wait_share=sum(one.waited for one in done.sites) / seconds,
        ended_ms=done.ended_ms,
        is_best=best,
    )
