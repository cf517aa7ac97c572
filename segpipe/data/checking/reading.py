"""Read every case of a data set once, and remember all that is wrong with them."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from segpipe.config.sections import Config
from segpipe.data import splits
from segpipe.data.checking import facts, findings
from segpipe.data.checking.facts import Facts
from segpipe.data.checking.findings import Finding
from segpipe.data.manifest import Split
from segpipe.data.readers import Reader
from segpipe.data.volume import Case, Volume
from segpipe.errors import FaultsError, InputError
from segpipe.files.hashes import Progress


class Read(NamedTuple):
    """A case with its content and what is remembered of it."""

    case: Case
    volume: Volume
    facts: Facts


class Check:
    """The cases of a reader with their splits, read one after the other; `faults` has a line for each that is wrong,
    `facts` what is remembered of the others, `findings` what they come to at the end.
    """

    def __init__(self, config: Config, reader: Reader, progress: Progress) -> None:
        """Find the cases. Raises InputError where there is no layout to find any in."""
        found = reader.find()
        self.config, self.reader, self.progress = config, reader, progress
        self.cases, self.faults = found.cases, list(found.faults)
        self.facts: list[Facts] = []
        self.findings: list[Finding] = []
        self._done = 0
        try:
            self.sides = splits.assign(found.cases, config.split, config.seed)
        except InputError as error:
            self.faults.append(str(error))
            self.sides = {case.patient: "train" for case in found.cases}

    def read(self, split: Split) -> Iterator[Read]:
        """The cases of a split with their content, in order, without those that can't be read."""
        cases = [case for case in self.cases if self.sides[case.patient] == split]
        for case, read in _ahead(self._load, cases):
            if isinstance(read, InputError):
                self.faults.append(str(read))
            else:
                self.facts.append(read.facts)
                yield read
            self._done += 1
            self.progress(self._done, len(self.cases), case.name)

    def _load(self, case: Case) -> Read | InputError:
        try:
            volume = self.reader.load(case)
        except InputError as error:
            return error
        split, classes = self.sides[case.patient], len(self.config.data.class_names)
        try:
            return Read(case, volume, facts.measure(case, split, volume, classes, self.config.preprocess))
        except InputError as error:
            return InputError(f"case '{case.name}': {error}")

    def end(self) -> None:
        """Find all that is wrong or odd with what was read: the faults of files, then those of the set."""
        found = [Finding("error", fault) for fault in self.faults]
        if not self.faults and not any(any(case.voxels) for case in self.facts):
            told = f"{self.reader.root}: all {len(self.cases)} masks are empty; nothing to learn"
            found.append(Finding("error", told))
        self.findings = [*found, *findings.of_set(self.facts, self.config)]

    def refuse(self) -> None:
        """Raise FaultsError where there is an error among the findings."""
        errors = [one.told for one in self.findings if one.severity == "error"]
        if errors:
            raise FaultsError(errors)


def _ahead(
    load: Callable[[Case], Read | InputError], cases: Sequence[Case]
) -> Iterator[tuple[Case, Read | InputError]]:
    """Cases with what they are loaded to, in order; on each core one further case is read meanwhile."""
    cores = len(os.sched_getaffinity(0))
    reading: deque[tuple[Case, Future[Read | InputError]]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for case in cases:
            reading.append((case, pool.submit(load, case)))
            if len(reading) > cores:
                first, read = reading.popleft()
                yield first, read.result()
        for first, read in reading:
            yield first, read.result()
