"""One picture of a case: the input, what was found, and its agreement with the reference.

Grey images are written with a palette, shades of grey and of each colour: a fifth of the time of a colour PNG.
"""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from segpipe.data.volume import IGNORE, foreground
from segpipe.plots.cases import COLOURED, busiest_slice
from segpipe.plots.colours import CLASSES, FALSE, HIT, IGNORED, MISSED, class_colours

PANEL = 320  # pixels: the longer side of a panel, about
CAPTION, GAP, MARGIN, TEXT, SWATCH, INK = 22, 4, 3, 12, 9, 70
COLOURS = (HIT, MISSED, FALSE, IGNORED)  # tints 1, 2, 3, 4; those of several classes follow
AGREED, LEFT_OUT, WRONG, UNKNOWN = range(1, 5)
OPACITY, VISIBLE = 0.6, 96  # share of a colour in its tint; of 255, how much of a pixel must be coloured

Mask = NDArray[np.uint8]


class Panel(NamedTuple):
    """A title, a key of (tint, word), and the tint of each pixel, 0 for none."""

    title: str
    key: tuple[tuple[int, str], ...]
    tints: Mask


class Inks(NamedTuple):
    """The colours of the tints, and how many shades each has in the palette."""

    colours: tuple[str, ...]

    @property
    def shades(self) -> int:
        return 256 // (len(self.colours) + 1)


def draw(
    image: NDArray[np.float32],
    mask: Mask,
    reference: Mask | None,
    title: str,
    found: str,
    dice: str,
    upside: bool,
    classes: Sequence[str],
) -> bytes:
    """A PNG of one case (image C,D,H,W, of which a picture of three channels is shown in colour, else the first; labels
    D,H,W), a volume at the slice with most foreground, the reference's where it has any.

    Red is what was found, or each of several classes has its colour; beside a reference green is agreed, blue missed
    and red false. `upside` says that rows run from posterior to anterior.
    """
    z = busiest_slice(reference if reference is not None and foreground(reference).any() else mask)
    turn = slice(None, None, -1 if upside else 1)
    where = f", slice {z + 1} of {len(mask)}" if len(mask) > 1 else ""
    colours = (*COLOURS, *class_colours(classes)[: len(CLASSES)]) if len(classes) > 1 else COLOURS
    guess, inks = mask[z, turn], Inks(colours)
    panels = [Panel(title + where, (), np.zeros_like(guess)), _found(guess, found, classes)]
    if reference is not None:
        key = ((AGREED, "agreed"), (LEFT_OUT, "missed"), (WRONG, "false"))
        panels.append(Panel(dice, key, _agreement(guess, reference[z, turn])))
    coloured = len(image) == COLOURED and not upside
    shades = [_shades(channel[z, turn], inks.shades) for channel in (image if coloured else image[:1])]
    sheets = [_arrange(grey, panels, inks) for grey in shades]
    pictures = []
    for sheet in sheets:
        picture = Image.fromarray(sheet)
        picture.putpalette(_palette(inks))
        pictures.append(picture)
    whole = _merged(pictures) if coloured else pictures[0]
    file = io.BytesIO()
    whole.save(file, "png", compress_level=1)
    return file.getvalue()


def _found(guess: Mask, told: str, classes: Sequence[str]) -> Panel:
    """What was found, in red, or each class in its colour."""
    if len(classes) == 1:
        return Panel("", ((WRONG, told),), (guess > 0) * np.uint8(WRONG))
    present = [k for k in range(1, len(classes) + 1) if (guess == k).any()]
    key = tuple((_tint(k), classes[k - 1]) for k in present)
    return Panel(told, key, np.where(guess > 0, _tint(guess), np.uint8(0)).astype(np.uint8))


def _tint(label: Any) -> Any:
    """The tint of a class, or of labels: colours come again after the last."""
    return len(COLOURS) + 1 + (label - 1) % len(CLASSES)


def _merged(pictures: list[Image.Image]) -> Image.Image:
    """Each channel's picture as one in colour: red of the first, green of the second, blue of the third."""
    return Image.merge("RGB", [one.convert("RGB").getchannel(k) for k, one in enumerate(pictures)])


