"""Sites one after the other in this process, for which a data set's cases are set apart by site."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from segpipe.config.sections import Config
from segpipe.data.dataset import Dataset
from segpipe.errors import InputError, one_line
from segpipe.federation import messages
from segpipe.federation.messages import Reply
from segpipe.federation.rounds import Answer, Failure
from segpipe.federation.site import Place, Site
from segpipe.training.engine import OnBatch
from segpipe.training.learner import Learner


class Simulated:
    """The sites of a data set, in the order of their names; they share a learner, and each remembers what it needs."""

    def __init__(
        self,
        dataset: Dataset,
        names: Sequence[str],
        config: Config,
        learner: Learner,
        folder: Path,
        key: str,
        warn: Callable[[str], None],
    ) -> None:
        """Raises InputError where a site has no case to train on."""
        fresh = learner.state()
        self.sites: list[Site] = []
        for number, name in enumerate(names):
            place = Place(name, dataset, folder / f"{number:04d}", alone=len(names) == 1)
            try:
                self.sites.append(Site(place, config, learner, fresh, key, warn))
            except InputError as error:
                raise InputError(f"site {name}: {error}") from None

    def sizes(self) -> Mapping[str, list[int]]:
        """Samples of each batch of an epoch, at each site."""
        return {site.place.name: site.train.sizes() for site in self.sites}

    def perform(
        self, message: Path, seconds: float, stop: Callable[[], bool], on_batch: OnBatch
    ) -> tuple[list[Answer], list[Failure]]:
        """Let each site do what a message asks, in so many seconds (0: any), and answer beside it; an answer that is
        there already counts. A site that fails, whatever the reason, does not keep the others from it.
        """
        answers, failures = list[Answer](), list[Failure]()
        for number, site in enumerate(self.sites):
            path = message.with_name(f"{number:04d}.safetensors")
            until = time.monotonic() + seconds if seconds else float("inf")

            def too_late(until: float = until) -> bool:
                return stop() or time.monotonic() > until

            if stop():
                raise KeyboardInterrupt
            try:
                if not path.is_file():
                    site.perform(message, path, too_late, on_batch)
                answers.append(Answer(messages.header(path, Reply), path))
            except KeyboardInterrupt:
                if stop() or not seconds:
                    raise
                failures.append(Failure(site.place.name, f"not done after {seconds:g} s (federate.deadline)"))
            except Exception as error:  # of one site, whatever it is; its reason is told
                failures.append(Failure(site.place.name, one_line(error)))
        return answers, failures
