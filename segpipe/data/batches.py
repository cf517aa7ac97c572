"""Batches gathered from the memory-mapped arrays: no loader processes, no state between batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.config import AugmentConfig
from segpipe.data import augment
from segpipe.errors import InputError
from segpipe.manifest import Manifest, Split

STREAM = 0x0DE
Samples = NDArray[np.int64]


class Batch(NamedTuple):
    """Images N,C,h,w float32, labels N,h,w uint8, and which case (index into the split) each slice belongs to."""

    images: Tensor
    labels: Tensor
    cases: Tensor


class Batches:
    """One split, in batches of `size` slices.

    Every slice with foreground and `empty_share` of the others make an epoch.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        split: Split,
        size: int,
        device: torch.device,
        empty_share: float = 1.0,
    ) -> None:
        self.cases, self.classes = manifest.of(split), manifest.classes
        if not self.cases:
            raise InputError(f"the {split} split has no case; give more patients or a larger share (split.*)")
        self.images = manifest.array(folder, f"{split}_images")
        self.labels = manifest.array(folder, f"{split}_masks")
        self.case_of = np.repeat(np.arange(len(self.cases)), [case.shape[0] for case in self.cases])
        self.size, self.device = size, device
        filled = np.array([bool(plane.any()) for plane in self.labels])
        self.filled, self.empty = np.flatnonzero(filled), np.flatnonzero(~filled)
        if not filled.any():
            raise InputError(f"the {split} split has no foreground at the network's size; change seed, split.* or size")
        self.empties = round(len(self.empty) * empty_share)

    def __len__(self) -> int:
        return len(self.bounds())

    def bounds(self) -> list[tuple[int, int]]:
        """First and last position of each batch of an epoch.

        A remainder of one joins the batch before it, because batch statistics need two.
        """
        n = len(self.filled) + self.empties
        starts = list(range(0, n, self.size))
        if len(starts) > 1 and n - starts[-1] == 1 and self.size > 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], n], strict=True))

    def in_order(self) -> Iterator[Batch]:
        """An epoch's slices as they lie, unchanged: for validation, which leaves no slice out."""
        for first, last in self.bounds():
            yield self._gather(np.arange(first, last))

    def shuffled(self, seed: int, epoch: int, config: AugmentConfig) -> Iterator[Batch]:
        """An epoch's slices, chosen and ordered by (seed, epoch) alone, augmented where that is enabled."""
        rng = np.random.default_rng([seed, epoch, STREAM])
        chosen = rng.permutation(self.empty)[: self.empties]
        order = rng.permutation(np.concatenate([self.filled, chosen]))
        for first, last in self.bounds():
            samples = order[first:last]
            batch = self._gather(samples)
            if config.enabled:
                values = augment.draw(config, seed, epoch, samples.tolist())
                images, labels = augment.apply(batch.images, batch.labels, values)
                batch = Batch(images, labels, batch.cases)
            yield batch

    def _gather(self, samples: Samples) -> Batch:
        images = torch.from_numpy(np.asarray(self.images[samples])).to(self.device).float()
        labels = torch.from_numpy(np.asarray(self.labels[samples])).to(self.device)
        return Batch(images, labels, torch.from_numpy(self.case_of[samples]).to(self.device))
