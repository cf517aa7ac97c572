"""Random changes of a batch, on its device. What sample i gets in epoch e depends on (seed, e, i) alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segpipe.config import AugmentConfig

STREAM = 0xA06
DRAWS = 10


def draw(config: AugmentConfig, seed: int, epoch: int, samples: Sequence[int]) -> dict[str, Tensor]:
    """The parameters of each sample's change, N each: flips (+-1), angle (radians), size, shift, contrast, gamma."""
    u = np.stack([np.random.default_rng([seed, epoch, s, STREAM]).random(DRAWS) for s in samples]).astype(np.float32)
    spread = 2 * u - 1
    geometric, tonal = u[:, 2] < config.affine, u[:, 5] < config.intensity
    values = {
        "mirror_x": np.where(u[:, 0] < config.flip_horizontal, -1, 1),
        "mirror_y": np.where(u[:, 1] < config.flip_vertical, -1, 1),
        "angle": np.where(geometric, np.deg2rad(config.rotation) * spread[:, 3], 0),
        "size": np.where(geometric, 1 + config.scale * spread[:, 4], 1),
        "shift": np.where(tonal, config.brightness * spread[:, 6], 0),
        "contrast": np.where(tonal, 1 + config.contrast * spread[:, 7], 1),
        "gamma": np.where(tonal, 1 + config.gamma * spread[:, 8], 1),
    }
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}


def apply(images: Tensor, labels: Tensor, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Change images N,C,H,W float and labels N,H,W uint8; labels move with the images, by nearest neighbour."""
    values = {name: value.to(images.device) for name, value in values.items()}
    grid = _grid(values, images.shape[-2], images.shape[-1])
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    moved = functional.grid_sample(
        labels.unsqueeze(1).float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return _tones(images, values), moved[:, 0].to(labels.dtype)


def _grid(values: dict[str, Tensor], height: int, width: int) -> Tensor:
    """Sampling positions N,H,W,2; the rotation is one in pixels, whatever the aspect ratio."""
    cos, sin = values["angle"].cos(), values["angle"].sin()
    aspect, zero = height / width, torch.zeros_like(cos)
    rows = [
        torch.stack([values["mirror_x"] * cos, -values["mirror_x"] * sin * aspect, zero], dim=1),
        torch.stack([values["mirror_y"] * sin / aspect, values["mirror_y"] * cos, zero], dim=1),
    ]
    theta = torch.stack(rows, dim=1)
    theta[:, :, :2] /= values["size"][:, None, None]
    return functional.affine_grid(theta, [len(cos), 1, height, width], align_corners=False)


def _tones(images: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Gamma over each channel's own range, then contrast around its mean, then a shift in standard deviations."""
    gamma, contrast, shift = (values[name][:, None, None, None] for name in ("gamma", "contrast", "shift"))
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    span = (high - low).clamp_min(1e-6)
    images = ((images - low) / span).clamp_min(1e-6) ** gamma * span + low
    mean, std = images.mean(dim=(2, 3), keepdim=True), images.std(dim=(2, 3), keepdim=True)
    return (images - mean) * contrast + mean + shift * std
