"""Who works on a result right now: a claim beside the key, on the run of the driver that works on it."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from segpipe.registry import lock
from segpipe.runtime import processes
from segpipe.tracking import connection, run_tags, runs

if TYPE_CHECKING:
    from mlflow.entities import Run

CLAIM = "segpipe.claim."
PAUSE, BEAT = 1.0, 10.0  # seconds between two looks at another's claim, and between two signs of life
DEAD_AFTER = 60.0  # seconds without a sign of life until a claim from another machine does not count


class Claim:
    """The wish of one driver, by its run, to be the only one that works on a key."""

    def __init__(self, key: str, run_id: str) -> None:
        self.key, self.tag, self.run_id, self.client = key, f"{CLAIM}{key[:16]}", run_id, MlflowClient()
        self.known: dict[str, tuple[str, float]] = {}

    def holder(self) -> "Run | None":
        """Another run that works on the key, as far as can be seen from here: of a driver, or of a step that has lost
        its driver or never had one.
        """
        experiments = runs.built_on()
        drivers, steps = (
            self.client.search_runs(experiments, f"{tag} and attributes.status = 'RUNNING'")
            for tag in (f"tags.`{self.tag}` LIKE '%'", f"tags.`{run_tags.KEY}` = '{self.key}'")
        )
        at_work = (run for run in drivers if run.info.run_id != self.run_id and self._counts(run))
        return next(at_work, next((run for run in steps if processes.alive(run.data.tags)), None))

    def _counts(self, run: "Run") -> bool:
        alive = processes.alive(run.data.tags)
        if alive is not None:
            return alive
        now, beat = lock.awake_or_not(), run.data.tags[self.tag]
        before, since = self.known.get(run.info.run_id, ("", now))
        self.known[run.info.run_id] = (beat, since if beat == before else now)
        return now - self.known[run.info.run_id][1] < DEAD_AFTER

    def take(self) -> bool:
        """Claim the key unless somebody else has, perhaps in this very moment: of two who write and then look, at least
        one sees the other.
        """
        self.show(0)
        if not self.holder():
            return True
        self.remove()
        return False

    def show(self, beat: int) -> None:
        """Write a sign of life."""
        self.client.set_tag(self.run_id, self.tag, str(beat))

    def remove(self) -> None:
        """Give the key back; a claim that is gone is fine."""
        try:
            self.client.delete_tag(self.run_id, self.tag)
        except MlflowException as error:
            if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                raise


@contextmanager
def claimed(
    key: str, run_id: str, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Inside, nobody else alive who asks with the same key is, on any machine.

    The claim is a tag of the running run `run_id`, and the wait ends with what `sleep` raises.
    """
    claim, told = Claim(key, run_id), False
    try:
        while True:
            if other := claim.holder():
                if not told:
                    say(_told(other))
                told = True
                sleep(PAUSE)
                continue
            if claim.take():
                break
            sleep(random.uniform(0, PAUSE))  # noqa: S311  # so that two who have met part
        with _alive(claim):
            yield
    except BaseException as error:
        connection.hurry_after(error)
        with suppress(MlflowException):  # a claim that stays ends with its run
            claim.remove()
        raise
    claim.remove()


def _told(run: "Run") -> str:
    tags = run.data.tags
    host, pid = (tags.get(tag, "unknown") for tag in (processes.HOST, processes.PID))
    return f"waits for run {run.info.run_id} (host {host}, pid {pid}), which is at work on the same"


@contextmanager
def _alive(claim: Claim) -> Iterator[None]:
    """Inside, a thread raises the counter of a claim."""
    done = threading.Event()

    def beat() -> None:
        count = 0
        while not done.wait(BEAT):
            count += 1
            try:
                claim.show(count)
            except MlflowException:  # a store that is away for a while: the next sign of life is as good
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
