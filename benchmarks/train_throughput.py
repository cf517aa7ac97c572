"""Images/s of the training engine beside the barest loop, and what tracking, more data and start-up cost.

    python -m benchmarks.train_throughput [--device cpu|cuda] [--scaling] [--startup] [--parity]

Baseline: forward, backward and step on tensors that lie on the device, in the same process and the same rounds; beside
it a Lightning Trainer and a MONAI SupervisedTrainer, where benchmarks/requirements.txt is installed. What the tables
show and how they are taken: docs/performance.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.train_contenders import (
    PEERS,
    Epoch,
    Work,
    bare,
    interleaved,
    least,
    monai,
    ours,
    ratio,
    simulate,
    started,
    table,
)
from benchmarks.train_tracking import fits
from segpipe.config import settings
from segpipe.files.project import PROJECT
from segpipe.training import engine
from segpipe.training.learner import Learner

PACKAGES = {
    **{"torch": "torch", "segmentation_models_pytorch": "segmentation-models-pytorch", "accelerate": "accelerate"},
    **{"mlflow": "mlflow", "lightning": "lightning", "monai": "monai", "ignite": "pytorch-ignite"},
}
SMALL = {
    **{"model.encoder": "tu-test_resnet", "model.encoder_depth": "3", "model.options": "decoder_channels=[8,8,8]"},
    **{"preprocess.size": "32", "train.batch_size": "32"},
}
FLAT = 1.10  # largest over smallest data set that still counts as flat
STATUS = "print(open('/proc/self/status').read(), flush=True)"
IMPORTS = f"import torch, segmentation_models_pytorch; {STATUS}"
FIRST_STEP = f"""
import os, runpy
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: ({STATUS}, os._exit(0)))
runpy.run_module("steps.train", run_name="__main__", alter_sys=True)
"""


def most(value: float, goal: float) -> str:
    return f"{value:.3f}, <= {goal:g}: {'met' if value <= goal else 'not met'}"


def loops(work: Work, rounds: int) -> None:
    """Training epochs of every contender."""
    contenders = {"bare loop": bare(work), "engine": ours(work)}
    contenders["engine, augmentation"] = ours(work.knobs("augment", enabled=True))
    for name, (packages, make) in PEERS.items():
        if not all(map(find_spec, packages)):
            print(f"{name}: not installed: pip install -r benchmarks/requirements.txt\n")
        elif make is monai and work.precision != "fp32" and not work.on_gpu:
            print(f"{name}: no {work.precision} on a CPU\n")
        else:
            contenders[name] = make(work)
    seconds, images = interleaved(contenders, rounds), sum(work.batches("train").sizes())
    goals, rows = {"engine": 0.97, "engine, augmentation": 0.95 if work.on_gpu else 0.90}, []
    for name, own in seconds.items():
        share, spread = ratio(seconds["bare loop"], own)
        goal = least(share, goals[name]) if name in goals else "baseline"
        if name in PEERS:
            ahead = ratio(own, seconds["engine"])[0]
            goal = f"engine {ahead:.3f} x this, > 1: {'met' if ahead > 1 else 'not met'}"
        rows.append([name, f"{images / statistics.median(own):.1f}", f"{share:.3f}", spread, goal])
    table("an epoch of training|images/s|beside bare|range over rounds|goal", rows)
    if work.on_gpu:
        held = {name: allocated(epoch, rounds + 1) for name, epoch in contenders.items() if name not in PEERS}
        print("GPU memory of an epoch, weights and data aside:", ", ".join(f"{n} {m:.0f} MiB" for n, m in held.items()))
        print()


def allocated(epoch: Epoch, number: int) -> float:
    """MiB of GPU memory that an epoch takes on top of what is taken already."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    epoch(number)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def field(name: str, status: str) -> int:
    """A number of /proc/PID/status."""
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:")))


@contextmanager
def sampled(peak: list[int]) -> Iterator[None]:
    """Put the most anonymous memory (kiB) that this process holds meanwhile into `peak`; mapped files don't count."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peak[0] = max(peak[0], field("RssAnon", Path("/proc/self/status").read_text(encoding="ascii")))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def scaled(folder: str, device: str) -> None:
    """In a process of its own: print seconds of set-up and of 1000 slices, and MiB of memory here and on the GPU."""
    work, peak, seconds = started(Path(folder), SMALL | {"train.device": device}), [0], []
    learner = Learner(work.network(), work.config.train, work.accelerator)
    with sampled(peak):
        began = work.clock()
        batches = work.batches("train")
        setup, slices = work.clock() - began, sum(batches.sizes())
        engine.train_one_epoch(learner, batches, work.config, engine.Position(0, max(0, len(batches) - 8)))
        for number in range(max(1, 8000 // slices)):
            began = work.clock()
            engine.train_one_epoch(learner, batches, work.config, engine.Position(number))
            seconds.append(work.clock() - began)
    gpu = torch.cuda.max_memory_allocated() / 2**20 if work.on_gpu else 0
    print(json.dumps([setup, 1000 * statistics.median(seconds) / slices, peak[0] / 1024, gpu]))


def output(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def scaling(folder: Path, device: str, sizes: list[int], rounds: int) -> None:
    """A small network's epochs over ever more slices, each in a process of its own."""

    def child(size: int) -> Callable[[int], list[float]]:
        code = f"from benchmarks.train_throughput import scaled; scaled({str(folder / str(size))!r}, {device!r})"
        return lambda _: json.loads(output("-c", code))

    for size in sizes:
        (folder / str(size)).mkdir()
        simulate(settings.load(None, SMALL), folder / str(size), {"train": size})
    results = interleaved({str(size): child(size) for size in sizes}, rounds, first=1)
    rows, smallest = [], np.median(results[str(sizes[0])], axis=0)
    for size, values in results.items():
        setup, seconds, memory, gpu = np.median(values, axis=0)
        goals = most(seconds / smallest[1], FLAT), most(memory / smallest[2], FLAT)
        figures = f"{setup:.2f}", f"{seconds:.3f}", goals[0], f"{memory:.0f}", goals[1], f"{gpu:.0f}"
        rows.append([size, *figures])
    beside = f"beside {sizes[0]}"
    table(f"slices|set-up s|s for 1000|{beside}|anonymous MiB at most|{beside}|GPU MiB at most", rows)


