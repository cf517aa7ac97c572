"""Test Dice that each way of training reaches in the same minutes on the same cases, beside a plain loop on smp.

    python -m benchmarks.quality FOLDER [--minutes 10] [--ways "plan,random weights,resized,defaults"] [--seeds 0]

FOLDER is a data set of the format `folder` with binary masks. Baseline: a bare loop that draws turned windows at the
pictures' own resolution, with one cycle and clipped gradients, on training and validation cases together; it has the
same split, network, batch and minutes. Minutes are those of training alone; intervals are over patients.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.served import machine
from benchmarks.train_contenders import table
from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.data import splits
from segpipe.data.readers import all_cases, open_reader
from segpipe.data.volume import Volume
from segpipe.files.project import PROJECT
from segpipe.metrics import statistics
from segpipe.planning import fingerprint, rules
from segpipe.runtime import devices

PLAIN, PLANNED = "plain loop", "plan"
SAMPLES, SIDE, BATCH, DEPTH, RATE = 10_000, 256, 4, 4, 2e-3
WAYS: dict[str, dict[str, str]] = {
    PLANNED: {},
    "random weights": {"model.encoder_weights": "none"},
    "resized": {
        "plan.auto": "false", "preprocess.size": str(SIDE), "model.encoder_depth": str(DEPTH), "train.lr": str(RATE),
        "train.batch_size": str(BATCH), "augment.flip_vertical": "0.5", "augment.rotation": "30",
    },
    "defaults": {"plan.auto": "false"},
}  # fmt: skip
Case = tuple[Tensor, Tensor]


def run(home: Path, *arguments: str) -> None:
    """A command of the project, in a store of its own."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}", "SEGPIPE_CACHE": str(home / "cache")}
    program = [sys.executable, *arguments, "--tracking.outputs", str(home / "outputs")]
    subprocess.run(program, cwd=PROJECT, env={**os.environ, **store}, stdout=subprocess.DEVNULL, check=True)


def as_options(knobs: dict[str, str]) -> list[str]:
    return [part for name, value in knobs.items() for part in (f"--{name}", value)]


def evaluated(way: str, common: dict[str, str], home: Path) -> pd.DataFrame:
    """The table of test cases of a chain up to its evaluation."""
    run(home, "pipeline.py", "--until", "evaluate", *as_options(common | WAYS[way]))
    cases = next(home.rglob("evaluation/cases.csv"))
    return pd.read_csv(cases, dtype={"case": str, "patient": str})


def plain(config: Config, minutes: float) -> dict[str, float]:
    """Dice of each test case after so many minutes of the bare loop."""
    torch.manual_seed(config.seed)
    reader, device = open_reader(config), devices.device(config.train)
    cases = all_cases(reader)
    sides = splits.assign(cases, config.split, config.seed)
    data = {case.name: (sides[case.patient], _loaded(reader.load(case))) for case in cases}
    train = [found for split, found in data.values() if split != "test"]
    network = smp.Unet(
        "resnet18", encoder_weights=None, encoder_depth=DEPTH, decoder_channels=(256, 128, 64, 32, 16)[-DEPTH:],
        in_channels=len(train[0][0]),
    ).to(device, memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4, fused=True)
    half, rng = device.type == "cuda" or devices.processor_has_bf16(), np.random.default_rng(config.seed)

    def step() -> None:
        images, masks = (part.to(device) for part in _windows(train, rng))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        probabilities = logits.float().sigmoid()
        overlap = (2 * (probabilities * masks).sum() + 1) / (probabilities.sum() + masks.sum() + 1)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), masks) + 1 - overlap
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    began = time.perf_counter()
    each = _seconds_each(step)
    steps = max(10, int((60 * minutes - (time.perf_counter() - began)) / each * 0.97))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        step()
        schedule.step()
    test = {name: found for name, (split, found) in data.items() if split == "test"}
    return {name: _dice(network.eval(), *found, device=device, half=half) for name, found in test.items()}


def _seconds_each(step: Callable[[], None], count: int = 8) -> float:
    step()
    began = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - began) / count


def _loaded(volume: Volume) -> Case:
    image = torch.from_numpy(volume.image[:, 0].astype(np.float32))
    mask = torch.from_numpy((volume.mask == 1).astype(np.float32))
    return (image - image.mean((1, 2), keepdim=True)) / (image.std((1, 2), keepdim=True) + 1e-6), mask


