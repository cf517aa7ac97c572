"""Random augmentation of a batch, on its device. What sample i gets in epoch e depends only on (seed, e, i). All
geometric changes are a single resampling. A change is computed only for the samples that drew it.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from segpipe.config.sections import AugmentConfig

STREAM = 0xA06
Values = dict[str, Tensor]
FLIPS = ("flip_horizontal", "flip_vertical")
LEAST = {  # the smallest amount drawn, as a share of the largest
    "rotation": -1, "scale": -1, "shear": -1, "elastic": 1, "brightness": -1, "contrast": -1, "gamma": -1, "noise": 0,
    "blur": 0, "dropout": 1,
}  # fmt: skip
LATER = {"stretch": -1, "colour": 1, "coarse": 0}  # drawn after all others, which stay what they were without them
SHARED = ("box", "keys", "gamma_inverted")
WARPS = ("rotation", "scale", "stretch", "shear", "elastic")
EARLIER = len(FLIPS) + 2 * len(LEAST) + 6
DRAWS = EARLIER + 2 * len(LATER) + 2
CELLS = 4  # of the elastic deformation's control grid, along the shorter side
# Root mean square of two numbers uniform in -1..1, and what the splines leave of it along two axes.
SPLINE_RMS = (2 / 3) ** 0.5 * 151 / 315
FARTHEST = 50.0  # weights below exp(-50) are kept from becoming denormal, which is slow


def draw(config: AugmentConfig, seed: int, epoch: int, samples: Sequence[int]) -> Values:
    """What each of the N samples gets, by knob and in its unit: N float32, where 0 changes nothing.

    `box` (N,4) is the dropout's height, width, top and left, each as a share of what is possible; `keys` (N,3 int32)
    seed the fields of the elastic deformation and of the noise, and the channels' shifts.
    """
    u = np.stack([np.random.default_rng([seed, epoch, s, STREAM]).random(DRAWS) for s in samples])
    values = {name: u[:, k] < getattr(config, name) for k, name in enumerate(FLIPS)}
    for first, least_of in ((len(FLIPS), LEAST), (EARLIER, LATER)):
        for k, (name, least) in enumerate(least_of.items()):
            chosen, amount = u[:, first + 2 * k] < getattr(config, f"{name}_p"), u[:, first + 2 * k + 1]
            values[name] = chosen * getattr(config, name) * (least + (1 - least) * amount)
    values["box"] = u[:, EARLIER - 6 : EARLIER - 2]
    values["gamma_inverted"] = (values["gamma"] != 0) & (u[:, -1] < config.gamma_inverted)
    keys = u[:, [EARLIER - 2, EARLIER - 1, -2]]
    drawn = {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()}
    return drawn | {"keys": torch.from_numpy((keys * 2**32 - 2**31).astype(np.int32))}


def reach(config: AugmentConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels, each the window's own plus an even number, of what the changes drawn from a config
    can bring into a window of `size`: the window itself where nothing moves.
    """
    turn, shrink, narrow, tilt, bend = (
        getattr(config, name) * (config.enabled and getattr(config, f"{name}_p") > 0) for name in WARPS
    )
    if not (turn or shrink or narrow or tilt or bend):
        return size
    shrink = 1 - (1 - shrink) * (1 - narrow)
    (height, width), turn, slant = size, math.radians(turn), math.tan(math.radians(tilt))
    bent = 2 * bend * min(size) / SPLINE_RMS
    spans = _span(height, width, turn), _span(width + slant * height, height + slant * width, turn)
    around = [math.ceil((span / (1 - shrink) + bent - side) / 2) + 1 for span, side in zip(spans, size, strict=True)]
    return height + 2 * around[0], width + 2 * around[1]


def _span(along: float, across: float, turn: float) -> float:
    """The largest along * cos(angle) + across * sin(angle) for an angle up to `turn`."""
    angle = min(turn, math.atan2(across, along))
    return along * math.cos(angle) + across * math.sin(angle)