def _agreement(guess: Mask, truth: Mask) -> Mask:
    """The tint of each pixel; one of another class than the reference's is missed, as in the report."""
    ignored, real = truth == IGNORE, truth > 0
    missed = np.where(truth == guess, np.uint8(AGREED), np.uint8(LEFT_OUT))
    return np.where(ignored, np.uint8(UNKNOWN), np.where(real, missed, (guess > 0) * np.uint8(WRONG)))


def _resize(picture: Image.Image) -> Image.Image:
    """A picture at panel size: pixels become squares by a whole factor, or are averaged."""
    longer = max(picture.size)
    times = round(PANEL / longer) if longer <= PANEL else PANEL / longer
    width, height = (max(1, round(n * times)) for n in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST if times >= 1 else Image.Resampling.BOX)


def _shades(plane: NDArray[np.float32], shades: int) -> Mask:
    """A plane at panel size as shades, black at its 1st and white at its 99.5th percentile."""
    values = np.asarray(_resize(Image.fromarray(np.ascontiguousarray(plane))))
    low, high = np.percentile(values, [1, 99.5])
    scaled = (values - np.float32(low)) * np.float32((shades - 1) / max(high - low, 1e-6))
    return np.asarray(np.clip(scaled, 0, shades - 1), dtype=np.uint8)


def _paint(grey: Mask, tints: Mask, inks: Inks) -> Mask:
    """Shades at panel size in the tints of a plane that is not resized yet."""
    result = grey.copy()
    for tint in range(1, len(inks.colours) + 1):
        where = tints == tint
        if where.any():
            share = np.asarray(_resize(Image.fromarray(where * np.uint8(255))))
            np.copyto(result, grey + np.uint8(tint * inks.shades), where=share >= VISIBLE)
    return result


def _arrange(grey: Mask, panels: list[Panel], inks: Inks) -> Mask:
    """All panels side by side under their captions, as indices into the palette."""
    height, width = grey.shape
    shades = inks.shades
    column = max(width, PANEL * 3 // 4)
    sheet = np.full((CAPTION + height, len(panels) * (column + GAP) - GAP), shades - 1, dtype=np.uint8)
    captions = Image.new("L", (sheet.shape[1], CAPTION), "white")
    swatches = []
    for number, panel in enumerate(panels):
        left = number * (column + GAP)
        start = left + (column - width) // 2
        sheet[CAPTION:, start : start + width] = _paint(grey, panel.tints, inks) if panel.key else grey
        swatches += _draw_caption(ImageDraw.Draw(captions), panel, left + MARGIN, left + column)
    sheet[:CAPTION] = np.asarray(captions, dtype=np.uint16) * (shades - 1) // 255
    top = (CAPTION - SWATCH) // 2
    for tint, left in swatches:
        sheet[top : top + SWATCH, left : left + SWATCH] = tint * shades + shades // 2
    return sheet


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _draw_caption(draw: ImageDraw.ImageDraw, panel: Panel, left: int, end: int) -> list[tuple[int, int]]:
    """Write a panel's title and key; the tints and places of the key's swatches. A long title loses its beginning."""
    shown, font, swatches = panel.title, _font(), []
    while len(shown) > 1 and left + draw.textlength(shown, font) > end:
        shown = "…" + shown.lstrip("…")[1:]
    draw.text((left, MARGIN), shown, fill=INK, font=font)
    left += int(draw.textlength(shown, font)) + 3 * MARGIN if shown else 0
    for tint, word in panel.key:
        swatches.append((tint, left))
        draw.text((left + SWATCH + MARGIN, MARGIN), word, fill=INK, font=font)
        left += SWATCH + int(draw.textlength(word, font)) + 4 * MARGIN
    return swatches


@cache
def _palette(inks: Inks) -> bytes:
    """Grey from black to white, then the same under each colour, as RGB bytes."""
    grey = np.linspace(0, 255, inks.shades)[:, None].repeat(3, axis=1)
    tinted = [grey * (1 - OPACITY) + np.array(ImageColor.getrgb(colour)[:3]) * OPACITY for colour in inks.colours]
    return np.concatenate([grey, *tinted]).round().astype(np.uint8).tobytes()
