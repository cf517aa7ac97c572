"""Segment any number of files with the functions that evaluation and serving use, and keep what came out as a folder.

Cases stream through: threads read, decode and normalise the next ones and encode and write the last ones while the
network works, and only so many are on the way at a time. Results come in the order of the cases.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from segpipe.data import codecs, components
from segpipe.errors import InputError, one_line
from segpipe.inference.predictor import Predictor, Prepared, Segmentation
from segpipe.inference.quantities import findings
from segpipe.inference.spec import ModelSpec
from segpipe.prediction import comparisons, reading, results, summary
from segpipe.prediction.inputs import Item, suffix
from segpipe.prediction.results import Record, Request
from segpipe.prediction.summary import Outcome

WORKERS = max(2, min(8, os.cpu_count() or 1))
PICTURES_AT_ONCE, VOLUMES_AT_ONCE = 2 * WORKERS, 2
OF_THE_CASE = (InputError, MemoryError, torch.OutOfMemoryError)
Progress = Callable[[int, int, str], None]
A = TypeVar("A")
B = TypeVar("B")


class Ready(NamedTuple):
    """A case on its way to the network; `seconds` is what it has taken so far."""

    item: Item
    case: reading.Case
    prepared: Prepared
    seconds: float


class Segmented(NamedTuple):
    """A case on its way to the disk."""

    item: Item
    case: reading.Case
    segmentation: Segmentation
    seconds: float


def in_order(pool: Executor, work: Callable[[A], B], items: Iterable[A], most: int) -> Iterator[B]:
    """`work` of each item, done in a pool and given in the items' order; at most so many are begun and not taken."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Batch:
    """One request at work in its folder of results."""

    def __init__(self, predictor: Predictor, request: Request, folder: Path, origin: dict[str, str]) -> None:
        self.predictor, self.request, self.folder, self.origin = predictor, request, folder, origin

    def ready(self, item: Item) -> Ready | Record:
        """Read a case and prepare it for the network; its record where it is done already, or can't be."""
        began = time.perf_counter()
        try:
            read = reading.contents(item)
            done = results.known(self.folder, item.case, read.sha256, read.reference_sha256)
            if done:
                return done | {"done": True}
            results.forget(self.folder, item.case)
            case = reading.decode(item, read, self.predictor.spec, self.request.ignore_label)
            prepared = self.predictor.prepare(case.image)
        except OF_THE_CASE as error:
            return self.failed(item, error)
        return Ready(item, case, prepared, time.perf_counter() - began)

    def segmented(self, ready: Ready | Record) -> Segmented | Record:
        """Run the network on a prepared case; a record passes through."""
        if not isinstance(ready, Ready):
            return ready
        began = time.perf_counter()
        try:
            found = self.predictor.label(ready.prepared, self.request.threshold, self.request.tta)
            if not math.isfinite(found.foreground.max()):
                raise InputError("values too large: the network's answer is not a number")
        except OF_THE_CASE as error:
            return self.failed(ready.item, error)
        return Segmented(ready.item, ready.case, found, ready.seconds + time.perf_counter() - began)

    def written(self, segmented: Segmented | Record) -> Record:
        """Measure and write a case, its metadata last; a record passes through."""
        if not isinstance(segmented, Segmented):
            return segmented
        item, case, found, seconds = segmented
        mask = components.clean(found.mask, self.request.largest_component, self.request.min_area)
        record = {
            "case": item.case,
            "status": "ok",
            "error": None,
            **findings(mask, found, case.first),
            "dice": None if case.reference is None else _dice(mask, case.reference, self.predictor.spec),
            "patient": item.patient or item.case,
            "files": [str(path) for path in item.files],
            "sha256": case.sha256,
            "reference": None if item.reference is None else str(item.reference),
            "reference_sha256": case.reference_sha256,
            "shape": list(mask.shape),
            "spacing_mm": case.first.spacing,
            "warnings": list(case.warnings),
            "results": [],
            **self.origin,
            "seconds": round(seconds, 4),
        }
        for name, data in self._files(item, case, mask, record).items():
            results.write(self.folder / name, data)
            record["results"].append(name)
        for path, name in zip(item.files, self._inputs(item), strict=True):
            results.link(path, self.folder / name)
            record["results"].append(name)
        described = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        results.write(results.place(self.folder, "metadata", item.case, ".json"), described.encode())
        return record

    def _files(self, item: Item, case: reading.Case, mask: comparisons.Mask, record: Record) -> dict[str, bytes]:
        """The mask, in the input's geometry, and the picture, by their names in the folder."""
        volume = case.first.nifti is not None
        encoded = codecs.encode_mask(mask, case.first, len(self.predictor.spec.classes))
        files = {f"outputs/{item.case}{'.nii.gz' if volume else '.png'}": encoded}
        if self.request.comparisons:
            found, dice = _told(record), "Dice -" if record["dice"] is None else f"Dice {record['dice']:.3f}"
            title = item.case.rpartition("/")[2]
            picture = comparisons.comparison(case.image[0], mask, case.reference, title, found, dice, volume)
            files[f"comparisons/{item.case}.png"] = picture
        return files

    def _inputs(self, item: Item) -> list[str]:
        """Where a case's files lie in the folder of results."""
        channels = self.predictor.spec.channels
        parts = [f"_{name}" for name in channels] if len(item.files) > 1 else [""]
        return [f"inputs/{item.case}{part}{suffix(path)}" for part, path in zip(parts, item.files, strict=True)]

    def failed(self, item: Item, error: BaseException) -> Record:
        """The record of a case that can't be segmented; nothing of it stays."""
        results.forget(self.folder, item.case)
        reason = one_line(error) if isinstance(error, InputError) else "not enough memory for an image of this size"
        return {"case": item.case, "status": "failed", "error": reason}


def _dice(mask: comparisons.Mask, reference: comparisons.Mask, spec: ModelSpec) -> float | None:
    from segpipe.metrics import overlaps

    value = overlaps.class_mean(overlaps.overlap("dice", overlaps.count(mask, reference, len(spec.classes))))
    return None if math.isnan(value) else value


def _told(record: Record) -> str:
    """What was found, in a few words."""
    for name, unit in (("foreground_ml", "ml"), ("foreground_mm2", "mm²")):
        if record[name] is not None:
            return f"found: {record[name]:,.1f} {unit}"
    return f"found: {record['foreground_voxels']:,} px"


def run(
    predictor: Predictor,
    items: list[Item],
    request: Request,
    folder: Path,
    origin: dict[str, str],
    progress: Progress,
) -> Outcome:
    """Segment all cases into `folder`; those that are done there already are left as they are.

    Writes predictions.csv; `origin` goes into each case's metadata. A case that can't be read or does not fit the model
    is in the table with its reason. Raises InputError where the folder is not this request's.
    """
    began, batch, tally = time.perf_counter(), Batch(predictor, request, folder, origin), summary.Tally()
    most = VOLUMES_AT_ONCE if predictor.spec.kind == "volume" else PICTURES_AT_ONCE
    with (
        results.opened(folder, request),
        ThreadPoolExecutor(WORKERS) as readers,
        ThreadPoolExecutor(WORKERS) as writers,
        results.table(folder) as add,
    ):
        prepared = in_order(readers, batch.ready, items, most)
        for record in in_order(writers, batch.written, map(batch.segmented, prepared), most):
            add(record)
            tally.count(record)
            progress(tally.files, len(items), record["case"])
    return tally.outcome(time.perf_counter() - began)
