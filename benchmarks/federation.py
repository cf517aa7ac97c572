"""Federations: `python -m benchmarks.federation`.

Seconds of a round against those of an epoch of the same cases trained at each site alone, and the memory of a
federation of many sites, and of many rounds, against one of few.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.data import dataset_writer
from segpipe.data.dataset import Dataset
from segpipe.data.readers import open_reader
from segpipe.federation import federated
from segpipe.recording.offline import FolderRecorder
from segpipe.runtime import process_group
from segpipe.training import engine, trainer

EPOCHS = 5
SPLITS = ("train", "train", "val")


class Clock:
    """A watcher that remembers when each epoch, or round, was reported."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def doing(self, what: str) -> None:
        """Nothing is shown."""

    def epoch(self, _epoch: engine.EpochReport, _epochs: int) -> None:
        self.ends.append(time.perf_counter())

    def batch(self, *_passed: int) -> None:
        """Nothing is shown."""

    @property
    def each(self) -> float:
        """Median seconds from one report to the next."""
        return statistics.median(np.diff(self.ends))


def prepare(folder: Path, knobs: dict[str, str]) -> tuple[Config, Dataset]:
    """A config and the data set that is made with it."""
    config = settings.load(None, knobs)
    dataset_writer.build(config, open_reader(config), folder / "dataset", lambda *_: None)
    return config, Dataset.open(folder / "dataset")


def train(config: Config, dataset: Dataset, **federate: object) -> Clock:
    """Train once, recorded in a folder."""
    values = {**config.model_dump(), "federate": federate}
    config, clock = settings.build(values), Clock()
    with tempfile.TemporaryDirectory() as name:
        job = trainer.Job(
            config=config, dataset=dataset.folder, key="", checkpoints=Path(name) / "checkpoints", record=Path(name)
        )
        run = federated.run if config.federate.averages else trainer.run
        accelerator, recorder = process_group.start(config.train), FolderRecorder(Path(name))
        run(job, dataset, accelerator, recorder, print, clock, engine.never)
    return clock


def compare(repeats: int) -> None:
    """A round of three sites against an epoch at each of them."""
    with tempfile.TemporaryDirectory() as name:
        knobs = {"data.format": "phantom", "data.root": name, "train.epochs": str(EPOCHS), "model.encoder_depth": "4"}
        config, dataset = prepare(Path(name), knobs | {"train.precision": "fp32"})
        sites, alone, together = dataset.manifest.sites(), list[float](), list[float]()
        for _ in range(repeats):
            alone.append(sum(train(config, dataset, strategy="local", sites=(site,)).each for site in sites))
            together.append(train(config, dataset, strategy="fedavg").each)
    ratios = [one / other for one, other in zip(together, alone, strict=True)]
    print(f"an epoch at each of {len(sites)} sites alone: {statistics.median(alone):.2f} s (baseline)")
    print(
        f"a round of them: {statistics.median(together):.2f} s, {statistics.median(ratios):.3f} times as long "
        f"({min(ratios):.3f} to {max(ratios):.3f}), goal 1.02"
    )


def federate(count: int, rounds: int) -> None:
    """Train a tiny network at so many sites, each with two pictures to train on and one to validate, and print the peak
    of this process's memory.
    """
    import resource

    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "raw"
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True)
        rows, rng = ["case,patient,site,split"], np.random.default_rng(0)
        for n in range(len(SPLITS) * count):
            mask = np.zeros((32, 32), dtype=np.uint8)
            mask[4:20, 6 : 8 + n % 20] = 255
            picture = mask // 2 + rng.integers(0, 90, mask.shape, dtype=np.uint8)
            Image.fromarray(picture).save(root / f"images/{n:05d}.png")
            Image.fromarray(mask).save(root / f"masks/{n:05d}.png")
            rows.append(f"{n:05d},p{n},site{n // len(SPLITS):04d},{SPLITS[n % len(SPLITS)]}")
        (root / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        tiny = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}
        knobs = {"data.format": "folder", "data.root": str(root), "train.precision": "fp32", "check.duplicates": "warn"}
        config, dataset = prepare(Path(name), {**tiny, **knobs, "train.epochs": str(rounds)})
        train(config, dataset, strategy="fedavg")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def remember(few: int, many: int) -> None:
    """Peak memory of a federation by sites and rounds."""
    base = 0.0
    for count, rounds in ((few, 2), (few, 20), (many, 2)):
        command = [sys.executable, "-m", "benchmarks.federation", "--sites", str(count), "--rounds", str(rounds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used = float(done.stdout.split()[-1])
        base = base or used
        print(f"{count} sites, {rounds} rounds: {used:.0f} MiB at most, {used / base:.2f} times the first")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument(
        "--sites", type=int, default=0, help="train a federation of so many, and print its memory alone"
    )
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    if asked.sites:
        federate(asked.sites, asked.rounds)
        return
    compare(asked.repeats)
    remember(asked.few, asked.many)


if __name__ == "__main__":
    main()
