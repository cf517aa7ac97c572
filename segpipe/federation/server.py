"""The server of a federation: it asks the sites, averages their weights, and knows which round was best."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.federation import messages, rounds
from segpipe.federation.course import Course
from segpipe.federation.messages import Task, Weights
from segpipe.federation.rounds import Answer, Failure, Round, SiteRound
from segpipe.federation.simulated import Simulated
from segpipe.training import schedule
from segpipe.training.trainer import Watcher


class Server:
    """Goes through the rounds of a federation; `tried` is a round that had too few sites, for the records."""

    def __init__(
        self,
        course: Course,
        sites: Simulated,
        config: Config,
        folder: Path,
        say: Callable[[str], None],
        watcher: Watcher,
    ) -> None:
        self.course, self.sites, self.config, self.folder, self.say = course, sites, config, folder, say
        self.watcher, self.names = watcher, list(sites.sizes())
        self.quorum = rounds.needed(config.federate, self.names)
        self.count = -(-config.train.epochs // config.federate.local_epochs)
        self.tried: Round | None = None

    def go_on(self, report: Callable[[], None], stop: Callable[[], bool]) -> None:
        """Do the rounds that are left; `report` is called for each that sites have validated.

        Raises StepError where too few sites answer, KeyboardInterrupt where `stop` says so; what was reached stays.
        """
        federate, course = self.config.federate, self.course
        if course.history:
            report()
        while True:
            number = len(course.rounds)
            done, left = number == self.count, self.config.train.epochs - number * federate.local_epochs
            epochs = min(federate.local_epochs, max(0, left))
            task = Task(kind="validate" if done else "train", round=number, epochs=epochs)
            began = time.perf_counter()
            message, answers, failures = self.ask(task, course.weights, stop)
            if number:
                course.end_validation(answers)
                report()
            if done or self._lost_patience():
                shutil.rmtree(message.parent)
                return
            weights = rounds.average(answers)
            rounds.check_changed(course.weights, weights, number)
            course.end_round(self._describe(task, message, answers, failures, began), weights)
            shutil.rmtree(message.parent)

    def ask(self, task: Task, weights: Weights, stop: Callable[[], bool]) -> tuple[Path, list[Answer], list[Failure]]:
        """Send weights with a task; the answers that are as they should be, and who gave none."""
        federate, began = self.config.federate, time.perf_counter()
        message = self.folder / f"{task.round:06d}_{task.kind}" / "message.safetensors"
        messages.write(message, task, weights)
        seconds = (0 if task.round else federate.first_deadline) or federate.deadline
        every = {name: len(sizes) * max(1, task.epochs) for name, sizes in self.sites.sizes().items()}
        passed = 0

        def on_batch(_epoch: int, _epochs: int, _done: int, _batches: int) -> None:
            nonlocal passed
            passed += 1
            self.watcher.batch(task.round, self.count, passed, sum(every.values()))

        found, failures = self.sites.perform(message, seconds, stop, on_batch)
        answers = list[Answer]()
        for answer in found:
            try:
                rounds.check(answer, task.round, weights if task.kind == "train" else {})
                answers.append(answer)
            except InputError as error:
                answer.weights.unlink()
                failures.append(Failure(answer.reply.site, str(error)))
        for failure in failures:
            self.say(f"round {task.round + 1}: without {failure.site}: {failure.why}")
        if len(answers) < self.quorum:
            self.tried = self._describe(task, message, answers, failures, began)
        rounds.check_quorum(task.round, self.quorum, answers, failures)
        return message, answers, failures

    def _lost_patience(self) -> bool:
        knobs, dice = self.config.train, [report.val_dice for report in self.course.history]
        return bool(knobs.patience) and schedule.waited(dice, knobs.min_delta) >= knobs.patience

    def _describe(
        self, task: Task, message: Path, answers: list[Answer], failures: list[Failure], began: float
    ) -> Round:
        known = {
            reply.site: SiteRound(
                site=reply.site,
                examples=reply.examples,
                bytes_up=weights.stat().st_size,
                seconds=reply.seconds,
                waited=reply.waited,
                learning_rate=reply.learning_rate,
                trained=reply.trained,
            )
            for reply, weights in answers
        } | {site: SiteRound(site=site, failed=why) for site, why in failures}
        return Round(
            round=task.round,
            epochs=task.epochs,
            seconds=time.perf_counter() - began,
            ended_ms=round(time.time() * 1000),
            bytes_down=message.stat().st_size,
            sites=tuple(known[name] for name in self.names),
        )
