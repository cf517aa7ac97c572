"""Samples of a data set whose slices were fitted to the network: every sample is a slice."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.config.sections import AugmentConfig, TrainConfig
from segpipe.data import context
from segpipe.data.dataset import Selection
from segpipe.data.volume import foreground

Numbers = NDArray[np.int64]


class Loaded(NamedTuple):
    """Images N,C,H,W float16, labels N,H,W uint8, and the case of each, an index into the selected cases."""

    images: NDArray[np.float16]
    labels: NDArray[np.uint8]
    cases: Numbers


class Slices:
    """The slices of the selected cases, numbered through them, each with its neighbours where preprocess.context asks
    for them.

    With `training` an epoch is every slice with foreground, train.oversample times, and train.empty_share of the
    others; without it, every slice once.
    """

    def __init__(self, selected: Selection, config: TrainConfig, *, training: bool) -> None:
        dataset, split = selected.dataset, selected.split
        self.size, self.context = dataset.manifest.preprocess.size, dataset.manifest.preprocess.context
        self.images, self.labels = dataset.array(f"{split}_images"), dataset.array(f"{split}_masks")
        self.rows = np.concatenate([np.arange(case.start, case.start + case.shape[0]) for case in selected.cases])
        self.case_of = np.repeat(np.arange(len(selected.cases)), [case.shape[0] for case in selected.cases])
        ends = [(case.start, case.start + case.shape[0] - 1) for case in selected.cases]
        self.first, self.last = np.array(ends)[self.case_of].T
        self.areas = np.array([int(foreground(self.labels[row]).sum()) for row in self.rows])
        self.empty = np.flatnonzero(self.areas == 0)
        repeats = config.oversample if training else 1
        filled = np.flatnonzero(self.areas)
        self.filled = np.concatenate([filled + n * len(self.rows) for n in range(repeats)])
        self.empties = round(len(self.empty) * (config.empty_share if training else 1))

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.filled) + self.empties

    def order(self, rng: np.random.Generator) -> Numbers:
        """The samples of an epoch: a slice that is repeated is a new sample, by the number of slices further on."""
        chosen = rng.permutation(self.empty)[: self.empties]
        return rng.permutation(np.concatenate([self.filled, chosen]))

    def load(self, numbers: Numbers) -> Loaded:
        """Slices by their numbers."""
        rows = self.rows[numbers]
        seen = context.around(rows, self.first[numbers], self.last[numbers], self.context)
        images = np.asarray(self.images[seen])  # N,2 * context + 1,C,H,W
        images = images.reshape(len(rows), -1, *images.shape[3:])
        return Loaded(images, np.asarray(self.labels[rows]), self.case_of[numbers])

    def draw(self, samples: Numbers, _seed: int, _epoch: int, _config: AugmentConfig) -> Loaded:
        """The slices of some samples, the same in every epoch."""
        return self.load(samples % len(self.rows))