def startup(folder: Path, device: str, rounds: int) -> None:
    """From the start of a process to its first optimizer step, without MLflow, on a data set that is prepared."""
    knobs = [
        "--no-mlflow",
        "--data.patients=6",
        f"--data.root={folder / 'raw'}",
        f"--tracking.outputs={folder / 'out'}",
    ]
    knobs += [f"--train.device={device}", "--train.resume=never", "--train.epochs=1"]
    output("-m", "steps.preprocess", *knobs)

    def process(code: str, *arguments: str) -> Callable[[int], tuple[float, int]]:
        def timed(_: int) -> tuple[float, int]:
            began = time.perf_counter()
            status = output("-c", code, *arguments)
            return time.perf_counter() - began, field("VmHWM", status)

        return timed

    results = interleaved({"the imports": process(IMPORTS), "train's first step": process(FIRST_STEP, *knobs)}, rounds)
    base, rows = [seconds for seconds, _ in results["the imports"]], []
    for name, values in results.items():
        seconds, memory = np.median(values, axis=0)
        times, spread = ratio([s for s, _ in values], base)
        rows.append([name, f"{seconds:.2f}", f"{times:.2f}", spread, f"{memory / 1024:.0f}"])
    table("start of the process to|s|beside the imports|range over rounds|MiB at most", rows)


def parity(folder: Path, knobs: dict[str, object], epochs: int) -> None:
    """The same training in each precision, and in fp32 from another seed to show what chance does."""
    rows, exact = [], 0.0
    kinds = [("fp32", 0), ("fp32", 1), ("bf16", 0), *([("fp16", 0)] if torch.cuda.is_available() else [])]
    for precision, seed in kinds:
        work = started(folder, {**knobs, "train.precision": precision, "seed": seed, "train.epochs": epochs})
        learner, batches = Learner(work.network(), work.config.train, work.accelerator), work.batches("train")
        passed, seconds = [], []
        for number in range(epochs):
            began = work.clock()
            passed.append(engine.train_one_epoch(learner, batches, work.config, engine.Position(number)))
            seconds.append(work.clock() - began)
        loss, dice, _ = passed[-1]
        exact = exact or loss
        speed = sum(batches.sizes()) / statistics.median(seconds)
        figures = f"{loss:.5f}", f"{loss - exact:+.5f}", f"{dice:.4f}", f"{speed:.1f}"
        rows.append([f"{precision}, seed {seed}", epochs * len(batches), *figures])
    table("precision|steps|loss in the last epoch|less that of fp32|training Dice|images/s", rows)


def machine(work: Work) -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    packages = ", ".join(f"{package} {version(package)}" for name, package in PACKAGES.items() if find_spec(name))
    hardware = [*names, f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads"]
    gpu = [torch.cuda.get_device_name()] if work.on_gpu else []
    load = f"load {os.getloadavg()[0]:.1f} before"
    return f"{', '.join([*hardware, *gpu, load])}; Python {platform.python_version()}, {packages}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_throughput")
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
        folder, slices, fewer = Path(name), given.steps * given.batch, max(1, given.rounds // 2)
        work = started(folder, knobs)
        print(machine(work))
        print(
            f"{given.arch}, {given.encoder}, depth {given.depth}, {given.size} x {given.size}, {work.precision}; "
            f"an epoch is {given.steps} batches of {given.batch}; {given.rounds} rounds, {fewer} of trainings\n"
        )
        simulate(work.config, folder, {"train": slices, "val": max(given.batch, slices // 4)})
        if not given.no_loops:
            loops(work.knobs("train", epochs=given.rounds + 2), given.rounds)
        if not given.no_tracking:
            fits(work, fewer, folder)
        if given.parity:
            parity(folder, knobs, given.epochs)
        if given.startup:
            startup(folder, given.device, given.rounds)
        if given.scaling:
            scaling(folder, given.device, [int(size) for size in given.slices.split(",")], fewer)


if __name__ == "__main__":
    main()
