"""Cases with their masks."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segpipe.data.volume import IGNORE, Kind, foreground
from segpipe.plots.colours import FALSE, HIT, IGNORED, INK, MISSED, class_colours
from segpipe.plots.style import printable

if TYPE_CHECKING:
    from segpipe.data.dataset import Dataset

Array = NDArray[np.float32]
Mask = NDArray[np.uint8]
PANEL = 192  # pixels: the shorter side of a panel of `prediction_png` and `slices`, at least
COLOURED = 3  # channels of a picture that is shown in colour
OPACITY, TEXT, MARGIN = 0.75, 12, 4
LARGEST = 256  # pixels: the longer side of a panel of `slices`, at most; three times that for a picture


def busiest_slice(mask: Mask) -> int:
    """The slice of D,H,W with most foreground, or the middle one."""
    areas = foreground(mask).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(mask) // 2


def differing_slice(reference: Mask, predicted: Mask) -> int:
    """The slice of D,H,W in which most voxels differ, without those that are ignored; the busiest where none does."""
    areas = ((reference != predicted) & (reference != IGNORE)).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else busiest_slice(reference)


def _upright(plane: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Rows from top to bottom: volumes are stored from posterior to anterior, pictures as they are seen."""
    return plane[::-1] if kind == "volume" else plane


def _shown(image: Array, kind: Kind) -> Array:
    """The channels of C,... that are shown: all of a picture of three colours, else the first."""
    return image if kind == "picture" and len(image) == COLOURED else image[:1]


