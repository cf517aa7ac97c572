"""Batches of samples gathered from the memory-mapped arrays: no loader processes, no state between batches."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segpipe.config.sections import AugmentConfig, TrainConfig
from segpipe.data import augment
from segpipe.data.dataset import Selection
from segpipe.data.manifest import CaseRecord
from segpipe.data.patches import Patches
from segpipe.data.slices import Loaded, Numbers, Slices
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.runtime import process_group

STREAM = 0x0DE
SAMPLES: dict[str, type[Slices] | type[Patches]] = {"resize": Slices, "patch": Patches}


class Batch(NamedTuple):
    """The part of a batch that belongs to this process: images N,C,h,w float32, labels N,h,w uint8, and the case (index
    into `Batches.cases`) of each sample; `size` is the number of samples over all processes.
    """

    images: Tensor
    labels: Tensor
    cases: Tensor
    size: int


class Batches:
    """Cases of train or val, in batches of train.batch_size samples over all processes, the same whatever their number.

    What a sample is depends on how the data set was made (preprocess.fit). Raises InputError where there is no case or
    none has foreground, unless `foreground` does not ask for it.
    """

    def __init__(
        self,
        selected: Selection,
        config: TrainConfig,
        device: torch.device,
        *,
        training: bool,
        foreground: bool = True,
    ) -> None:
        manifest, split, self.cases = selected.dataset.manifest, selected.split, selected.cases
        if not self.cases:
            raise InputError(f"the {split} split has no case; give more patients or a larger share (split.*)")
        self.selected, self.classes, self.kind = selected, manifest.classes, manifest.kind
        if manifest.preprocess.fit not in SAMPLES:
            raise InputError(f"the data set has preprocess.fit={manifest.preprocess.fit}; preprocess again with patch")
        self.samples = SAMPLES[manifest.preprocess.fit](selected, config, training=training)
        self.size, self.device = config.batch_size, device
        if foreground and not self.samples.areas.any():
            raise InputError(f"the {split} split has no foreground at the network's size; change seed, split.* or size")

    def __len__(self) -> int:
        return len(self.sizes())

    def sizes(self) -> list[int]:
        """Samples of each batch of an epoch. A remainder of one joins the batch before: batch statistics need two."""
        full, rest = divmod(len(self.samples), self.size)
        sizes = [self.size] * full
        if full and rest == 1:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes

    def _split(self, order: Numbers) -> list[Numbers]:
        return np.split(order, np.cumsum(self.sizes())[:-1])

    def in_order(self) -> Iterator[Batch]:
        """All that the cases hold, unchanged, in the order of the arrays: for validation, which leaves nothing out."""
        return self._ahead(self._split(np.arange(len(self.samples.case_of))), self.samples.load)

    def examples(self, count: int) -> tuple[Batch, list[CaseRecord]]:
        """The sample with the most foreground of each of the first `count` cases that have any, and those cases."""
        chosen: list[int] = []
        for number in range(len(self.cases)):
            own = np.flatnonzero(self.samples.case_of == number)
            if len(chosen) < count and self.samples.areas[own].any():
                chosen.append(int(own[self.samples.areas[own].argmax()]))
        loaded = self.samples.load(np.array(chosen))
        return self._move(loaded, len(chosen)), [self.cases[i] for i in loaded.cases]

    def shuffled(self, seed: int, epoch: int, config: AugmentConfig, start: int = 0) -> Iterator[Batch]:
        """An epoch's batches from number `start` on, chosen and ordered by (seed, epoch) alone, and augmented if that
        is enabled.
        """
        order = self.samples.order(np.random.default_rng([seed, epoch, STREAM]))
        parts = self._split(order)[start:]
        loaded = self._ahead(parts, lambda samples: self.samples.draw(samples, seed, epoch, config))
        for samples, batch in zip(parts, loaded, strict=True):
            if not config.enabled:
                yield batch
                continue
            values = augment.draw(config, seed, epoch, _mine(samples).tolist())
            images, labels = augment.apply(batch.images, batch.labels, values, self.samples.size)
            yield _counted(batch._replace(images=images, labels=labels))

    def _ahead(self, parts: list[Numbers], load: Callable[[Numbers], Loaded]) -> Iterator[Batch]:
        """Load this process's share of each part; for a GPU one part ahead of its work."""

        def gather(samples: Numbers) -> Batch:
            return _counted(self._move(load(_mine(samples)), len(samples)))

        if self.device.type == "cpu":
            yield from map(gather, parts)
            return
        with ThreadPoolExecutor(1) as thread:
            waiting = [thread.submit(gather, part) for part in parts[:1]]
            for part in parts[1:]:
                waiting.append(thread.submit(gather, part))
                yield waiting.pop(0).result()
            yield from (last.result() for last in waiting)

    def _move(self, loaded: Loaded, size: int) -> Batch:
        images, labels, cases = (torch.from_numpy(array) for array in loaded)
        if self.device.type == "cuda":
            images, labels, cases = (
                tensor.pin_memory().to(self.device, non_blocking=True) for tensor in (images, labels, cases)
            )
        return Batch(images.float(), labels, cases, size)


def _counted(batch: Batch) -> Batch:
    """In a batch of which this process has no share, every pixel of the sample that stands in is ignored."""
    if process_group.parts(batch.size)[process_group.rank()]:
        return batch
    return batch._replace(labels=torch.full_like(batch.labels, IGNORE))


def _mine(samples: Numbers) -> Numbers:
    """The part of this process; the first sample stands in if there are more processes than samples."""
    part = process_group.parts(len(samples))[process_group.rank()]
    return samples[part.start : part.stop] if part else samples[:1]
