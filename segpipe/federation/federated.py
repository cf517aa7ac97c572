"""A federation as a training: rounds of sites that train the same network, recorded like any other training."""

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from segpipe.data.batches import Batches
from segpipe.data.dataset import Dataset
from segpipe.errors import InputError, StepError
from segpipe.federation import rounds, site
from segpipe.federation.course import Course, validation_cases
from segpipe.federation.messages import Task
from segpipe.federation.rounds import Round
from segpipe.federation.server import Server
from segpipe.federation.simulated import Simulated
from segpipe.inference.predictor import Predictor
from segpipe.models import architectures, losses
from segpipe.recording.artifact_tree import ROUNDS, Journal, Recorder
from segpipe.training import precision, trainer
from segpipe.training.checkpoints import Checkpoints
from segpipe.training.engine import EpochReport, FitResult
from segpipe.training.learner import Learner
from segpipe.training.trainer import Job, Watcher

if TYPE_CHECKING:
    from accelerate import Accelerator

UNNAMED = "site"


def run(
    job: Job,
    dataset: Dataset,
    accelerator: "Accelerator",
    recorder: Recorder,
    say: Callable[[str], None],
    watcher: Watcher,
    stop: Callable[[], bool],
) -> str:
    """Train at the sites of the job's dataset, round by round, record through `recorder`, and return the key figure.

    Raises InputError for what a federation can't do or a site has no case for, StepError where too few sites answer:
    what was reached is kept, and goes on from there when it is started again.
    """
    config, device, names = job.config, accelerator.device, dataset.manifest.sites(job.config.federate.sites)
    rounds.needed(config.federate, names)
    if names == (UNNAMED,):
        raise InputError(
            "federate.strategy: the data set names no sites; give each case its own: cases.csv, column site"
        )
    losses.check(config.loss, len(dataset.manifest.classes))
    train = Batches(dataset.where(split="train", site=names), config.train, device, training=True)
    val = Batches(dataset.where(split="val", site=names), config.train, device, training=False)
    checkpoints = Checkpoints(job.checkpoints / "server", job.key, say)
    state = checkpoints.newest()
    network = trainer.build(config, dataset.manifest, pretrained=state is None)
    if state is None:
        watcher.doing("timing some steps")
    found = state["planned"] if state else {"precision": precision.choose(network, train, config, accelerator)}
    planned = config.train.model_copy(update={"epochs": config.epochs, **found})
    knobs = config.model_copy(update={"train": planned})
    learner, shown = Learner(network, planned, accelerator), copy.deepcopy(network)
    sites = Simulated(dataset, names, knobs, learner, job.checkpoints / "sites", job.key, say)
    for name, sizes in sites.sizes().items():
        _check_batches(config, name, sizes)
    course = Course(checkpoints, site.gather(learner), planned)
    if state:
        course.restore(state)
    server = Server(course, sites, knobs, job.checkpoints / "round", say, watcher)
    journal = Journal(recorder, config, val, planned, unit="round", count=server.count)
    journal.begin(train, trainer.facts(planned.precision, network, device) | describe(dataset, names))
    predictor = Predictor(trainer.describe(config, dataset.manifest, names), shown, device)

    def report() -> None:
        shown.load_state_dict(site.evaluated(course.weights))
        watcher.epoch(course.history[-1], server.count)
        journal.epoch(course.history, shown, predictor)
        record(recorder, course.rounds[-1], course.history[-1])

    try:
        server.go_on(report, stop)
    finally:
        with recorder.files() as folder:
            done = [*course.rounds, server.tried] if server.tried else course.rounds
            (folder / ROUNDS).parent.mkdir(parents=True)
            (folder / ROUNDS).write_text(
                json.dumps([json.loads(one.model_dump_json()) for one in done], indent=1), encoding="utf-8"
            )
    best, by_site = conclude(server, stop)
    values = {name: iter(dice) for name, dice in by_site.items()}
    val_cases = [next(values.get(case.site, iter(())), math.nan) for case in val.cases]
    weights = site.evaluated(course.best)
    shown.load_state_dict(weights)
    result = FitResult(best, weights, val_cases, course.history)
    journal.finish(result, predictor, trainer.milliseconds(predictor, val))
    return f"val Dice {best.val_dice:.3f} in round {best.epoch + 1} of {len(result.history)}"


def describe(dataset: Dataset, sites: Sequence[str]) -> dict[str, str]:
    """The sites with their numbers of cases, as a parameter."""
    counts = {name: {s: len(dataset.where(split=s, site=name).cases) for s in ("train", "val")} for name in sites}
    return {"federation.sites": json.dumps(counts)}


def record(recorder: Recorder, done: Round, report: EpochReport) -> None:
    """Record the figures of a round, of all sites together and of each."""
    together = {"train_loss": report.train_loss, "train_dice": report.train_dice}
    together |= {"val_loss": report.val_loss, "val_dice": report.val_dice}
    recorder.metrics({f"round_{name}": value for name, value in together.items()}, done.round, done.ended_ms)
    for one in done.sites:
        values = {
            f"round_{split}_{name}": value
            for split, figures in (("train", one.trained), ("val", one.validated))
            if figures
            for name, value in (("loss", figures.loss), ("dice", figures.dice))
        }
        if values:
            recorder.metrics(values, done.round, done.ended_ms, one.site)


def conclude(server: Server, stop: Callable[[], bool]) -> tuple[EpochReport, Mapping[str, list[float]]]:
    """What the best round showed, with the Dice of each site's validation cases, in order. Where sites have layers of
    their own, the network that is saved has the mean of them, and is validated as it is.
    """
    course = server.course
    best = next((report for report in reversed(course.history) if report.is_best), None)
    if best is None:
        raise StepError("no round was validated: the sites with cases for validation did not answer")
    if server.config.federate.strategy != "fedbn":
        return best, course.val_cases
    _, answers, _ = server.ask(Task(kind="confirm", round=best.epoch + 1), course.best, stop)
    found = rounds.together(reply.received for reply, _ in answers if reply.received)
    gap = best.train_dice - found.dice
    best = replace(best, val_loss=found.loss, val_dice=found.dice, overfitting_gap=gap)
    return best, validation_cases(answers)


def _check_batches(config: Config, site: str, sizes: Sequence[int]) -> None:
    try:
        architectures.check_batches(config.model, set(sizes))
    except InputError as error:
        raise InputError(f"site {site}: {error}") from None
