"""Seconds a case for HD95 with NSD, and for all metrics, beside MONAI's HD95 with NSD on the same masks.

    python -m benchmarks.metrics

Baseline: monai.metrics.compute_hausdorff_distance (95th percentile) and compute_surface_dice, one after the other on
tensors made beforehand. Rounds take turns; the median counts. Masks: noisy ellipsoids, and branching vessels.
"""

import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage

from segpipe.metrics import measurement, surface

Mask = NDArray[np.bool_]
Pair = tuple[Mask, Mask]
TOLERANCE, BAND, ROUNDS = 2.0, 10.0, 15


def noise(rng: np.random.Generator, shape: tuple[int, ...], smooth: float) -> NDArray[np.float64]:
    values = ndimage.gaussian_filter(rng.standard_normal(shape), smooth)
    return values / values.std()


def signed_distance(mask: Mask) -> NDArray[np.float64]:
    return ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)


def ellipsoids(shape: tuple[int, ...]) -> Pair:
    """An ellipsoid with a rough edge, and the same with its edge moved by some voxels."""
    rng = np.random.default_rng([0, *shape])
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    reference = sum((x / radius) ** 2 for x, radius in zip(axes, (0.5, 0.6, 0.4), strict=False)) < 1 + 0.15 * noise(
        rng, shape, 3
    )
    return signed_distance(reference) + 4 * noise(rng, shape, 2.5) < 1, reference


def vessels(shape: tuple[int, ...]) -> Pair:
    """Branches that leave one another and thin out, and the same with a rough edge and without the thinnest."""
    rng, lines = np.random.default_rng([1, *shape]), np.zeros(shape, bool)
    waiting = [(np.array([shape[0] * 0.1, shape[1] * 0.5]), 1.2, 4)]
    thick = np.zeros(shape)
    while waiting:
        at, angle, width = waiting.pop()
        for step in range(shape[0] // 4):
            angle += rng.normal(0, 0.08)
            at = at + np.array([np.sin(angle), np.cos(angle)])
            if not (0 <= at[0] < shape[0] and 0 <= at[1] < shape[1]):
                break
            lines[tuple(at.astype(int))] = True
            thick[tuple(at.astype(int))] = width
            if width > 1 and step and step % (shape[0] // 8) == 0:
                waiting.append((at, angle + rng.choice([-0.9, 0.9]), width - 1))
        else:
            if width > 1:
                waiting.append((at, angle + 0.3, width - 1))
    far, nearest = ndimage.distance_transform_edt(~lines, return_indices=True)
    width = thick[tuple(nearest)]
    return (far + 0.8 * noise(rng, shape, 2) < width) & (width > 1), far <= width


CASES: dict[str, Pair] = {
    "ellipse 256 x 256": ellipsoids((256, 256)),
    "vessels 256 x 256": vessels((256, 256)),
    "ellipse 512 x 512": ellipsoids((512, 512)),
    "vessels 512 x 512": vessels((512, 512)),
    "ellipsoid 128^3": ellipsoids((128, 128, 128)),
}


def ours(prediction: Mask, reference: Mask) -> tuple[float, float]:
    found = surface.distances(prediction, reference, (1.0,) * reference.ndim)
    return surface.hd95(found), surface.nsd(found, TOLERANCE)


def monai(prediction: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    pair = prediction, reference
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95)
    return hd95.item(), compute_surface_dice(*pair, class_thresholds=[TOLERANCE], include_background=True).item()


def everything(prediction: Mask, reference: Mask) -> Callable[[], object]:
    shape = reference.shape if reference.ndim == 3 else (1, *reference.shape)
    p, r = (mask.reshape(shape).astype(np.uint8) for mask in (prediction, reference))
    rough = np.random.default_rng(2).normal(0.25 + 0.5 * p, 0.15)
    probability = np.clip(rough, 0, 1).astype(np.float32)
    return lambda: measurement.measure(p, r, probability, (1.0, 1.0, 1.0), 1, TOLERANCE, BAND)


def milliseconds(actions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median time of each, taking turns, after a round that does not count."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(rounds + 1):
        for action, taken in zip(actions, times, strict=True):
            began = time.perf_counter()
            action()
            if turn:
                taken.append(1000 * (time.perf_counter() - began))
    return [statistics.median(taken) for taken in times]


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # MONAI's own, of itself
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("monai", "scipy", "scikit-image", "scikit-learn"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {versions}")
    print(f"median of {ROUNDS} rounds; ms a case for HD95 + NSD")
    heads = ("Dice", "segpipe", "MONAI", "MONAI / segpipe", "largest difference", "all metrics ms")
    print(f"{'masks':<19}" + f"{heads[0]:>6}" + "".join(f"{head:>20}" for head in heads[1:]))
    for name, pair in CASES.items():
        tensors = [torch.from_numpy(mask)[None, None] for mask in pair]
        here, there = ours(*pair), monai(*tensors)
        difference = max(abs(a - b) for a, b in zip(here, there, strict=True))
        fast, slow = milliseconds([lambda p=pair: ours(*p), lambda t=tensors: monai(*t)], ROUNDS)
        (whole,) = milliseconds([everything(*pair)], 5)
        dice = 2 * np.count_nonzero(pair[0] & pair[1]) / (pair[0].sum() + pair[1].sum())
        print(f"{name:<19}{dice:>6.2f}{fast:>20.2f}{slow:>20.2f}{slow / fast:>20.1f}{difference:>20.1e}{whole:>20.1f}")


if __name__ == "__main__":
    main()