def _windows(train: list[Case], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    images, masks = [], []
    for image, mask in (train[n] for n in rng.integers(len(train), size=BATCH)):
        (height, width), angle = image.shape[1:], rng.uniform(-math.pi, math.pi)
        size, flip, half = rng.uniform(0.85, 1.2), rng.choice([-1.0, 1.0]), SIDE / 2
        down, along = (rng.uniform(min(half, n / 2), max(n - half, n / 2)) for n in (height, width))
        line = (torch.arange(SIDE) - half + 0.5) / size
        y, x = torch.meshgrid(line, line * flip, indexing="ij")
        columns = along + x * math.cos(angle) - y * math.sin(angle)
        rows = down + x * math.sin(angle) + y * math.cos(angle)
        grid = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], -1)[None].float()
        how = {"padding_mode": "reflection", "align_corners": False}
        moved = functional.grid_sample(image[None], grid, **how)
        images.append(moved * rng.uniform(0.8, 1.2) + rng.uniform(-0.3, 0.3))
        masks.append(functional.grid_sample(mask[None], grid, mode="nearest", **how))
    return torch.cat(images).float(), torch.cat(masks)


@torch.no_grad()
def _dice(network: torch.nn.Module, image: Tensor, mask: Tensor, device: torch.device, *, half: bool) -> float:
    height, width = mask.shape[1:]
    padded = functional.pad(image[None], (0, -width % 32, 0, -height % 32), mode="replicate").to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        logits = network(padded.contiguous(memory_format=torch.channels_last))
    found, wanted = logits[0, :, :height, :width].cpu() > 0, mask > 0.5
    return float(2 * (found & wanted).sum() / (found.sum() + wanted.sum()).clamp(min=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--seeds", default="0")
    given = parser.parse_args()
    ways, seeds = given.ways.split(","), given.seeds.split(",")
    print(machine(), f"\n\n{given.folder.name}, {given.minutes:g} minutes, seeds {given.seeds}\n", flush=True)
    found: dict[str, list[pd.DataFrame]] = {way: [] for way in [*ways, PLAIN]}
    for seed in seeds:
        common = {"data.format": "folder", "data.root": str(given.folder.resolve()), "split.test": "0.3", "seed": seed}
        channels = _channels(settings.load(None, common))
        common |= {"data.channels": ",".join(channels)}
        for way in ways:
            with tempfile.TemporaryDirectory(prefix="quality-") as home:
                knobs = common | {"train.minutes": f"{given.minutes:g}"}
                found[way].append(evaluated(way, knobs, Path(home)))
            print(f"{way}, seed {seed}: {found[way][-1]['dice'].mean():.4f}", file=sys.stderr, flush=True)
        reached, known = plain(settings.load(None, common), given.minutes), found[ways[0]][-1]
        found[PLAIN].append(known[["case", "patient"]].assign(dice=[reached[case] for case in known["case"]]))
    rows = []
    for way, parts in found.items():
        ours, theirs = (_mean_over_seeds(tables) for tables in (parts, found[PLAIN]))
        mean = statistics.bootstrap_mean(ours["dice"], ours["patient"], SAMPLES, 0)
        apart = statistics.paired(ours["dice"], theirs["dice"], ours["patient"], SAMPLES, 0, alternative="two-sided")
        gain = "" if way == PLAIN else f"{apart.mean:+.4f} ({apart.low:+.4f} to {apart.high:+.4f}), p {apart.p:.3f}"
        rows.append([way, f"{mean.mean:.4f} ({mean.low:.4f} to {mean.high:.4f})", gain, str(mean.n)])
    table(f"way|test Dice|beside the {PLAIN}|cases", rows)


def _channels(config: Config) -> tuple[str, ...]:
    """The channels that a plan would read, for all ways alike."""
    planned = {one.knob: one.value for one in rules.plan(fingerprint.measure(config, lambda *_: None), 1)}
    return tuple(planned["data.channels"])


def _mean_over_seeds(tables: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables).groupby(["case", "patient"], as_index=False)["dice"].mean()


if __name__ == "__main__":
    main()
