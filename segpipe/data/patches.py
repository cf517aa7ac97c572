"""Samples of a data set whose cases have their own size: windows, drawn anew for each epoch."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.config.sections import AugmentConfig, TrainConfig
from segpipe.data import augment, context
from segpipe.data.dataset import Selection
from segpipe.data.slices import Loaded, Numbers
from segpipe.data.volume import IGNORE, foreground
from segpipe.errors import InputError

STREAM = 0x9A7
LARGEST_REACH = 6  # of a window's sides
POSITIONS = 10_000  # foreground pixels of a class that a case remembers
Array = NDArray[Any]


class Place(NamedTuple):
    """Where a window lies: the case, an index into the selected cases, the plane, the first row and column."""

    case: int
    plane: int
    top: int
    left: int


class Side(NamedTuple):
    """A tile's place along one side: its first pixel, and which of its pixels are seen in no tile before it."""

    start: int
    seen: slice


class Patches:
    """Windows of preprocess.size from the selected cases; what a window has outside of its plane is the plane mirrored.

    With `training` an epoch is train.patches windows of each case (0: as many as cover it), of which a share of
    train.foreground is centred on a pixel of a class, each class of the case as often, and the others lie anywhere. The
    places follow from (seed, epoch, sample) alone. Without it, every pixel of every plane once: windows side by side,
    where they overlap labelled IGNORE in the later one, as is what was mirrored.
    """

    def __init__(self, selected: Selection, config: TrainConfig, *, training: bool) -> None:
        preprocess = selected.dataset.manifest.preprocess
        self.size, self.context, self.foreground = preprocess.size, preprocess.context, config.foreground
        stored = [selected.dataset.stored(case) for case in selected.cases]
        self.images, self.labels = [image for image, _ in stored], [labels for _, labels in stored]
        self.tiles = [
            (Place(case, plane, down.start, along.start), down.seen, along.seen)
            for case, labels in enumerate(self.labels)
            for plane in range(len(labels))
            for down in _sides(labels.shape[1], self.size[0])
            for along in _sides(labels.shape[2], self.size[1])
        ]
        self.case_of = np.array([place.case for place, _, _ in self.tiles])
        covering = np.bincount(self.case_of, minlength=len(stored))
        windows = np.full(len(stored), config.patches) if training and config.patches else covering
        self.cases = np.repeat(np.arange(len(stored)), windows)
        self.areas = np.array([int(foreground(self._counted(n)).sum()) for n in range(len(self.tiles))])
        classes = len(selected.dataset.manifest.classes) if training else 0
        self.positions = [_positions(labels, classes) for labels in self.labels]

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.cases)

    def order(self, rng: np.random.Generator) -> Numbers:
        """The samples of an epoch."""
        return rng.permutation(len(self))

    def load(self, numbers: Numbers) -> Loaded:
        """Tiles by their numbers."""
        at = [self.tiles[n][0] for n in numbers.tolist()]
        images = [self._image(place, self.size) for place in at]
        labels = [self._counted(n) for n in numbers.tolist()]
        return Loaded(np.stack(images), np.stack(labels), self.case_of[numbers])

    def draw(self, samples: Numbers, seed: int, epoch: int, config: AugmentConfig) -> Loaded:
        """The windows of some samples, with all around them that augmentation can bring in.

        Raises InputError where that is too much.
        """
        reach = augment.reach(config, self.size)
        if max(whole / side for whole, side in zip(reach, self.size, strict=True)) > LARGEST_REACH:
            raise InputError(
                f"augment.scale, shear and elastic reach {reach[0]} x {reach[1]} pixels for a window of "
                f"{self.size[0]} x {self.size[1]}: lower them"
            )
        before = [(whole - side) // 2 for whole, side in zip(reach, self.size, strict=True)]
        images, labels = [], []
        for sample in samples.tolist():
            at = self.place(sample, seed, epoch)
            around = at._replace(top=at.top - before[0], left=at.left - before[1])
            images.append(self._image(around, reach))
            labels.append(_cut(self.labels[at.case][at.plane], around, reach))
        return Loaded(np.stack(images), np.stack(labels), self.cases[samples])

    def place(self, sample: int, seed: int, epoch: int) -> Place:
        """Where a sample's window lies in an epoch."""
        u, case = np.random.default_rng([seed, epoch, sample, STREAM]).random(4), int(self.cases[sample])
        shape, classes = self.labels[case].shape, self.positions[case]
        room = [max(n - side, 0) for n, side in zip(shape[1:], self.size, strict=True)]
        if classes and u[0] < self.foreground:
            pixels = classes[int(u[1] * len(classes))]
            plane, *pixel = (int(n) for n in np.unravel_index(pixels[int(u[2] * len(pixels))], shape))
            first = [min(max(n - side // 2, 0), most) for n, side, most in zip(pixel, self.size, room, strict=True)]
        else:
            plane, *first = (
                int(share * n) for share, n in zip(u[1:], (shape[0], room[0] + 1, room[1] + 1), strict=True)
            )
        before = [max(side - n, 0) // 2 for n, side in zip(shape[1:], self.size, strict=True)]
        return Place(case, plane, first[0] - before[0], first[1] - before[1])

    def _image(self, at: Place, size: tuple[int, int]) -> Array:
        """What the network sees of a window, (2 * context + 1) * C,h,w: its plane's channels, then its neighbours'."""
        image = self.images[at.case]
        (planes,) = context.around(np.array([at.plane]), 0, image.shape[1] - 1, self.context)
        cuts = [_cut(image[:, plane], at, size) for plane in planes.tolist()]
        return np.concatenate(cuts) if self.context else cuts[0]

    def _counted(self, number: int) -> Array:
        """The labels h,w of a tile, IGNORE where they are another tile's or mirrored."""
        at, down, along = self.tiles[number]
        labels = _cut(self.labels[at.case][at.plane], at, self.size)
        counted = np.full_like(labels, IGNORE)
        counted[down, along] = labels[down, along]
        return counted


def _cut(plane: Array, at: Place, size: tuple[int, int]) -> Array:
    """The window ...,h,w of a plane ...,H,W."""
    for axis, (start, side) in enumerate(zip((at.top, at.left), size, strict=True), start=-2):
        length = plane.shape[axis]
        if 0 <= start <= length - side:
            along = slice(start, start + side)
            plane = plane[..., along, :] if axis == -2 else plane[..., along]
        else:
            plane = plane.take(_mirror(start, side, length), axis)
    return plane


def _sides(length: int, side: int) -> list[Side]:
    """Where tiles lie along `length` pixels, side by side, the last one flush with the end; a shorter length lies in
    the middle of its tile.
    """
    if length <= side:
        before = (side - length) // 2
        return [Side(-before, slice(before, before + length))]
    starts = [*range(0, length - side, side), length - side]
    known = [0, *(start + side for start in starts[:-1])]
    return [Side(start, slice(begin - start, side)) for start, begin in zip(starts, known, strict=True)]


def _mirror(start: int, side: int, length: int) -> Numbers:
    """Pixels `start` to `start + side` of a line that is mirrored at its ends, the outermost pixel repeated."""
    folded = np.arange(start, start + side) % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)


def _positions(labels: Array, classes: int) -> list[Numbers]:
    """For each class that is there, pixels of it, evenly chosen: indices into the flat labels."""
    every = (np.flatnonzero(labels == k) for k in range(1, classes + 1))
    return [
        found[np.linspace(0, len(found) - 1, min(len(found), POSITIONS)).astype(int)] for found in every if len(found)
    ]