def _range(planes: Array) -> tuple[float, float]:
    """What is shown as black and as white."""
    low, high = np.percentile(planes, [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def _pixels(planes: Array, limits: tuple[float, float] | None = None) -> Array:
    """One or three channels c,H,W as H,W,RGB in 0..1."""
    low, high = limits or _range(planes)
    scaled = np.clip((planes - low) / (high - low), 0, 1)
    return np.moveaxis(np.broadcast_to(scaled, (COLOURED, *planes.shape[1:])), 0, -1)


def _draw(axes: Any, planes: Array, limits: tuple[float, float] | None = None) -> None:
    axes.imshow(_pixels(planes, limits), interpolation="nearest")
    axes.set_axis_off()


def _outline(axes: Any, mask: Mask, classes: Sequence[str]) -> None:
    """The outline of each class in its colour."""
    for label, colour in enumerate(class_colours(classes), start=1):
        inside = mask == label
        if inside.any() and not inside.all():
            axes.contour(inside, levels=[0.5], colors=colour, linewidths=1.0)


def _key(figure: Figure, masks: Sequence[Mask], classes: Sequence[str]) -> None:
    """A legend of the classes that are there, where there are several."""
    from matplotlib.patches import Patch

    found = {int(label) for mask in masks for label in np.unique(mask)}
    present = [
        (name, colour)
        for k, (name, colour) in enumerate(zip(classes, class_colours(classes), strict=True), 1)
        if k in found
    ]
    if len(classes) > 1 and present:
        handles = [Patch(color=colour, label=printable(name)) for name, colour in present]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False
        )


def overlay(
    image: Array, reference: Mask, predicted: Mask, title: str, path: Path, kind: Kind, classes: Sequence[str]
) -> None:
    """One case (image C,D,H,W; masks D,H,W) at its busiest slice: image, reference, prediction, agreement."""
    z = busiest_slice(reference if foreground(reference).any() else predicted)
    planes = _shown(image, kind)[:, z]
    planes = planes[:, ::-1] if kind == "volume" else planes
    truth, guess = (_upright(a, kind) for a in (reference[z], predicted[z]))
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes, name in zip(panels, ("image", "reference", "prediction", "agreement"), strict=True):
        _draw(axes, planes)
        axes.set_title(name, fontsize=9)
    panels[1].imshow(_labelled(truth, classes, MISSED), interpolation="nearest")
    panels[2].imshow(_labelled(guess, classes, FALSE), interpolation="nearest")
    panels[3].imshow(_agreement(truth, guess), interpolation="nearest")
    ignored = ", grey ignored" if (truth == IGNORE).any() else ""
    panels[3].set_title("green agreed, blue missed, red false" + ignored, fontsize=8)
    whole = f"{title}, slice {z + 1} of {len(reference)}" if kind == "volume" else title
    figure.suptitle(printable(whole), fontsize=10)
    _key(figure, (truth, guess), classes)
    figure.savefig(path, dpi=110)


def _labelled(labels: Mask, classes: Sequence[str], single: str) -> Array:
    """Labels H,W to colours H,W,RGBA: those of the classes, or `single` where there is one."""
    colours = np.zeros((*labels.shape, 4), dtype=np.float32)
    for label, colour in enumerate(class_colours(classes) if len(classes) > 1 else (single,), start=1):
        colours[labels == label] = (*to_rgb(colour), OPACITY)
    colours[labels == IGNORE] = (*to_rgb(IGNORED), OPACITY)
    return colours


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
        colours[where] = (*to_rgb(colour), OPACITY)
    return colours


def prediction_png(
    image: Array, reference: Mask, predicted: Mask, path: Path, kind: Kind, classes: Sequence[str]
) -> None:
    """A slice C,H,W float with its masks H,W: image, reference, with several classes the prediction, and agreement side
    by side, as a small picture, fast.
    """
    planes = _shown(image, kind)
    planes = planes[:, ::-1] if kind == "volume" else planes
    truth, guess = (_upright(a, kind) for a in (reference, predicted))
    pixels, several = _pixels(planes), len(classes) > 1
    tints = [
        _labelled(truth, classes, HIT),
        *([_labelled(guess, classes, HIT)] if several else []),
        _agreement(truth, guess),
    ]
    panels = [pixels, *(_tinted(pixels, tint) for tint in tints)]
    row = np.concatenate([np.pad(panel, ((0, 0), (0, 1), (0, 0)), constant_values=1) for panel in panels], axis=1)
    picture = _enlarged(row[:, :-1], truth.shape)
    (_with_key(picture, classes) if several else picture).save(path, compress_level=1)


def _with_key(picture: Image.Image, classes: Sequence[str]) -> Image.Image:
    """A picture above a legend of the classes."""
    font, line = ImageFont.load_default(TEXT), TEXT + 2 * MARGIN
    places, left, top = [], MARGIN, 0
    for name, colour in zip(classes, class_colours(classes), strict=True):
        width = TEXT + 3 * MARGIN + int(font.getlength(name))
        if left > MARGIN and left + width > picture.width:
            left, top = MARGIN, top + line
        places.append((name, colour, left, top + picture.height))
        left += width
    sheet = Image.new("RGB", (picture.width, picture.height + top + line), "white")
    sheet.paste(picture)
    draw = ImageDraw.Draw(sheet)
    for name, colour, x, y in places:
        draw.rectangle((x, y + MARGIN, x + TEXT, y + MARGIN + TEXT), fill=colour)
        draw.text((x + TEXT + MARGIN, y + MARGIN), name, fill=INK, font=font)
    return sheet


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


def slices(
    image: Array, reference: Mask, predicted: Mask, kind: Kind, classes: Sequence[str], most: int = 64
) -> Slices:
    """At most so many slices of a case (image C,D,H,W; masks D,H,W), evenly chosen, the busiest among them.

    All slices share one scale. Blue is the reference, red the prediction, or each class has its colour; green is where
    they agree.
    """
    depth = len(reference)
    chosen = np.unique(np.linspace(0, depth - 1, min(most, depth)).round().astype(int))
    busiest = busiest_slice(reference if foreground(reference).any() else predicted)
    first = int(np.abs(chosen - busiest).argmin())
    chosen[first] = busiest
    planes = _shown(image, kind)
    limits = _range(planes)
    strips = [_strip(planes[:, z], reference[z], predicted[z], limits, kind, classes) for z in chosen]
    shown = [Slice(int(z), _webp(strip)) for z, strip in zip(chosen, strips, strict=True)]
    return Slices(shown, first, (strips[0].width // 4, strips[0].height))


def _strip(
    planes: Array, truth: Mask, guess: Mask, limits: tuple[float, float], kind: Kind, classes: Sequence[str]
) -> Image.Image:
    planes = planes[:, ::-1] if kind == "volume" else planes
    truth, guess = (_upright(a, kind) for a in (truth, guess))
    pixels, unknown = _pixels(planes, limits), np.where(truth == IGNORE, truth, guess)
    tints = (_labelled(truth, classes, MISSED), _labelled(unknown, classes, FALSE), _agreement(truth, guess))
    panels = [_tinted(pixels, tint) for tint in tints]
    strip = _enlarged(np.concatenate([pixels, *panels], axis=1), truth.shape)
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


def outlined(image: Array, mask: Mask, kind: Kind, classes: Sequence[str]) -> bytes:
    """The busiest slice of a case (image C,D,H,W; mask D,H,W) as WebP: as it is, and with its mask beside it."""
    z = busiest_slice(mask)
    planes = _shown(image, kind)[:, z]
    planes = planes[:, ::-1] if kind == "volume" else planes
    pixels, labels = _pixels(planes), _upright(mask[z], kind)
    row = np.concatenate([pixels, _tinted(pixels, _labelled(labels, classes, HIT))], axis=1)
    picture = _enlarged(row, labels.shape)
    picture.thumbnail((2 * LARGEST, 2 * LARGEST), Image.Resampling.BOX)
    return _webp(picture)


def augmented(
    before: tuple[Array, Mask],
    after: tuple[Array, Mask],
    path: Path,
    names: Sequence[str],
    kind: Kind,
    classes: Sequence[str],
) -> None:
    """The first samples of a batch (images N,C,H,W, labels N,H,W): as they are above as augmented.

    Both are shown on the scale of the original, so that a change of brightness is seen.
    """
    count = min(len(names), 8)
    figure = Figure(figsize=(1.6 * count, 3.6))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.88, wspace=0.04, hspace=0.04)
    panels = figure.subplots(2, count, squeeze=False)
    for k in range(count):
        limits = _range(_shown(before[0][k], kind))
        for row, (images, labels) in enumerate((before, after)):
            planes = _shown(images[k], kind)
            _draw(panels[row, k], planes[:, ::-1] if kind == "volume" else planes, limits)
            _outline(panels[row, k], _upright(labels[k], kind), classes)
        panels[0, k].set_title(printable(names[k]), fontsize=7)
    figure.suptitle("above: original, below: augmented", fontsize=9)
    figure.savefig(path, dpi=110)


def dataset(dataset: "Dataset", path: Path, count: int = 6) -> None:
    """Slices of a few training cases as the data set holds them, each channel, with the mask's outline."""
    cases = sorted(dataset.where(split="train").cases, key=lambda c: (not any(c.voxels.values()), c.case))[:count]
    if not cases:
        return
    manifest = dataset.manifest
    kind, classes = manifest.kind, manifest.classes
    shown = 1 if kind == "picture" and len(manifest.channels) == COLOURED else len(manifest.channels)
    figure = Figure(figsize=(2.4 * len(cases), 2.5 * shown + 0.3 * (len(classes) > 1)), layout="constrained")
    panels = figure.subplots(shown, len(cases), squeeze=False)
    masks = []
    for column, case in enumerate(cases):
        image, mask = dataset.stored(case)
        z = busiest_slice(mask)
        masks.append(mask[z])
        for row in range(shown):
            planes = image[:, z].astype(np.float32)[row : row + len(image) - shown + 1]
            _draw(panels[row][column], planes[:, ::-1] if kind == "volume" else planes)
            _outline(panels[row][column], _upright(mask[z], kind), classes)
        panels[0][column].set_title(printable(f"{case.case}\n{case.site}"), fontsize=7)
    _key(figure, masks, classes)
    figure.savefig(path, dpi=100)
