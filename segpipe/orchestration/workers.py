"""A training in several processes on this machine: the one that starts and watches them, and what each of them does."""

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.config.sections import Config
from segpipe.errors import SegpipeError, StepError
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.session import Session
from segpipe.runtime import processes, signals

if TYPE_CHECKING:
    from segpipe.recording.artifact_tree import Recorder
    from segpipe.training.engine import EpochReport
    from segpipe.training.trainer import Job

FIGURE = "figure.txt"
FAILED = 1  # exit code of a process that has said why in a line
GRACE_SECONDS = 6


class LostPeerError(StepError):
    """Another process of this training died, and this one with it."""

    def __init__(self) -> None:
        super().__init__("another process of this training died")


def launch(job: "Job") -> str:
    """Run a job in train.processes processes, started again from the last checkpoint when one is lost.

    Raises StepError where they are lost more often than train.max_restarts, Interrupted where a signal ends all.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    knobs = job.config.train
    path = job.checkpoints / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // knobs.processes)))
    found = {number: signal.getsignal(number) for number in signals.NUMBERS}
    handlers = {number: handler for number, handler in found.items() if handler != signal.SIG_IGN}
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=knobs.processes,
        run_id=job.checkpoints.name,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=knobs.max_restarts,
        monitor_interval=0.1,
        signals_to_handle=",".join(number.name for number in handlers),
        shutdown_timeout=GRACE_SECONDS,
    )
    os.environ[processes.DRIVER] = processes.driver()
    try:
        elastic_launch(launcher, sys.executable)("-m", "steps.worker", str(path))
    except SignalException as error:
        raise signals.Interrupted(error.sigval) from None
    except ChildFailedError as error:
        known = error.failures.items()
        causes = ((rank, found) for rank, found in known if found.error_file_data.get("type") != LostPeerError.__name__)
        rank, failure = next(causes, error.get_first_failure())
        own = failure.exitcode == FAILED
        told = failure.message if own else f"process {rank} ended with exit code {failure.exitcode}: {failure.message}"
        raise StepError(told) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return (job.checkpoints / FIGURE).read_text(encoding="utf-8")


def follow(session: Session, config: Config) -> None:
    """Take part in a training whose process 0, started by the same torchrun, records it."""
    from segpipe.runtime import process_group

    accelerator = process_group.start(config.train)
    job: Job | None = process_group.share(None)
    if job is None:
        raise StepError("process 0 has nothing to train")
    if not job.dataset.is_dir():
        from segpipe.tracking import artifacts

        session.store.connect()
        job = job.model_copy(update={"dataset": artifacts.local(job.dataset_uri)})
    try:
        take_part(session.screen, job, accelerator, None)
    except SegpipeError:
        if job.run_id and process_group.lost_one():
            from segpipe.tracking import runs

            session.store.connect()
            runs.end(job.run_id, "FAILED", str(LostPeerError()))
        raise


def take_part(screen: Screen, job: "Job", accelerator: Any, recorder: "Recorder | None") -> str:
    """The share that this process has in a training; process 0 has a recorder. Returns the key figure.

    Several processes can't stop between two steps of their own accord: an interrupt ends them at once.

    Raises LostPeerError for an interrupt, or a broken connection, that is due to the death of another process.
    """
    from segpipe.data.dataset import Dataset
    from segpipe.runtime import process_group
    from segpipe.training import engine, trainer

    opened, reporter = Dataset.open(job.dataset), Reporter(screen)
    try:
        return trainer.run(job, opened, accelerator, recorder, screen.say, reporter, engine.never)
    except (KeyboardInterrupt, RuntimeError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the others' death makes torchrun send, amid the clean-up
        if process_group.lost_one():
            raise LostPeerError from None
        raise


class Reporter:
    """Shows a training: a line for each finished epoch (or `unit`), on a terminal above a bar for the one at work."""

    def __init__(self, screen: Screen, unit: str = "epoch") -> None:
        self.screen, self.unit, self._began, self._first = screen, unit, 0.0, 0.0
        self._advance = screen.progress("train", timed=False) if screen.live else None

    def doing(self, what: str) -> None:
        """Something is done before the first epoch."""
        self.screen.wait(f"train: {what}")

    def epoch(self, epoch: "EpochReport", epochs: int) -> None:
        """An epoch is finished."""
        from segpipe.recording import artifact_tree

        self.screen.say(artifact_tree.line(epoch, epochs, self.unit))

    def batch(self, epoch: int, epochs: int, done: int, batches: int) -> None:
        """So many batches of an epoch, counted from 0, are done."""
        if not self._advance:
            return
        share = (epoch + done / batches) / epochs
        if not self._began:
            self._began, self._first = time.monotonic(), share
        passed = share - self._first
        left = (time.monotonic() - self._began) * (1 - share) / passed if passed else 0.0
        told = f", {_duration(left)} left" if left else ""
        self._advance(done, batches, f"{self.unit} {epoch + 1}/{epochs}{told}")


def _duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes}:{rest:02d} min"


def work(session: Session, path: Path) -> None:
    """Be one of several processes that `launch` has started, with the job in a file."""
    from segpipe.recording import offline
    from segpipe.runtime import process_group
    from segpipe.training.trainer import Job

    job = Job.model_validate_json(path.read_bytes())
    accelerator = process_group.start(job.config.train)
    if process_group.rank():
        take_part(session.screen, job, accelerator, None)
        return
    with ExitStack() as stack:
        recorder: Recorder = offline.FolderRecorder(job.record)
        if job.run_id:
            from segpipe.orchestration import step_log
            from segpipe.recording.spool import Spool

            session.store.connect()
            stack.enter_context(step_log.joining(job.config.tracking.outputs, job.run_id))
            recorder = Spool(job.run_id, job.record, session.say)
        figure = take_part(session.screen, job, accelerator, recorder)
    (job.checkpoints / FIGURE).write_text(figure, encoding="utf-8")
