"""What a data set is like, as far as a recipe depends on it: measured on its training cases."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from segpipe.config.sections import Config, PreprocessConfig, Section
from segpipe.data import splits, transform
from segpipe.data.readers import READERS, all_cases, channel_names, open_reader
from segpipe.data.volume import IGNORE, Kind, Spacing, Volume, foreground
from segpipe.errors import InputError
from segpipe.files.hashes import Progress
from segpipe.metrics.centreline import thickness

COLOUR = ("red", "green", "blue")
SIDES = (64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024)  # pixels
REMEMBERED = 10_000  # intensities of foreground that are remembered of a case
COLOURED = 4.0  # grey values by which the channels of a coloured picture differ on average, at least
Mask = NDArray[np.bool_]


class Fingerprint(Section):
    """Medians over the training cases, unless said otherwise.

    `plane` is height, width in pixels, `largest` the largest of each; `spacing` mm along depth, height, width, None for
    pictures without one. `foreground` is the share of the pixels, of all cases together, `filled` the share of the
    slices that have any. `thickness` is that of the thinnest class in pixels, or of the background where that is
    thinner: twice the distance from its centreline to its border. `coloured` is the share of pictures whose channels
    differ. `survival` is the mean Dice of the masks with themselves after they were resampled to a longer side of so
    many pixels and back, of the class or background where that is lowest; for sides below the largest case's. `pixels`
    is the smallest and the largest height of a pixel in mm. `lowest` is the lowest intensity of all, `window` the
    0.5th and 99.5th percentile of those of foreground.
    """

    kind: Kind
    cases: int
    patients: int
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    plane: tuple[int, int]
    largest: tuple[int, int]
    depth: int
    spacing: Spacing | None
    foreground: float
    filled: float
    thickness: float
    coloured: float
    survival: dict[int, float]
    pixels: tuple[float, float] | None
    lowest: float
    window: tuple[float, float]


def measure(config: Config, progress: Progress) -> Fingerprint:
    """Read the training cases and measure them; pictures in colour, to see whether they have any.

    Raises InputError as the reader does, and where no training case has any foreground.
    """
    pictures = READERS[config.data.format].kind == "picture"
    colour = config.data.model_copy(update={"channels": COLOUR}) if pictures else config.data
    reader = open_reader(config.model_copy(update={"data": colour}))
    every = all_cases(reader)
    sides = splits.assign(every, config.split, config.seed)
    cases = [case for case in every if sides[case.patient] == "train"]
    shapes, spacings, thicknesses, coloured, survivals = [], [], [], [], []
    found = seen = filled = slices = 0
    lowest, known_intensities = math.inf, []
    for number, case in enumerate(cases, start=1):
        volume = reader.load(case)
        masks = foreground(volume.mask)
        areas = masks.sum(axis=(1, 2))
        busiest = volume.mask[int(areas.argmax())]
        shapes.append(masks.shape)
        spacings.append(volume.spacing)
        coloured.append(pictures and _coloured(volume))
        found, seen, filled, slices = (
            total + more
            for total, more in zip(
                (found, seen, filled, slices), (areas.sum(), masks.size, (areas > 0).sum(), len(areas)), strict=True
            )
        )
        lowest = min(lowest, float(volume.image.min()))
        if masks.any():
            known_intensities.append(_spread(volume.image[:, masks]))
            parts = [busiest == label for label in np.unique(busiest) if label != IGNORE]
            thicknesses.append(min(thickness(part) for part in parts))
            survivals.append([min(survival(part, side) for part in parts) for side in SIDES])
        progress(number, len(cases), case.name)
    if not thicknesses:
        raise InputError(f"{reader.root}: no training case has any foreground; nothing to plan from")
    planes: NDArray[np.int64] = np.array(shapes)
    intensities = np.concatenate(known_intensities)
    known = [spacing for spacing in spacings if spacing]
    return Fingerprint(
        kind=READERS[config.data.format].kind,
        cases=len(cases),
        patients=len({case.patient for case in cases}),
        channels=channel_names(config.data),
        classes=config.data.class_names,
        plane=_ints(np.median(planes[:, 1:], axis=0)),
        largest=_ints(planes[:, 1:].max(axis=0)),
        depth=int(np.median(planes[:, 0])),
        spacing=_three(np.median(np.array(known), axis=0)) if known else None,
        foreground=float(found / seen),
        filled=float(filled / slices),
        thickness=float(np.median(thicknesses)),
        coloured=float(np.mean(coloured)),
        survival={
            side: float(kept)
            for side, kept in zip(SIDES, np.mean(survivals, axis=0), strict=True)
            if side < planes[:, 1:].max()
        },
        lowest=lowest,
        window=(float(np.percentile(intensities, 0.5)), float(np.percentile(intensities, 99.5))),
        pixels=(min(one[1] for one in known), max(one[1] for one in known)) if known else None,
    )


def survival(mask: Mask, longest: int) -> float:
    """Dice of a mask H,W with itself after it was resampled to a longer side and back; 1 where it is not larger."""
    height, width = mask.shape
    if longest >= max(height, width):
        return 1.0
    smaller = transform.working_plane((height, width), None, PreprocessConfig(longest=longest))
    small = transform.resampled(mask[None, None].astype(np.float32), smaller)
    back = transform.resampled(small, (height, width))[0, 0] >= 0.5
    return _dice(mask, back)


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most so many of some values, evenly chosen in their order."""
    ordered = np.sort(values, axis=None)
    spread: NDArray[np.float32] = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), REMEMBERED)).astype(int)]
    return spread


def _dice(one: Mask, other: Mask) -> float:
    both = int(one.sum() + other.sum())
    return float(2 * (one & other).sum() / both) if both else 1.0


def _coloured(volume: Volume) -> bool:
    return bool(np.abs(volume.image - volume.image.mean(axis=0)).mean() > COLOURED)


def _ints(values: Iterable[float]) -> tuple[int, int]:
    height, width = (int(value) for value in values)
    return height, width


def _three(values: Sequence[float]) -> Spacing:
    depth, height, width = (float(value) for value in values)
    return depth, height, width
