"""Segment any number of files with the functions that evaluation and serving use, and write the results to a folder.

While the network works, threads read, decode and normalise the next cases and encode and write the last ones; the
number of cases in flight is bounded. Results come in the order of the cases.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

import torch

from segpipe.data import codecs, components
from segpipe.errors import InputError, one_line
from segpipe.inference.predictor import Predictor, Prepared, Segmentation
from segpipe.inference.quantities import findings
from segpipe.inference.spec import ModelSpec
from segpipe.metrics import overlaps
from segpipe.prediction import comparisons, reading, results
from segpipe.prediction.inputs import Item, suffix
from segpipe.prediction.results import Record, Request
from segpipe.prediction.summary import Outcome

WORKERS = max(2, min(8, os.cpu_count() or 1))
PICTURES_AT_ONCE, VOLUMES_AT_ONCE = 2 * WORKERS, 2
OF_THE_CASE = (InputError, MemoryError, torch.OutOfMemoryError)
Progress = Callable[[int, int, str], None]
A = TypeVar("A")
B = TypeVar("B")


class Stage(NamedTuple, Generic[A]):
    """A case between two stages: what the last one made of it, and the seconds it has taken so far."""

    case: reading.Case
    result: A
    seconds: float


def in_order(pool: Executor, work: Callable[[A], B], items: Iterable[A], most: int) -> Iterator[B]:
    """`work` of each item, done in a pool, in the items' order; at most `most` are begun and not taken yet."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Batch:
    """One request at work in its output folder."""

    def __init__(
        self, predictor: Predictor, request: Request, folder: Path, origin: dict[str, str], seen: Mapping[str, str]
    ) -> None:
        self.predictor, self.request, self.folder, self.origin, self.seen = predictor, request, folder, origin, seen

    def prepare(self, item: Item) -> Stage[Prepared] | Record:
        """Read a case and prepare it for the network; its record where it is done already or fails."""
        began = time.perf_counter()
        try:
            contents = reading.read(item)
            done = results.known(self.folder, item.case, contents.sha256, contents.reference_sha256)
            if done:
                return done | {"done": True}
            results.forget(self.folder, item.case)
            case = reading.decode(item, contents, self.predictor.spec, self.request.ignore_label)
            prepared = self.predictor.prepare(case.image, case.first.spacing)
        except OF_THE_CASE as error:
            return self._fail(item, error)
        return Stage(case, prepared, time.perf_counter() - began)

    def segment(self, prepared: Stage[Prepared] | Record) -> Stage[Segmentation] | Record:
        """Run the network on a prepared case; a record passes through."""
        if isinstance(prepared, dict):
            return prepared
        began = time.perf_counter()
        try:
            found = self.predictor.label(prepared.result, *self.request.labelling[:2])
            if not math.isfinite(found.foreground.max()):
                raise InputError("values too large: the network's answer is not a number")
        except OF_THE_CASE as error:
            return self._fail(prepared.case.item, error)
        return Stage(prepared.case, found, prepared.seconds + time.perf_counter() - began)

    def write(self, segmented: Stage[Segmentation] | Record) -> Record:
        """Measure and write a case, its metadata last; a record passes through."""
        if isinstance(segmented, dict):
            return segmented
        case, found, seconds = segmented
        item = case.item
        mask = components.clean(found.mask, self.request.largest_component, self.request.min_area)
        record = {
            "case": item.case,
            "status": "ok",
            "error": None,
            **findings(mask, found, case.first, self.predictor.spec.classes),
            "dice": None if case.reference is None else _dice(mask, case.reference, self.predictor.spec),
            "split": next((self.seen[part] for part in case.parts if part in self.seen), None),
            "patient": item.patient or item.case,
            "files": [str(path) for path in item.files],
            "sha256": case.sha256,
            "reference": None if item.reference is None else str(item.reference),
            "reference_sha256": case.reference_sha256,
            "shape": list(mask.shape),
            "spacing_mm": case.first.spacing,
            "warnings": [*case.warnings, *self.request.labelling.less_than(self.predictor.spec.labelling)],
            "unlike": case.unlike,
            "results": [],
            **self.origin,
            "seconds": round(seconds, 4),
        }
        parts = [f"_{name}" for name in self.predictor.spec.channels] if len(item.files) > 1 else [""]
        inputs = [f"inputs/{item.case}{part}{suffix(path)}" for part, path in zip(parts, item.files, strict=True)]
        outputs = self._outputs(case, mask, record)
        for name, data in outputs.items():
            results.write(self.folder / name, data)
        for name, path in zip(inputs, item.files, strict=True):
            results.link(path, self.folder / name)
        record["results"] = [*outputs, *inputs]
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        results.write(results.metadata(self.folder, item.case), text.encode())
        return record

    def _outputs(self, case: reading.Case, mask: comparisons.Mask, record: Record) -> dict[str, bytes]:
        """The mask, in the input's geometry, and the picture, by their names in the folder."""
        geometry, name = case.first.geometry, case.item.case
        encoded = codecs.encode_mask(mask, case.first, len(self.predictor.spec.classes))
        files = {f"outputs/{name}{geometry.suffix}": encoded}
        if self.request.comparisons:
            size, dice = _size(record), "Dice -" if record["dice"] is None else f"Dice {record['dice']:.3f}"
            title = name.rpartition("/")[2]
            picture = comparisons.draw(
                case.image, mask, case.reference, title, size, dice, geometry.volume, self.predictor.spec.classes
            )
            files[f"comparisons/{name}.png"] = picture
        return files

    def _fail(self, item: Item, error: BaseException) -> Record:
        """Remove what there is of a case that can't be segmented; its record."""
        results.forget(self.folder, item.case)
        reason = one_line(error) if isinstance(error, InputError) else "not enough memory for an image of this size"
        return {"case": item.case, "status": "failed", "error": reason}


def _dice(mask: comparisons.Mask, reference: comparisons.Mask, spec: ModelSpec) -> float | None:
    value = overlaps.class_mean(overlaps.overlap("dice", overlaps.count(mask, reference, len(spec.classes))))
    return None if math.isnan(value) else value


def _size(record: Record) -> str:
    """The size of what was found, with its unit."""
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
    seen: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """Segment all cases into `folder`, except those that are done there already.

    Writes predictions.csv; `origin` goes into each case's metadata, `seen` is the split of each file, by its SHA-256,
    in the data set that the model was trained on. A case that can't be read or does not fit the model
    is in the table with its reason. Raises InputError where the folder is not this request's.
    """
    began, batch, outcome = time.perf_counter(), Batch(predictor, request, folder, origin, seen), Outcome()
    most = VOLUMES_AT_ONCE if predictor.spec.kind == "volume" else PICTURES_AT_ONCE
    with (
        results.holding(folder, request),
        ThreadPoolExecutor(WORKERS) as readers,
        ThreadPoolExecutor(WORKERS) as writers,
        results.table(folder, predictor.spec.classes) as add,
    ):
        prepared = in_order(readers, batch.prepare, items, most)
        for record in in_order(writers, batch.write, map(batch.segment, prepared), most):
            add(record)
            outcome.count(record)
            progress(outcome.files, len(items), record["case"])
    outcome.seconds = time.perf_counter() - began
    return outcome
