"""Images/s of a batch prediction beside the bare forward pass of its network, and what each part of a case costs.

    python -m benchmarks.predict [--threads 1]
    python -m benchmarks.predict --small --files 10000

Baseline: the same network on the same pictures, prepared and in memory, one at a time and in batches, in the same
process and the same rounds. `--small` is for memory: a tiny network and many small pictures. What the tables show and
how they are taken: docs/performance.md.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import served
from benchmarks.train_contenders import interleaved, least, ratio, table
from benchmarks.train_throughput import FLAT, field, most
from segpipe.config.sections import Config
from segpipe.inference.predictor import Predictor
from segpipe.prediction import batch, inputs, reading
from segpipe.prediction.batch import Batch, Stage
from segpipe.prediction.inputs import Item
from segpipe.prediction.results import Request

BATCH, SAMPLES = 16, 10  # files of a batch, and of the round that does not count; how often memory is told
PARTS = ("read and digest", "decode", "prepare", "forward, there and back", "write", "write, with a comparison")
SMALL = {"encoder": "tu-test_resnet", "depth": 3, "size": 32, "side": 64}
Progress = Callable[[int, int, str], None]
Milliseconds = NDArray[np.float64]
ONE, MANY, PLAIN, PICTURED = "forward pass", f"forward pass, batches of {BATCH}", "predict", "predict, comparisons"


class Work(NamedTuple):
    """A network, a folder of pictures as predict finds them, and room for results."""

    predictor: Predictor
    items: list[Item]
    folder: Path

    def request(self, comparisons: bool) -> Request:
        return Request(
            input=str(self.folder),
            weights_sha256="",
            spec_sha256="",
            threshold=self.predictor.spec.threshold,
            tta=False,
            largest_component=False,
            min_area=0,
            comparisons=comparisons,
            ignore_label=-1,
        )

    def predict(self, items: list[Item], comparisons: bool, progress: Progress) -> float:
        """Seconds of a prediction whose results are not kept. Raises SystemExit where a file fails."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            began = time.perf_counter()
            outcome = batch.run(self.predictor, items, self.request(comparisons), Path(name), {}, progress)
            seconds = time.perf_counter() - began
        if outcome.failures:
            raise SystemExit(f"{len(outcome.failures)} of {outcome.files} files failed: {outcome.failures[0]}")
        return seconds


def write(folder: Path, files: int, side: int, channels: int) -> None:
    folder.mkdir()
    for number in range(files):
        data = served.png(served.picture(side, channels, number))
        (folder / f"picture{number:06}.png").write_bytes(data)


def found(config: Config, predictor: Predictor, folder: Path) -> Work:
    items = inputs.find(folder / "input", predictor.spec, config)
    return Work(predictor, items, folder)


def forward(work: Work, tensors: Sequence[Tensor]) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        for batch in tensors:
            work.predictor.model(batch)
    return time.perf_counter() - began


def throughput(work: Work, rounds: int) -> None:
    """All files in a round, and some in the one that does not count."""
    seen = [served.as_seen(work.predictor, item.files[0].read_bytes()) for item in work.items]
    joined = [b.contiguous(memory_format=torch.channels_last) for b in torch.cat(seen).split(BATCH)]
    files = len(work.items)

    def alone(batches: Sequence[Tensor], few: int) -> Callable[[int], float]:
        return lambda number: forward(work, batches[: None if number else few])

    def predicted(comparisons: bool) -> Callable[[int], float]:
        return lambda number: work.predict(work.items[: None if number else BATCH], comparisons, quiet)

    contenders = {ONE: alone(seen, BATCH), MANY: alone(joined, 1), PLAIN: predicted(False), PICTURED: predicted(True)}
    seconds, rows = interleaved(contenders, rounds), []
    for name, own in seconds.items():
        row = [name, f"{files / statistics.median(own):.1f}"]
        for base in (ONE, MANY):
            beside, spread = ratio(seconds[base], own)
            row += [f"{beside:.3f}", spread, least(beside, 0.9) if name in (PLAIN, PICTURED) else ""]
        rows.append(row)
    table(
        f"{files} files, {rounds} rounds|images/s|beside one at a time|range|goal|beside batches of {BATCH}|range|goal",
        rows,
    )


def quiet(_done: int, _total: int, _case: str) -> None:
    """No bar."""


def parts(work: Work, files: int) -> None:
    """Milliseconds of each part of a case, one after the other and nothing beside it."""
    taken = [clocked(work, item) for item in work.items[: files + 1]]
    rows = [[name, f"{ms:.2f}"] for name, ms in zip(PARTS, np.median(taken[1:], axis=0), strict=True)]
    table(f"part of a case|ms, median of {files}", rows)


def clocked(work: Work, item: Item) -> Milliseconds:
    """Of each of PARTS."""
    predictor, marks = work.predictor, [time.perf_counter()]
    read = reading.read(item)
    marks.append(time.perf_counter())
    case = reading.decode(item, read, predictor.spec, -1)
    marks.append(time.perf_counter())
    prepared = predictor.prepare(case.image)
    marks.append(time.perf_counter())
    done = Stage(case, predictor.label(prepared, predictor.spec.threshold), 0.0)
    marks.append(time.perf_counter())
    with tempfile.TemporaryDirectory(dir=work.folder) as name:
        for comparisons in (False, True):
            Batch(predictor, work.request(comparisons), Path(name) / str(comparisons), {}).write(done)
            marks.append(time.perf_counter())
    return 1000 * np.diff(marks)


def memory(work: Work) -> None:
    """Anonymous memory of this process while it goes through all files."""
    samples, began = list[tuple[int, float, float]](), time.perf_counter()
    every = max(1, len(work.items) // SAMPLES)

    def told(done: int, _total: int, _case: str) -> None:
        if done % every == 0:
            held = field("RssAnon", Path("/proc/self/status").read_text(encoding="ascii")) / 1024
            samples.append((done, time.perf_counter() - began, held))

    work.predict(work.items, False, told)
    first = samples[0][2]
    rows = [[done, f"{s:.1f}", f"{mib:.0f}", most(mib / first, FLAT)] for done, s, mib in samples]
    table(f"files done|s|anonymous MiB|beside that after {every}", rows)


def options() -> argparse.Namespace:
    parser = served.options("predict", {"files": 300, "side": 512, "rounds": 3})
    parser.add_argument("--small", action="store_true", help="memory only: a tiny network on small pictures")
    given = parser.parse_args()
    if given.small:
        vars(given).update(SMALL)
    return given


def main() -> None:
    warnings.filterwarnings("ignore")
    given = options()
    served.threads(given)
    config = served.configured(given)
    with tempfile.TemporaryDirectory(prefix="segpipe-bench-") as name:
        print(served.machine())
        print(
            f"{given.arch}, {given.encoder}, depth {given.depth}, {given.size} x {given.size}; {given.files} pictures "
            f"of {given.side} x {given.side}, {given.channels} channels\n"
        )
        write(Path(name) / "input", given.files, given.side, given.channels)
        work = found(config, served.predictor(config, given.channels), Path(name))
        if given.small:
            memory(work)
        else:
            throughput(work, given.rounds)
            parts(work, min(50, given.files - 1))


if __name__ == "__main__":
    main()
