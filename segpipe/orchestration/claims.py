"""Who works on a result right now: a claim beside the key, on the run of the driver that works on it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from segpipe.runtime import processes
from segpipe.tracking import experiments, mlflow_sentences, run_tags
from segpipe.tracking.one_at_a_time import Contender, Entry, exclusive

CLAIM = "segpipe.claim."


class DriverTags:
    """Tags of the running runs of drivers as a board. A living step of the key without a driver is an entry too."""

    def __init__(self, key: str, run_id: str) -> None:
        self.key, self.tag, self.run_id, self.client = key, f"{CLAIM}{key[:16]}", run_id, MlflowClient()

    def look(self) -> tuple[bool, dict[str, Entry]]:
        known = experiments.built_on()
        drivers, steps = (
            {run.info.run_id: run.data.tags for run in self.client.search_runs(known, query)}
            for query in (
                f"tags.`{self.tag}` LIKE '%' and attributes.status = 'RUNNING'",
                f"tags.`{run_tags.KEY}` = '{self.key}' and attributes.status = 'RUNNING'",
            )
        )
        own = drivers.pop(self.run_id, None) or self.client.get_run(self.run_id).data.tags
        claims = {run: Entry(tags[self.tag], tags) for run, tags in drivers.items() if self.tag in tags}
        return self.tag in own, claims | {run: Entry("", tags) for run, tags in steps.items() if processes.alive(tags)}

    def write(self, beat: int) -> None:
        self.client.set_tag(self.run_id, self.tag, str(beat))

    def remove(self) -> None:
        try:
            self.client.delete_tag(self.run_id, self.tag)
        except MlflowException as error:
            if not mlflow_sentences.is_missing(error):
                raise

    def discard(self, other: str) -> None:
        """Leave it: it ends with its run, whose driver would write the same tag in a later attempt."""


def claimed(
    key: str,
    run_id: str,
    say: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    hurry: Callable[[BaseException], None] = lambda _error: None,
) -> AbstractContextManager[Contender]:
    """Inside, nobody else alive who asks with the same key is, on any machine.

    The claim is a tag of the running run `run_id`, and the wait ends with what `sleep` raises.
    """
    return exclusive(
        DriverTags(key, run_id),
        lambda other, entry: say(f"waits for run {other} ({entry.owner()}), which is at work on the same"),
        sleep,
        hurry=hurry,
    )