def apply(images: Tensor, labels: Tensor, values: Values, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Augment images N,C,H,W float and labels N,H,W uint8 as drawn; labels are moved by nearest neighbour.

    Of the result only the middle is made where a `size` is given. Outside the image its border is repeated, with label
    0. The order: geometry, blur, gamma, contrast and brightness, colour, noise, resolution, dropout. The values stay on
    the CPU, so that nothing waits for a GPU.
    """
    around, marks = images, labels
    images, labels = (_middle(whole, size).clone() for whole in (around, marks))
    warped = _any(values, WARPS)
    rows, own = _select(values, (*FLIPS, *WARPS, "keys"), warped, images.device)
    if len(rows):
        images[rows], labels[rows] = _warp(around[rows], marks[rows], own, images)
    for name, axis in zip(FLIPS, (-1, -2), strict=True):
        rows, _ = _select(values, (), _any(values, (name,)) & ~warped, images.device)
        if len(rows):
            images[rows], labels[rows] = images[rows].flip(axis), labels[rows].flip(axis)
    for names, change in TONES.items():
        rows, own = _select(values, (*names, *SHARED), _any(values, names), images.device)
        if len(rows):
            images[rows] = change(images[rows], own)
    return images, labels


def _middle(whole: Tensor, size: tuple[int, int] | None) -> Tensor:
    """The middle of ...,H,W, of a `size` that differs by even numbers."""
    for axis, side in zip((-2, -1), size or whole.shape[-2:], strict=True):
        whole = whole.narrow(axis, (whole.shape[axis] - side) // 2, side)
    return whole


def _any(values: Values, names: Sequence[str]) -> Tensor:
    """N bool: the samples that drew any of these changes."""
    return torch.stack([values[name] for name in names]).any(dim=0)


def _select(values: Values, names: Sequence[str], chosen: Tensor, device: torch.device) -> tuple[Tensor, Values]:
    """The chosen samples' rows, on the device, and their values of these names."""
    rows = chosen.nonzero()[:, 0]
    return rows.to(device, non_blocking=True), {name: values[name][rows] for name in names if len(rows)}


def _over(amounts: Tensor, like: Tensor) -> Tensor:
    """A number for each sample, N, shaped to broadcast over N,C,H,W, of its dtype and on its device; N,2: N,1,1,2."""
    return amounts.view(len(amounts), 1, 1, -1).to(like, non_blocking=True)


def _middles(length: int, like: Tensor) -> Tensor:
    """Where the pixels along a side have their middles, in pixels."""
    return torch.arange(length, device=like.device, dtype=like.dtype) + 0.5


def _warp(images: Tensor, labels: Tensor, values: Values, window: Tensor) -> tuple[Tensor, Tensor]:
    """The middle of the changed images, as large as `window`."""
    grid = _affine(values, window, images.shape[-2:])
    bent, own = _select(values, ("elastic", "keys"), values["elastic"] != 0, images.device)
    if len(bent):
        grid[bent] += _displacement(own, window, images.shape[-2:])
    moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    marks = labels.unsqueeze(1).to(images.dtype)
    marks = functional.grid_sample(marks, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, marks[:, 0].to(labels.dtype)


def _affine(values: Values, window: Tensor, whole: Sequence[int]) -> Tensor:
    """Where each pixel of a window h,w in the middle of a `whole` H,W comes from, N,h,w,2 (x, y) in -1..1 of the whole.

    Forwards: flip, stretch (columns times 1 + `stretch`, rows divided by it), shear along the rows, rotation
    (counter-clockwise as displayed), scale; angles are those on the pixel grid, whatever the aspect ratio. In double
    precision up to the matrix, so that a sample's last bit does not depend on its place in a batch.
    """
    (height, width), (down, along) = window.shape[-2:], whole
    angle, shear, scale = (values[name].double() for name in ("rotation", "shear", "scale"))
    angle, tilt, size = angle.deg2rad(), shear.deg2rad().tan(), 1 + scale
    cos, sin = angle.cos() / size, angle.sin() / size
    stretch = 1 + values["stretch"].double()
    mirror_x, mirror_y = (1 - 2 * values[name] for name in FLIPS)
    mirror_x, mirror_y = mirror_x / stretch, mirror_y * stretch
    from_x, from_y = (
        _over(torch.stack(pair, dim=1), window)
        for pair in (
            (mirror_x * (cos - tilt * sin) * (width / along), mirror_y * sin / (down / width)),
            (mirror_x * (sin + tilt * cos) * -(height / along), mirror_y * cos * (height / down)),
        )
    )
    x, y = (_middles(length, window) * (2 / length) - 1 for length in (width, height))
    return from_x * x[:, None] + from_y * y[:, None, None]


def _displacement(values: Values, window: Tensor, whole: Sequence[int]) -> Tensor:
    """A cubic B-spline free-form deformation (Rueckert et al. 1999), N,h,w,2 (x, y) in the units of `_affine`.

    The root mean square length is `elastic` times the shorter side, the longest 3.6 times that.
    """
    shorter = min(window.shape[-2:])
    down, along = (_splines(n, round(CELLS * n / shorter), window) for n in window.shape[-2:])
    count = 2 * down.shape[1] * along.shape[1]
    control = (2 * _uniform(values["keys"][:, 0], count, window) - 1).view(-1, 2, down.shape[1], along.shape[1])
    field = down @ (control * _over(values["elastic"] * (2 * shorter / SPLINE_RMS), window)) @ along.T
    return torch.stack([field[:, 0] / whole[1], field[:, 1] / whole[0]], dim=-1)


def _splines(length: int, cells: int, like: Tensor) -> Tensor:
    """The cubic B-splines on `cells` cells at each of `length` pixels, length,cells+3; a row sums to 1."""
    position = _middles(length, like) * (cells / length)
    distance = (position[:, None] - torch.arange(-1, cells + 2, device=like.device)).abs()
    return ((2 - distance).clamp_min(0) ** 3 - 4 * (1 - distance).clamp_min(0) ** 3) / 6


def _blur(images: Tensor, values: Values) -> Tensor:
    """Gaussian of `blur` pixels; near the border the weights inside of the image are scaled to sum to 1."""
    sigma = _over(values["blur"], images)

    def weights(length: int) -> Tensor:
        place = torch.arange(length, device=images.device)
        apart = ((place[:, None] - place) / sigma) ** 2 / 2
        return functional.normalize((-apart.clamp_max(FARTHEST)).exp(), p=1, dim=-1)

    return weights(images.shape[-2]) @ images @ weights(images.shape[-1]).mT


def _gamma(images: Tensor, values: Values) -> Tensor:
    """Power 1 + `gamma` over each channel's own range, or over that of its negative; by its logarithm, four times as
    fast as `pow`.
    """
    sign = 1 - 2 * _over(values["gamma_inverted"], images)
    images = images * sign
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    span = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    return (
        ((images - low) / span).log_().mul_(_over(1 + values["gamma"], images)).exp_().mul_(span).add_(low).mul_(sign)
    )


def _centred(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each channel minus its mean, the mean, and the standard deviation."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    rest = images - mean
    return rest, mean, torch.linalg.vector_norm(rest, dim=(2, 3), keepdim=True) / images[0, 0].numel() ** 0.5


def _linear(images: Tensor, values: Values) -> Tensor:
    """Contrast around each channel's mean, and a shift by `brightness` standard deviations."""
    rest, mean, std = _centred(images)
    return rest.mul_(_over(1 + values["contrast"], images)).add_(mean + _over(values["brightness"], images) * std)


def _colour(images: Tensor, values: Values) -> Tensor:
    """A shift of each channel by up to `colour` of its standard deviations."""
    shares = 2 * _uniform(values["keys"][:, 2], images.shape[1], images) - 1
    return images + _centred(images)[2] * shares[:, :, None, None] * _over(values["colour"], images)


def _coarse(images: Tensor, values: Values) -> Tensor:
    """Resampled to 1 - `coarse` of the resolution and back, image by image."""
    resample = partial(functional.interpolate, mode="bilinear", align_corners=False, antialias=True)
    found = []
    for image, lost in zip(images[:, None], values["coarse"].tolist(), strict=True):
        small = [max(1, round(side * (1 - lost))) for side in image.shape[-2:]]
        found.append(resample(resample(image, size=small), size=image.shape[-2:]))
    return torch.cat(found)


def _noise(images: Tensor, values: Values) -> Tensor:
    """Gaussian noise of `noise` standard deviations of each channel."""
    field = _normal(values["keys"][:, 1], images[0].numel(), images).view_as(images)
    return field.mul_(_centred(images)[2] * _over(values["noise"], images)).add_(images)


def _dropout(images: Tensor, values: Values) -> Tensor:
    """A rectangle, up to `dropout` of the image's sides, set to each channel's mean."""
    inside = []
    for k, length in enumerate(images.shape[-2:]):
        side = (values["dropout"] * values["box"][:, k] * length).round().clamp_min(1)
        start = (values["box"][:, k + 2] * (length - side + 1)).floor()
        place = torch.arange(length, device=images.device)
        inside.append((place >= _over(start, images)) & (place < _over(start + side, images)))
    return torch.where(inside[0].mT & inside[1], images.mean(dim=(2, 3), keepdim=True), images)


TONES: dict[tuple[str, ...], Callable[[Tensor, Values], Tensor]] = {
    ("blur",): _blur,
    ("gamma",): _gamma,
    ("contrast", "brightness"): _linear,
    ("colour",): _colour,
    ("noise",): _noise,
    ("coarse",): _coarse,
    ("dropout",): _dropout,
}


def _normal(keys: Tensor, count: int, like: Tensor) -> Tensor:
    """Standard normal numbers for each key, N,count (Box and Muller 1958)."""
    half = (count + 1) // 2
    u = _uniform(keys, 2 * half, like)
    radius, angle = (-2 * u[:, :half].log()).sqrt(), 2 * torch.pi * u[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def _uniform(keys: Tensor, count: int, like: Tensor) -> Tensor:
    """Numbers in (0, 1] for each key, N,count: a hash of key and position, so the same on every device."""
    place = _mixed(torch.arange(count, dtype=torch.int32, device=like.device))
    mixed = _mixed(place ^ keys[:, None].to(like.device, non_blocking=True))
    return (((mixed >> 8) & 0xFFFFFF) + 0.5).to(like.dtype) / 2**24


def _mixed(x: Tensor) -> Tensor:
    """A bijection of int32 whose output bits look independent (lowbias32, Wellons 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, 1)):
        x = (x ^ ((x >> shift) & (2 ** (32 - shift) - 1))) * factor
    return x
