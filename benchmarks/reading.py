"""Reading a data set: `python -m benchmarks.reading`.

Seconds and peak memory of the steps check and preprocess, of many pictures against a tenth of them (memory should stay
flat), and on one core against all of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 256
STEPS = ("check", "preprocess")


def write(root: Path, count: int) -> None:
    """So many pictures with a disc of another place and noise, and their masks."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    for n in range(count):
        rng = np.random.default_rng(n)
        y, x = rng.integers(64, SIDE - 64, 2)
        mask = ((rows - y) ** 2 + (columns - x) ** 2 < rng.integers(20, 40) ** 2).astype(np.uint8)
        coarse = rng.integers(0, 100, (8, 8), dtype=np.uint8).repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1)
        image = coarse + 90 * mask + rng.integers(0, 40, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{n:05d}.png", compress_level=1)
        Image.fromarray(mask * 255).save(root / "masks" / f"{n:05d}.png", compress_level=1)


def measure(step: str, root: Path, cores: set[int]) -> tuple[float, float]:
    """Seconds and MiB of a step on some cores, from its start to its end."""
    with tempfile.TemporaryDirectory() as home:
        knobs = {
            "data.format": "folder",
            "data.root": root,
            "check.duplicates": "warn",
        }
        command = [sys.executable, "-m", f"steps.{step}", *(f"--{name}={value}" for name, value in knobs.items())]
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.sched_setaffinity(process.pid, cores)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)}: status {status}")
        return time.perf_counter() - began, used.ru_maxrss / 1024


def main() -> None:
    """Print the figures of both steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    given = parser.parse_args()
    every = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as home:
        few, many = Path(home) / "few", Path(home) / "many"
        write(few, given.pictures // 10)
        write(many, given.pictures)
        for step in STEPS:
            tenth, whole, single = (
                measure(step, few, every),
                measure(step, many, every),
                measure(step, few, {min(every)}),
            )
            print(f"{step}: {given.pictures} pictures {whole[0]:.1f} s, {given.pictures / whole[0]:.0f} a second")
            print(f"  peak memory {whole[1]:.0f} MiB, of a tenth {tenth[1]:.0f} MiB: {whole[1] / tenth[1]:.3f}x")
            told = f"on one core {single[0]:.2f} s, on {len(every)} {tenth[0]:.2f} s: {single[0] / tenth[0]:.2f}x"
            print(f"  a tenth {told}")


if __name__ == "__main__":
    main()
