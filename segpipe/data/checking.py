"""Read every case of a data set once, and remember all that is wrong with them."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from segpipe.config.sections import Config
from segpipe.data import splits
from segpipe.data.manifest import Split
from segpipe.data.readers import Reader
from segpipe.data.volume import Case, Volume, foreground
from segpipe.errors import FaultsError, InputError
from segpipe.files.hashes import Progress


class Check:
    """The cases of a reader with their splits, read one after the other; `faults` has a line for each that is wrong.

    `filled` says whether any mask that was read has foreground.
    """

    def __init__(self, config: Config, reader: Reader, progress: Progress) -> None:
        """Find the cases. Raises InputError where there is no layout to find any in."""
        found = reader.find()
        self.reader, self.progress = reader, progress
        self.cases, self.faults = found.cases, list(found.faults)
        self.filled, self._done = False, 0
        try:
            self.sides = splits.assign(found.cases, config.split, config.seed)
        except InputError as error:
            self.faults.append(str(error))
            self.sides = {case.patient: "train" for case in found.cases}

    def read(self, split: Split) -> Iterator[tuple[Case, Volume]]:
        """The cases of a split with their content, in order, without those that can't be read."""
        cases = [case for case in self.cases if self.sides[case.patient] == split]
        for case, volume in _ahead(self.reader, cases):
            if isinstance(volume, InputError):
                self.faults.append(str(volume))
            else:
                self.filled = self.filled or bool(foreground(volume.mask).any())
                yield case, volume
            self._done += 1
            self.progress(self._done, len(self.cases), case.name)

    def end(self) -> None:
        """Raise FaultsError where anything is wrong with what was read, or no mask has any foreground."""
        if not self.faults and not self.filled:
            self.faults.append(f"{self.reader.root}: all {len(self.cases)} masks are empty; nothing to learn")
        if self.faults:
            raise FaultsError(self.faults)


def _ahead(reader: Reader, cases: Sequence[Case]) -> Iterator[tuple[Case, Volume | InputError]]:
    """Cases with their content, or why they have none, in order; one further case is read on each core meanwhile."""
    cores = len(os.sched_getaffinity(0))
    reading: deque[tuple[Case, Future[Volume | InputError]]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for case in cases:
            reading.append((case, pool.submit(_load, reader, case)))
            if len(reading) > cores:
                first, volume = reading.popleft()
                yield first, volume.result()
        for first, volume in reading:
            yield first, volume.result()


def _load(reader: Reader, case: Case) -> Volume | InputError:
    try:
        return reader.load(case)
    except InputError as error:
        return error
