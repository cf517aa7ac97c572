"""What tracking and checkpoints cost a training: a part of benchmarks.train_throughput."""

import os
import shutil
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.train_contenders import Work, interleaved, least, ratio, table
from segpipe.data.manifest import FILE, Manifest
from segpipe.inference.predictor import Predictor
from segpipe.inference.spec import ModelSpec
from segpipe.models import architectures
from segpipe.recording.artifact_tree import Journal, Recorder
from segpipe.training import engine, trainer
from segpipe.training.checkpoints import Checkpoints


class ClockedCheckpoints(Checkpoints):
    """Counts the seconds it takes to write."""

    seconds = 0.0

    def save(self, epoch: int, batch: int, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        super().save(epoch, batch, state)
        self.seconds += time.perf_counter() - began


class Fit(NamedTuple):
    """Seconds of a fit; in it of writing checkpoints, and of recording each epoch (and whether with pictures); and of
    recording before and after it.
    """

    seconds: float
    writing: float
    epochs: list[tuple[bool, float]]
    before: float
    after: float


def fitted(work: Work, folder: Path, saves: bool, recorder: Recorder | None) -> Fit:
    """What `training.run` does, on the clock."""
    config, device, network = work.config, work.accelerator.device, work.network()
    train, val, manifest = work.batches("train"), work.batches("val"), Manifest.read(work.folder / FILE)
    checkpoints = ClockedCheckpoints(Path(tempfile.mkdtemp(dir=folder)), "benchmark", print)
    given = {name: getattr(manifest, name) for name in ("preprocess", "kind", "channels", "classes")}
    spec, epochs, marks = ModelSpec(model=config.model, **given), list[tuple[bool, float]](), [work.clock()]
    journal = Journal(recorder, config, val, config.train) if recorder else None
    if journal:
        journal.begin(train, trainer.facts("fp32", network, device))

    def report(history: list[engine.EpochReport], current: architectures.SegmentationModel) -> None:
        began, last = work.clock(), history[-1]
        if journal:
            journal.epoch(history, current, Predictor(spec, current, device))
        due = last.epoch % config.tracking.artifact_every == 0 or len(history) == config.train.epochs
        epochs.append((last.is_best or due, work.clock() - began))

    marks.append(work.clock())
    result = engine.fit(network, train, val, config, work.accelerator, report, checkpoints if saves else None)
    marks.append(work.clock())
    if journal:
        network.load_state_dict(result.weights)
        journal.finish(result, Predictor(spec, network, device), 0.0)
    marks.append(work.clock())
    shutil.rmtree(checkpoints.folder)
    before, seconds, after = np.diff(marks)
    return Fit(seconds, checkpoints.seconds, epochs, before, after)


def fits(work: Work, rounds: int, folder: Path) -> None:
    """Whole trainings with tracking on and off, validation included."""

    def length(number: int) -> Work:
        return work if number else work.knobs("train", epochs=1)

    def tracked(number: int) -> Fit:
        from segpipe.recording.spool import Spool
        from segpipe.tracking import connection, runs

        store = connection.connect()
        with runs.run(store, "train", work.config) as run:
            spool = Spool(run.info.run_id, folder / "spool" / run.info.run_id, print)
            return fitted(length(number), folder, True, spool)

    off, on = "tracking off", "tracking on"
    kinds = {
        off: lambda number: fitted(length(number), folder, True, None),
        f"{off}, no checkpoints": lambda number: fitted(length(number), folder, False, None),
    }
    if find_spec("mlflow"):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        kinds[on] = tracked
    else:
        print("tracking: MLflow is not installed\n")
    runs = interleaved(kinds, rounds)
    images, rows = work.config.train.epochs * sum(work.batches("train").sizes()), []
    seconds = {name: [fit.seconds for fit in own] for name, own in runs.items()}
    for name, own in seconds.items():
        share, spread = ratio(seconds[off], own)
        goal = {off: "baseline", on: least(share, 0.98)}.get(name, "")
        rows.append([name, f"{images / statistics.median(own):.1f}", f"{share:.3f}", spread, goal])
    head = f"a training of {work.config.train.epochs} epochs"
    table(f"{head}|training images/s, validation included|beside tracking off|range over rounds|goal", rows)
    writing = sum(fit.writing for fit in runs[off]) / sum(seconds[off])
    print(f"Checkpoints take {100 * writing:.1f} % of the time with tracking off.", recording(runs.get(on, [])), "\n")


def recording(fits: list[Fit]) -> str:
    """What tracking took, by its own clock."""
    if not fits:
        return ""
    epochs = [epoch for fit in fits for epoch in fit.epochs]
    share = sum(s for _, s in epochs) / sum(fit.seconds for fit in fits)
    shown, plain = ([1000 * s for pictures, s in epochs if pictures == kind] for kind in (True, False))
    each = ", ".join(f"{statistics.median(ms):.0f} ms for {len(ms)} epochs" for ms in (shown, plain) if ms)
    before, after = (statistics.median(values) for values in zip(*((f.before, f.after) for f in fits), strict=True))
    return (
        f"Recording takes {100 * share:.1f} % of it with tracking on ({each}; those with pictures first), and outside "
        f"of the epochs {before:.1f} s before the first and {after:.1f} s after the last."
    )
