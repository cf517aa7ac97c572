"""Cases with their masks."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from segpipe.data.volume import IGNORE, Kind, foreground
from segpipe.plots.style import FALSE, HIT, IGNORED, MISSED, printable

if TYPE_CHECKING:
    from segpipe.data.dataset import Dataset

Array = NDArray[np.float32]
Mask = NDArray[np.uint8]
PANEL = 192  # pixels: the shorter side of a panel of `prediction_png` and `slices`, at least
LARGEST = 256  # pixels: the longer side of a panel of `slices`, at most; three times that for a picture


def busiest_slice(mask: Mask) -> int:
    """The slice of D,H,W with most foreground, or the middle one."""
    areas = foreground(mask).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(mask) // 2


def _upright(plane: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Rows from top to bottom: volumes are stored from posterior to anterior, pictures as they are seen."""
    return plane[::-1] if kind == "volume" else plane


def _range(plane: Array) -> tuple[float, float]:
    """What is shown as black and as white."""
    low, high = np.percentile(plane, [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def _grey(axes: Any, plane: Array, limits: tuple[float, float] | None = None) -> None:
    low, high = limits or _range(plane)
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def _outline(axes: Any, mask: Mask, colour: str) -> None:
    inside = foreground(mask)
    if inside.any() and not inside.all():
        axes.contour(inside, levels=[0.5], colors=colour, linewidths=1.0)


def overlay(image: Array, reference: Mask, predicted: Mask, title: str, path: Path, kind: Kind) -> None:
    """One case (image C,D,H,W; masks D,H,W) at its busiest slice: image, reference, prediction, agreement."""
    z = busiest_slice(reference if foreground(reference).any() else predicted)
    plane, truth, guess = (_upright(a, kind) for a in (image[0, z], reference[z], predicted[z]))
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes, name in zip(panels, ("image", "reference", "prediction", "agreement"), strict=True):
        _grey(axes, plane)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    _outline(panels[1], truth, MISSED)
    _outline(panels[2], guess, FALSE)
    panels[3].imshow(_agreement(truth, guess), interpolation="nearest")
    ignored = ", grey ignored" if (truth == IGNORE).any() else ""
    panels[3].set_title("green agreed, blue missed, red false" + ignored, fontsize=8)
    whole = f"{title}, slice {z + 1} of {len(reference)}" if kind == "volume" else title
    figure.suptitle(printable(whole), fontsize=10)
    figure.savefig(path, dpi=110)


def _agreement(truth: Mask, guess: Mask) -> Array:
    """Labels H,W to colours H,W,RGBA; a voxel of another class than the reference's counts as missed."""
    real = foreground(truth)
    agreed = real & (truth == guess)
    colours = np.zeros((*truth.shape, 4), dtype=np.float32)
    for where, colour in (
        (agreed, HIT),
        (real & ~agreed, MISSED),
        ((guess > 0) & (truth == 0), FALSE),
        (truth == IGNORE, IGNORED),
    ):
        colours[where] = (*to_rgb(colour), 0.75)
    return colours


def prediction_png(image: Array, reference: Mask, predicted: Mask, path: Path, kind: Kind) -> None:
    """A slice H,W float with its masks H,W: image, reference, agreement side by side, as a small picture, fast."""
    plane, truth, guess = (_upright(a, kind) for a in (image, reference, predicted))
    grey = _grey_pixels(plane, _range(plane))
    panels = [grey, _tinted(grey, _agreement(truth, truth)), _tinted(grey, _agreement(truth, guess))]
    row = np.concatenate([np.pad(panel, ((0, 0), (0, 1), (0, 0)), constant_values=1) for panel in panels], axis=1)
    _enlarged(row[:, :-1], plane.shape).save(path, compress_level=1)


def _grey_pixels(plane: Array, limits: tuple[float, float]) -> Array:
    low, high = limits
    return np.repeat(np.clip((plane - low) / (high - low), 0, 1)[..., None], 3, axis=2)


def _tinted(grey: Array, colours: Array) -> Array:
    share = colours[..., 3:]
    return np.asarray(grey * (1 - share) + colours[..., :3] * share)


def _enlarged(row: Array, panel: tuple[int, ...]) -> Image.Image:
    """H,W,3 in 0..1 as a picture, its pixels squares so large that a panel of that shape is PANEL pixels at least."""
    times = max(1, -(-PANEL // min(panel)))
    return Image.fromarray((row * 255).round().astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1))


class Slice(NamedTuple):
    """A slice, counted from 0, as WebP: image, reference, prediction and agreement side by side, of equal width."""

    slice: int
    webp: bytes


class Slices(NamedTuple):
    """Slices of a case, the place among them of the busiest, width and height of one panel in pixels."""

    shown: list[Slice]
    first: int
    size: tuple[int, int]


def slices(image: Array, reference: Mask, predicted: Mask, kind: Kind, most: int = 64) -> Slices:
    """At most so many slices of a case (image C,D,H,W; masks D,H,W), evenly chosen, the busiest among them.

    All slices share one grey scale. Blue is the reference, red the prediction, green where they agree.
    """
    depth = len(reference)
    chosen = np.unique(np.linspace(0, depth - 1, min(most, depth)).round().astype(int))
    busiest = busiest_slice(reference if foreground(reference).any() else predicted)
    first = int(np.abs(chosen - busiest).argmin())
    chosen[first] = busiest
    limits = _range(image[0])
    strips = [_strip(image[0, z], reference[z], predicted[z], limits, kind) for z in chosen]
    shown = [Slice(int(z), _webp(strip)) for z, strip in zip(chosen, strips, strict=True)]
    return Slices(shown, first, (strips[0].width // 4, strips[0].height))


def _strip(plane: Array, truth: Mask, guess: Mask, limits: tuple[float, float], kind: Kind) -> Image.Image:
    plane, truth, guess = (_upright(a, kind) for a in (plane, truth, guess))
    grey, nothing = _grey_pixels(plane, limits), np.where(truth == IGNORE, truth, np.uint8(0))
    panels = [_tinted(grey, _agreement(a, b)) for a, b in ((truth, nothing), (nothing, guess), (truth, guess))]
    strip = _enlarged(np.concatenate([grey, *panels], axis=1), plane.shape)
    width, height = strip.width // 4, strip.height
    share = (LARGEST if kind == "volume" else 3 * LARGEST) / max(width, height)
    if share >= 1:
        return strip
    smaller = (4 * max(1, round(width * share)), max(1, round(height * share)))
    return strip.resize(smaller, Image.Resampling.BOX)


def _webp(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "webp", quality=85, method=1)
    return file.getvalue()


def augmented(
    before: tuple[Array, Mask], after: tuple[Array, Mask], path: Path, names: Sequence[str], kind: Kind
) -> None:
    """The first samples of a batch (images N,C,H,W, labels N,H,W), first channel: as they are above as augmented.

    Both are shown on the grey scale of the original, so that a change of brightness is seen.
    """
    count = min(len(names), 8)
    figure = Figure(figsize=(1.6 * count, 3.6))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.88, wspace=0.04, hspace=0.04)
    panels = figure.subplots(2, count, squeeze=False)
    for k in range(count):
        limits = _range(before[0][k, 0])
        for row, (images, labels) in enumerate((before, after)):
            _grey(panels[row, k], _upright(images[k, 0], kind), limits)
            _outline(panels[row, k], _upright(labels[k], kind), FALSE)
            panels[row, k].set_axis_off()
        panels[0, k].set_title(printable(names[k]), fontsize=7)
    figure.suptitle("above: original, below: augmented", fontsize=9)
    figure.savefig(path, dpi=110)


def dataset(dataset: "Dataset", path: Path, count: int = 6) -> None:
    """Slices of a few training cases as the data set holds them, each channel, with the mask's outline."""
    cases = sorted(dataset.where(split="train").cases, key=lambda c: (not any(c.voxels.values()), c.case))[:count]
    if not cases:
        return
    channels, kind = len(dataset.manifest.channels), dataset.manifest.kind
    figure = Figure(figsize=(2.4 * len(cases), 2.5 * channels), layout="constrained")
    panels = figure.subplots(channels, len(cases), squeeze=False)
    for column, case in enumerate(cases):
        image, mask = dataset.stored(case)
        z = busiest_slice(mask)
        for row in range(channels):
            axes = panels[row][column]
            _grey(axes, _upright(image[row, z].astype(np.float32), kind))
            _outline(axes, _upright(mask[z], kind), FALSE)
            axes.set_axis_off()
        panels[0][column].set_title(printable(f"{case.case}\n{case.site}"), fontsize=7)
    figure.savefig(path, dpi=100)
