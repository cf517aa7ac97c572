"""Images/s of the training engine beside the barest loop, and what tracking, more data and start-up cost.

    python -m benchmarks.train_throughput [--device cpu|cuda] [--scaling] [--startup] [--parity]

Baseline: forward, backward and step on tensors that lie on the device, in the same process and the same rounds; beside
it a Lightning Trainer and a MONAI SupervisedTrainer, where benchmarks/requirements.txt is installed. What the tables
show and how they are taken: docs/performance.md.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from segpipe import distributed, engine, losses, models, settings, training
from segpipe.checkpoint import Checkpoints
from segpipe.config import Config
from segpipe.data.batches import Batches
from segpipe.data.cache import ArrayWriter
from segpipe.inference import ModelSpec, Predictor
from segpipe.journal import Journal, Recorder
from segpipe.learner import Learner
from segpipe.manifest import CaseRecord, Manifest, Split
from segpipe.sources import PROJECT

T = TypeVar("T")
Epoch = Callable[[int], float]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PACKAGES = {
    **{"torch": "torch", "segmentation_models_pytorch": "segmentation-models-pytorch", "accelerate": "accelerate"},
    **{"mlflow": "mlflow", "lightning": "lightning", "monai": "monai", "ignite": "pytorch-ignite"},
}
INSTALL = "not installed: pip install -r benchmarks/requirements.txt"
TINY = {"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "preprocess.size": "32"}
PLANES, CHUNK = 16, 1024  # slices a case, and slices written at a time
FLAT = 1.10  # largest over smallest data set that still counts as flat
STATUS = "print(open('/proc/self/status').read(), flush=True)"
IMPORTS = f"import torch, segmentation_models_pytorch; {STATUS}"
FIRST_STEP = f"""
import os, runpy
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: ({STATUS}, os._exit(0)))
runpy.run_module("steps.train", run_name="__main__", alter_sys=True)
"""


class Work(NamedTuple):
    """What every contender does alike: a config, a data set on disk, and what places and casts."""

    config: Config
    folder: Path
    accelerator: Accelerator

    @property
    def on_gpu(self) -> bool:
        return self.accelerator.device.type == "cuda"

    @property
    def precision(self) -> str:
        return distributed.precision(self.config.train)

    def clock(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def knobs(self, section: str, **changed: object) -> "Work":
        part = getattr(self.config, section).model_copy(update=changed)
        return self._replace(config=self.config.model_copy(update={section: part}))

    def batches(self, split: Split) -> Batches:
        manifest = Manifest.load(self.folder)
        return Batches(manifest, self.folder, split, self.config.train, self.accelerator.device)

    def network(self) -> models.SegmentationModel:
        network = models.build(self.config.model, len(self.config.data.channel_names), 1, self.config.seed)
        return network.to(self.accelerator.device, memory_format=torch.channels_last)

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), self.config.train.lr, weight_decay=1e-2)

    def tensors(self) -> tuple[Tensor, Tensor]:
        batches = self.batches("train")
        images, labels = (torch.from_numpy(np.array(array)) for array in (batches.images, batches.labels))
        return images.float(), labels

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        data, size = TensorDataset(*self.tensors()), self.config.train.batch_size
        return DataLoader(data, size, shuffle=True, pin_memory=self.on_gpu)


def started(folder: Path, knobs: dict[str, object]) -> Work:
    config = settings.load(None, {name: str(value) for name, value in knobs.items()})
    AcceleratorState._reset_state(reset_partial_state=True)
    return Work(config, folder, distributed.start(config.train))


def simulate(config: Config, folder: Path, slices: dict[Split, int]) -> None:
    """A prepared data set of noise with a bright disc in each slice, written a chunk at a time."""
    channels, (height, width) = config.data.channel_names, config.preprocess.size
    rng, (y, x) = np.random.default_rng(0), np.ogrid[:height, :width]
    arrays, cases = {}, []
    nothing: dict[str, Any] = {"site": "", "spacing": None, "voxels": {}, "volume_ml": None, "sha256": "", "files": ()}
    for split, count in slices.items():
        with (
            ArrayWriter(folder, f"{split}_images", np.float16, (len(channels), height, width)) as images,
            ArrayWriter(folder, f"{split}_masks", np.uint8, (height, width)) as masks,
        ):
            for size in ((min(CHUNK, count - first), 1, 1) for first in range(0, count, CHUNK)):
                down, along = rng.integers(height, size=size), rng.integers(width, size=size)
                disc = (y - down) ** 2 + (x - along) ** 2 < (height / rng.uniform(6, 12, size)) ** 2
                masks.append(disc)
                noise = rng.standard_normal((size[0], len(channels), height, width), dtype=np.float32)
                images.append(noise + 2 * disc[:, None])
        arrays |= {f"{split}_images": images.record(), f"{split}_masks": masks.record()}
        for start in range(0, count, PLANES):
            name, shape = f"{split}{start}", (min(PLANES, count - start), height, width)
            cases.append(CaseRecord(case=name, patient=name, split=split, shape=shape, start=start, **nothing))
    names = {"reader": "phantom", "root": str(folder), "channels": channels, "classes": config.data.class_names}
    Manifest(**names, preprocess=config.preprocess, cases=tuple(cases), arrays=arrays, intensity={}).save(folder)


def bare(work: Work) -> Epoch:
    network, size, device, dtype = work.network(), work.config.train.batch_size, work.accelerator.device, work.precision
    optimizer, scaler = work.optimizer(network), torch.amp.GradScaler(device.type, enabled=dtype == "fp16")
    images, labels = (tensor.to(device) for tensor in work.tensors())
    images = images.contiguous(memory_format=torch.channels_last)

    def epoch(_: int) -> float:
        began = work.clock()
        for part in (slice(first, first + size) for first in range(0, len(images), size)):
            with torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "fp32"):
                logits = network(images[part])
            scaler.scale(losses.loss(logits, labels[part], work.config.loss)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return work.clock() - began

    return epoch


def ours(work: Work) -> Epoch:
    learner, batches = Learner(work.network(), work.config.train, work.accelerator), work.batches("train")

    def epoch(number: int) -> float:
        began = work.clock()
        engine.train_one_epoch(learner, batches, work.config, engine.Position(number))
        return work.clock() - began

    return epoch


def lightning(work: Work) -> Epoch:
    """Timed between its hooks: what a Trainer does once a fit does not count."""
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.began, self.seconds = work.network(), 0.0, 0.0
            self.optimizer = work.optimizer(self.network)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            logits = self.network(batch[0].contiguous(memory_format=torch.channels_last))
            return losses.loss(logits, batch[1], work.config.loss)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

        def on_train_epoch_start(self) -> None:
            self.began = work.clock()

        def on_train_epoch_end(self) -> None:
            self.seconds = work.clock() - self.began

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    precision = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[work.precision]
    where = {"accelerator": "gpu" if work.on_gpu else "cpu", "devices": 1, "precision": precision}
    trainer, module, loader = pl.Trainer(max_epochs=0, **where, **off), Module(), work.loader()

    def epoch(number: int) -> float:
        trainer.fit_loop.max_epochs = number + 1
        trainer.fit(module, loader)
        return module.seconds

    return epoch


def monai(work: Work) -> Epoch:
    """Timed between its events; what it would unpack for metrics after each step is left out."""
    from ignite.engine import Events
    from monai.engines import SupervisedTrainer

    def prepare(batch: list[Tensor], device: torch.device, non_blocking: bool, **_: Any) -> tuple[Tensor, Tensor]:
        images, labels = (tensor.to(device, non_blocking=non_blocking) for tensor in batch)
        return images.contiguous(memory_format=torch.channels_last), labels

    network, times = work.network(), list[float]()
    trainer = SupervisedTrainer(
        work.accelerator.device,
        max_epochs=1,
        train_data_loader=work.loader(),
        network=network,
        optimizer=work.optimizer(network),
        loss_function=lambda logits, labels: losses.loss(logits, labels, work.config.loss),
        non_blocking=work.on_gpu,
        prepare_batch=prepare,
        amp=work.precision != "fp32",
        amp_kwargs={"dtype": DTYPES[work.precision]},
        decollate=False,
        optim_set_to_none=True,
    )
    for event in (Events.EPOCH_STARTED, Events.EPOCH_COMPLETED):
        trainer.add_event_handler(event, lambda: times.append(work.clock()))

    def epoch(_: int) -> float:
        trainer.run()
        return times[-1] - times[-2]

    return epoch


PEERS = {"Lightning Trainer": ("lightning", lightning), "MONAI SupervisedTrainer": ("ignite", monai)}


def interleaved(actions: dict[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """What each action gives in every round, after a round 0 that does not count; who begins changes."""
    names, results = list(actions), {name: list[T]() for name in actions}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result = actions[name](number)
            if number:
                results[name].append(result)
    return results


def times(ones: Sequence[float], others: Sequence[float]) -> tuple[float, str]:
    """Median over the rounds of one over the other, and its range as text."""
    ratios = [one / other for one, other in zip(ones, others, strict=True)]
    return statistics.median(ratios), f"{min(ratios):.3f}..{max(ratios):.3f}"


def verdict(value: float, least: float, sign: str = ">=") -> str:
    met = value > least if sign == ">" else value >= least if sign == ">=" else value <= least
    return f"{sign} {least:g}: {'met' if met else 'not met'}"


def table(head: str, rows: Sequence[Sequence[object]]) -> None:
    columns = head.split("|")
    for row in (columns, ["---"] + ["---:"] * (len(columns) - 1), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def loops(work: Work, rounds: int) -> None:
    contenders = {"bare loop": bare(work), "engine": ours(work)}
    contenders["engine, augmentation"] = ours(work.knobs("augment", enabled=True))
    for name, (package, make) in PEERS.items():
        if not find_spec(package):
            print(f"{name}: {INSTALL}")
        elif make is monai and work.precision != "fp32" and not work.on_gpu:
            print(f"{name}: no {work.precision} on a CPU")
        else:
            contenders[name] = make(work)
    seconds, images = interleaved(contenders, rounds), sum(work.batches("train").sizes())
    goals, rows = {"engine": 0.97, "engine, augmentation": 0.95 if work.on_gpu else 0.90}, []
    for name, own in seconds.items():
        ratio, spread = times(seconds["bare loop"], own)
        ahead, _ = times(own, seconds["engine"])
        goal = verdict(ratio, goals[name]) if name in goals else "baseline"
        if name in PEERS:
            goal = f"engine {ahead:.3f} x this, {verdict(ahead, 1, '>')}"
        rows.append([name, f"{images / statistics.median(own):.1f}", f"{ratio:.3f}", spread, goal])
    table("one epoch of training|images/s|beside bare|range over rounds|goal", rows)
    if work.on_gpu:
        print(f"GPU memory, all contenders resident: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB at most\n")


class ClockedCheckpoints(Checkpoints):
    """Counts the seconds it takes to write."""

    seconds = 0.0

    def save(self, epoch: int, batch: int, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        super().save(epoch, batch, state)
        self.seconds += time.perf_counter() - began


class Fit(NamedTuple):
    """Seconds of a fit, of writing checkpoints in it, of recording each epoch (and whether with pictures), and of
    recording before and after it.
    """

    seconds: float
    writing: float
    epochs: list[tuple[bool, float]]
    around: tuple[float, float]


def fitted(work: Work, folder: Path, saves: bool, recorder: Recorder | None) -> Fit:
    config, device, network = work.config, work.accelerator.device, work.network()
    train, val = work.batches("train"), work.batches("val")
    checkpoints = ClockedCheckpoints(Path(tempfile.mkdtemp(dir=folder)), "benchmark", print)
    manifest, told = Manifest.load(work.folder), list[tuple[bool, float]]()
    given = {name: getattr(manifest, name) for name in ("preprocess", "reader", "channels", "classes")}
    spec, marks = ModelSpec(model=config.model, **given), [work.clock()]
    journal = Journal(recorder, config, val) if recorder else None
    if journal:
        journal.begin(train, training.facts(config, network, device))

    def report(history: list[engine.EpochReport], current: models.SegmentationModel) -> None:
        began, last = work.clock(), history[-1]
        if journal:
            journal.epoch(history, current, Predictor(spec, current, device))
        pictures = (
            last.is_best or last.epoch % config.tracking.artifact_every == 0 or len(history) == config.train.epochs
        )
        told.append((pictures, work.clock() - began))

    marks.append(work.clock())
    result = engine.fit(network, train, val, config, work.accelerator, report, checkpoints if saves else None)
    marks.append(work.clock())
    if journal:
        network.load_state_dict(result.weights)
        journal.finish(result, Predictor(spec, network, device), 0.0)
    marks.append(work.clock())
    shutil.rmtree(checkpoints.folder)
    before, seconds, after = np.diff(marks)
    return Fit(seconds, checkpoints.seconds, told, (before, after))


def fits(work: Work, rounds: int, folder: Path) -> None:
    """Whole epochs, validation included, as `steps.train` has them."""

    def short(number: int) -> Work:
        return work if number else work.knobs("train", epochs=1)

    def tracked(number: int) -> Fit:
        from segpipe import tracking
        from segpipe.spool import Spool

        tracking.connect()
        with tracking.run("train", work.config) as run:
            spool = Spool(run.info.run_id, folder / "spool" / run.info.run_id, print)
            return fitted(short(number), folder, True, spool)

    off, on, bare = "tracking off", "tracking on", "tracking off, no checkpoints"
    kinds = {off: lambda n: fitted(short(n), folder, True, None), bare: lambda n: fitted(short(n), folder, False, None)}
    if find_spec("mlflow"):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        kinds[on] = tracked
    else:
        print("tracking: MLflow is not installed")
    runs = interleaved(kinds, rounds)
    images, rows = work.config.train.epochs * sum(work.batches("train").sizes()), []
    seconds = {name: [fit.seconds for fit in fits] for name, fits in runs.items()}
    for name, own in seconds.items():
        ratio, spread = times(seconds[off], own)
        goal = {off: "baseline", on: verdict(ratio, 0.98), bare: ""}[name]
        rows.append([name, f"{images / statistics.median(own):.1f}", f"{ratio:.3f}", spread, goal])
    table(
        f"whole training of {work.config.train.epochs} epochs|images/s|beside tracking off|range over rounds|goal", rows
    )
    last = on if on in runs else off
    writing = sum(fit.writing for fit in runs[last]) / sum(seconds[last])
    print(f"Of the time with {last}, checkpoints take {100 * writing:.1f} %", end="")
    if on in runs:
        every = [epoch for fit in runs[on] for epoch in fit.epochs]
        share = sum(s for _, s in every) / sum(seconds[on])
        means = [1000 * statistics.mean([s for shown, s in every if shown == kind] or [0]) for kind in (True, False)]
        before, after = np.median([fit.around for fit in runs[on]], axis=0)
        print(
            f", recording {100 * share:.1f} %: {means[0]:.0f} ms for an epoch with pictures"
            f" ({sum(shown for shown, _ in every)} of {len(every)}), {means[1]:.0f} ms for another."
            f" Once a training, not counted above: {before:.1f} s before it and {after:.1f} s after it",
            end="",
        )
    print("\n")


@contextmanager
def sampled(peak: list[int]) -> Iterator[None]:
    """Put the most anonymous memory (kiB) that this process holds meanwhile into `peak`: mapped files do not count."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], field("RssAnon", Path("/proc/self/status").read_text()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def field(name: str, status: str) -> int:
    """A number of /proc/PID/status."""
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:")))


