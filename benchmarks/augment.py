"""Augmentation of one batch on the CPU, default and everything on: milliseconds beside MONAI's, sample by sample.

    python -m benchmarks.augment

Baseline: monai.transforms, the same changes with the same probabilities and magnitudes, composed once and called for
each sample, as a DataLoader without worker processes does.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import monai.transforms as mt
import numpy as np
import torch
from torch import Tensor

from segpipe.config.sections import AugmentConfig
from segpipe.data import augment

SHAPES = ((16, 2, 96, 96), (4, 1, 304, 304))
CONFIGS = {
    "default": AugmentConfig(),
    "all on": AugmentConfig(flip_horizontal=1, flip_vertical=1, **{f"{name}_p": 1.0 for name in augment.LEAST}),
}


def milliseconds(action: Callable[[int], object], repeats: int = 31) -> float:
    """Median time of one call, after three that do not count."""
    times = []
    for epoch in range(repeats + 3):
        began = time.perf_counter()
        action(epoch)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[3:])


def ours(config: AugmentConfig, images: Tensor, labels: Tensor) -> Callable[[int], object]:
    samples = range(len(images))
    return lambda epoch: augment.apply(images, labels, augment.draw(config, 0, epoch, samples))


def monai(config: AugmentConfig, images: Tensor, labels: Tensor) -> Callable[[int], object]:
    change = monai_transform(config, min(images.shape[-2:]), images.shape[-1])
    change.set_random_state(0)
    return lambda _: [
        change({"image": image, "label": label[None]}) for image, label in zip(images, labels, strict=True)
    ]


def monai_transform(c: AugmentConfig, shorter: int, width: int) -> mt.Compose:
    """MONAI's equivalents; rotation, scale, shear and elastic in one resampling, as here."""
    both, geometry = ["image", "label"], {"mode": ("bilinear", "nearest"), "padding_mode": ("border", "zeros")}
    affine = {"prob": c.rotation_p, "rotate_range": np.deg2rad(c.rotation), "scale_range": (c.scale, c.scale)}
    if c.elastic_p:
        shift = c.elastic * shorter
        affine["shear_range"] = np.tan(np.deg2rad(c.shear))
        warp = mt.Rand2DElasticd(both, (shorter / 4,) * 2, (shift, shift), **affine, **geometry)
    else:
        warp = mt.RandAffined(both, **affine, **geometry)
    side = max(1, round(c.dropout * width))
    every = [
        mt.RandFlipd(both, c.flip_horizontal, 1),
        mt.RandFlipd(both, c.flip_vertical, 0),
        warp,
        mt.RandGaussianSmoothd("image", (0, c.blur), (0, c.blur), (0, c.blur), prob=c.blur_p),
        mt.RandAdjustContrastd("image", c.gamma_p, (1 - c.gamma, 1 + c.gamma)),
        mt.RandScaleIntensityFixedMeand("image", c.contrast_p, (-c.contrast, c.contrast), channel_wise=True),
        mt.RandStdShiftIntensityd("image", c.brightness, c.brightness_p, channel_wise=True),
        mt.RandGaussianNoised("image", c.noise_p, std=c.noise),
        mt.RandCoarseDropoutd("image", 1, side, fill_value=0, prob=c.dropout_p),
    ]
    return mt.Compose([t for t in every if getattr(t, "prob", 1)])


def main() -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai"))
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}")
    print(f"{'batch':<16}{'changes':<10}{'segpipe ms':>12}{'MONAI ms':>12}{'segpipe / MONAI':>18}")
    for shape in SHAPES:
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        labels = (images[:, 0] > 1).to(torch.uint8)
        for name, config in CONFIGS.items():
            here, there = (milliseconds(make(config, images, labels)) for make in (ours, monai))
            print(f"{'x'.join(map(str, shape)):<16}{name:<10}{here:>12.2f}{there:>12.2f}{here / there:>18.3f}")


if __name__ == "__main__":
    main()
