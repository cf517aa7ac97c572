"""Batches gathered from the memory-mapped arrays: no loader processes, no state between batches."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segpipe.config.sections import AugmentConfig, TrainConfig
from segpipe.data import augment
from segpipe.data.dataset import Selection
from segpipe.data.manifest import CaseRecord
from segpipe.data.volume import IGNORE
from segpipe.errors import InputError
from segpipe.runtime import process_group

STREAM = 0x0DE
Samples = NDArray[np.int64]


class Batch(NamedTuple):
    """The part of a batch that belongs to this process: images N,C,h,w float32, labels N,h,w uint8, and the case (index
    into `Batches.cases`) of each slice; `size` is the number of slices over all processes.
    """

    images: Tensor
    labels: Tensor
    cases: Tensor
    size: int


class Batches:
    """Cases of train or val, in batches of train.batch_size slices over all processes, the same whatever their number.

    With `training` an epoch is every slice with foreground, train.oversample times, and train.empty_share of the
    others; without it, every slice once. Slices are numbered through the selected cases; `rows` says where each lies in
    the arrays of the split. Raises InputError where there is no case or none has foreground.
    """

    def __init__(self, selected: Selection, config: TrainConfig, device: torch.device, *, training: bool) -> None:
        dataset, split, self.cases = selected.dataset, selected.split, selected.cases
        if not self.cases:
            raise InputError(f"the {split} split has no case; give more patients or a larger share (split.*)")
        self.classes, self.kind = dataset.manifest.classes, dataset.manifest.kind
        self.images, self.labels = dataset.array(f"{split}_images"), dataset.array(f"{split}_masks")
        self.rows = np.concatenate([np.arange(case.start, case.start + case.shape[0]) for case in self.cases])
        self.case_of = np.repeat(np.arange(len(self.cases)), [case.shape[0] for case in self.cases])
        self.size, self.device = config.batch_size, device
        filled = np.array([bool(_foreground(self.labels[row]).any()) for row in self.rows])
        if not filled.any():
            raise InputError(f"the {split} split has no foreground at the network's size; change seed, split.* or size")
        self.empty = np.flatnonzero(~filled)
        repeats = config.oversample if training else 1
        self.filled = np.concatenate([np.flatnonzero(filled) + n * len(self.rows) for n in range(repeats)])
        self.empties = round(len(self.empty) * (config.empty_share if training else 1))

    def __len__(self) -> int:
        return len(self.sizes())

    def sizes(self) -> list[int]:
        """Slices of each batch of an epoch. A remainder of one joins the batch before: batch statistics need two."""
        full, rest = divmod(len(self.filled) + self.empties, self.size)
        sizes = [self.size] * full
        if full and rest == 1:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes

    def _split(self, order: Samples) -> list[Samples]:
        return np.split(order, np.cumsum(self.sizes())[:-1])

    def in_order(self) -> Iterator[Batch]:
        """The slices in the order of the arrays, unchanged: for validation, which leaves no slice out."""
        return self._ahead(self._split(np.arange(len(self.rows))))

    def examples(self, count: int) -> tuple[Batch, list[CaseRecord]]:
        """The slice with the most foreground of each of the first `count` cases that have any, and those cases."""
        chosen: list[int] = []
        for number, case in enumerate(self.cases):
            if len(chosen) == count:
                break
            areas = _foreground(self.labels[case.start : case.start + case.shape[0]]).sum(axis=(1, 2))
            if areas.any():
                chosen.append(int(np.flatnonzero(self.case_of == number)[areas.argmax()]))
        return self._load(np.array(chosen), len(chosen)), [self.cases[i] for i in self.case_of[chosen]]

    def shuffled(self, seed: int, epoch: int, config: AugmentConfig, start: int = 0) -> Iterator[Batch]:
        """An epoch's batches from number `start` on, chosen and ordered by (seed, epoch) alone, and augmented if that
        is enabled. A slice that is repeated in an epoch is a new sample, with its own augmentation.
        """
        rng = np.random.default_rng([seed, epoch, STREAM])
        chosen = rng.permutation(self.empty)[: self.empties]
        order = rng.permutation(np.concatenate([self.filled, chosen]))
        parts = self._split(order)[start:]
        for samples, batch in zip(parts, self._ahead(parts), strict=True):
            if not config.enabled:
                yield batch
                continue
            values = augment.draw(config, seed, epoch, _mine(samples).tolist())
            images, labels = augment.apply(batch.images, batch.labels, values)
            yield _counted(batch._replace(images=images, labels=labels))

    def _ahead(self, parts: list[Samples]) -> Iterator[Batch]:
        """Gather each part; for a GPU one part ahead of its work."""
        if self.device.type == "cpu":
            yield from map(self._gather, parts)
            return
        with ThreadPoolExecutor(1) as thread:
            waiting = [thread.submit(self._gather, part) for part in parts[:1]]
            for part in parts[1:]:
                waiting.append(thread.submit(self._gather, part))
                yield waiting.pop(0).result()
            yield from (last.result() for last in waiting)

    def _gather(self, samples: Samples) -> Batch:
        """The share of this process."""
        return _counted(self._load(_mine(samples) % len(self.rows), len(samples)))

    def _load(self, slices: Samples, size: int) -> Batch:
        rows = self.rows[slices]
        arrays = np.asarray(self.images[rows]), np.asarray(self.labels[rows]), self.case_of[slices]
        images, labels, cases = (torch.from_numpy(array) for array in arrays)
        if self.device.type == "cuda":
            images, labels, cases = (
                tensor.pin_memory().to(self.device, non_blocking=True) for tensor in (images, labels, cases)
            )
        return Batch(images.float(), labels, cases, size)


def _foreground(labels: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray((labels > 0) & (labels != IGNORE), dtype=np.bool_)


def _counted(batch: Batch) -> Batch:
    """In a batch of which this process has no share, every pixel of the slice that stands in is ignored."""
    if process_group.parts(batch.size)[process_group.rank()]:
        return batch
    return batch._replace(labels=torch.full_like(batch.labels, IGNORE))


def _mine(samples: Samples) -> Samples:
    """The part of this process; the first sample stands in if there are more processes than samples."""
    part = process_group.parts(len(samples))[process_group.rank()]
    return samples[part.start : part.stop] if part else samples[:1]