def scaled(folder: str, device: str) -> None:
    """In a process of its own: print seconds of set-up and of an epoch for 1000 slices, and MiB, as JSON."""
    work, peak = started(Path(folder), TINY | {"train.device": device, "train.batch_size": 32}), [0]
    learner = Learner(work.network(), work.config.train, work.accelerator)
    with sampled(peak):
        began = work.clock()
        batches = work.batches("train")
        marks = [began, work.clock()]
        slices = sum(batches.sizes())
        engine.train_one_epoch(learner, batches, work.config, engine.Position(0, max(0, len(batches) - 8)))
        seconds = []
        for number in range(max(1, 8000 // slices)):
            began = work.clock()
            engine.train_one_epoch(learner, batches, work.config, engine.Position(number))
            seconds.append(work.clock() - began)
    print(json.dumps([marks[1] - marks[0], 1000 * statistics.median(seconds) / slices, peak[0] / 1024]))


def scaling(folder: Path, device: str, sizes: list[int], rounds: int) -> None:
    for size in sizes:
        (folder / str(size)).mkdir()
        simulate(settings.load(None, TINY), folder / str(size), {"train": size})

    def child(size: int) -> Callable[[int], list[float]]:
        code = f"from benchmarks.train_throughput import scaled; scaled({str(folder / str(size))!r}, {device!r})"
        return lambda _: json.loads(output([sys.executable, "-c", code]))

    results = interleaved({str(size): child(size) for size in sizes}, rounds)
    rows, first = [], None
    for size, values in results.items():
        setup, seconds, memory = np.median(values, axis=0)
        first = first or (seconds, memory)
        goals = [verdict(value / least, FLAT, "<=") for value, least in zip((seconds, memory), first, strict=True)]
        rows.append([size, f"{setup:.2f}", f"{seconds:.3f}", goals[0], f"{memory:.0f}", goals[1]])
    table(f"slices|set-up s|s per 1000 slices|beside {sizes[0]}|anonymous MiB at most|beside {sizes[0]}", rows)


def output(program: list[str]) -> str:
    done = subprocess.run(program, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program[:3]} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def startup(folder: Path, device: str, rounds: int) -> None:
    knobs = [
        "--no-mlflow",
        "--data.patients=6",
        f"--data.root={folder / 'raw'}",
        f"--tracking.outputs={folder / 'out'}",
    ]
    knobs += [f"--train.device={device}", "--train.resume=never", "--train.epochs=1"]
    output([sys.executable, "-m", "steps.preprocess", *knobs])

    def run(code: str, *arguments: str) -> Callable[[int], tuple[float, int]]:
        def timed(_: int) -> tuple[float, int]:
            began = time.perf_counter()
            status = output([sys.executable, "-c", code, *arguments])
            return time.perf_counter() - began, field("VmHWM", status)

        return timed

    results = interleaved({"the imports": run(IMPORTS), "first step of train": run(FIRST_STEP, *knobs)}, rounds)
    base, rows = [seconds for seconds, _ in results["the imports"]], []
    for name, values in results.items():
        seconds, memory = np.median(values, axis=0)
        ratio, spread = times([s for s, _ in values], base)
        rows.append([name, f"{seconds:.2f}", f"{ratio:.2f}", spread, f"{memory / 1024:.0f}"])
    table("from the start of the process to|s|beside the imports|range over rounds|MiB at most", rows)


def parity(folder: Path, knobs: dict[str, object], epochs: int) -> None:
    """The same training in each precision, and in fp32 from another seed to show what chance does."""
    rows, exact = [], 0.0
    kinds = [("fp32", 0), ("fp32", 1), ("bf16", 0), *([("fp16", 0)] if torch.cuda.is_available() else [])]
    for precision, seed in kinds:
        work = started(folder, {**knobs, "train.precision": precision, "seed": seed, "train.epochs": epochs})
        learner, batches = Learner(work.network(), work.config.train, work.accelerator), work.batches("train")
        for number in range(epochs):
            began = work.clock()
            passed = engine.train_one_epoch(learner, batches, work.config, engine.Position(number))
            seconds = work.clock() - began
        assert passed
        exact = exact or passed.loss
        speed = sum(batches.sizes()) / seconds
        row = [f"{precision}, seed {seed}", epochs * len(batches), f"{passed.loss:.5f}", f"{passed.loss - exact:+.5f}"]
        rows.append([*row, f"{passed.dice:.4f}", f"{speed:.1f}"])
    table("precision|steps|final train loss|less fp32's|final train Dice|images/s", rows)


def machine(work: Work) -> str:
    cores = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.partition(":")[2].strip() for line in cores if line.startswith("model name")}
    gpu = f"; {torch.cuda.get_device_name()}" if work.on_gpu else ""
    here = ", ".join(f"{package} {version(package)}" for name, package in PACKAGES.items() if find_spec(name))
    return (
        f"{' '.join(names)}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}; "
        f"Python {platform.python_version()}, {here}"
    )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_throughput", description=__doc__)
    for name, default in (("arch", "unet"), ("encoder", "resnet18"), ("device", "auto"), ("precision", "auto")):
        parser.add_argument(f"--{name}", default=default)
    numbers = {"depth": 4, "size": 96, "batch": 16, "steps": 20, "rounds": 7, "epochs": 10}
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--slices", default="1000,4000,16000,64000", help="sizes for --scaling")
    for name in ("scaling", "startup", "parity", "no-loops", "no-tracking"):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def main() -> None:
    warnings.filterwarnings("ignore")
    given = options()
    knobs: dict[str, object] = {
        **{"model.arch": given.arch, "model.encoder": given.encoder, "model.encoder_depth": given.depth},
        **{"preprocess.size": given.size, "train.batch_size": given.batch, "train.epochs": given.epochs},
        **{"train.device": given.device, "train.precision": given.precision, "augment.enabled": "false"},
    }
    with tempfile.TemporaryDirectory(prefix="segpipe-bench-") as name:
        folder = Path(name)
        work, train = started(folder, knobs), given.steps * given.batch
        print(machine(work))
        print(
            f"{given.arch}, {given.encoder}, depth {given.depth}, {given.size} x {given.size}, {work.precision}; "
            f"{given.steps} batches of {given.batch} an epoch, {given.rounds} rounds\n"
        )
        simulate(work.config, folder, {"train": train, "val": train // 4})
        if not given.no_loops:
            loops(work.knobs("train", epochs=given.rounds + 1), given.rounds)
        if not given.no_tracking:
            fits(work, max(1, given.rounds // 2), folder)
        if given.parity:
            parity(folder, knobs, given.epochs)
        if given.startup:
            startup(folder, given.device, given.rounds)
        if given.scaling:
            scaling(folder, given.device, [int(size) for size in given.slices.split(",")], max(1, given.rounds // 2))


if __name__ == "__main__":
    main()
