"""One picture of a case: the input, what was found, and its agreement with the reference.

Written with a palette, shades of grey and of each colour, which takes a fifth of the time of a colour PNG.
"""

import io
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from segpipe.data.volume import IGNORE, foreground
from segpipe.plots.cases import busiest_slice
from segpipe.plots.style import FALSE, HIT, IGNORED, MISSED

PANEL = 320  # pixels: the longer side of a panel, about
CAPTION, GAP, MARGIN, TEXT, SWATCH, INK = 22, 4, 3, 12, 9, 70
COLOURS = (HIT, MISSED, FALSE, IGNORED)  # tints 1, 2, 3, 4
AGREED, LEFT_OUT, WRONG, UNKNOWN = range(1, 5)
SHADES = 256 // (len(COLOURS) + 1)
OPACITY, VISIBLE = 0.6, 96  # share of a colour in its tint; of 255, how much of a pixel must be coloured

Mask = NDArray[np.uint8]


class Panel(NamedTuple):
    """A title, a key of (tint, word), and the tint of each pixel, 0 for none."""

    title: str
    key: tuple[tuple[int, str], ...]
    tints: Mask


def draw(
    volume: NDArray[np.float32], mask: Mask, reference: Mask | None, title: str, found: str, dice: str, upside: bool
) -> bytes:
    """A PNG of one case (one channel D,H,W; labels D,H,W), a volume at the slice with most foreground, the reference's
    where it has any.

    Red is what was found; beside a reference green is agreed, blue missed and red false. `upside` says that rows run
    from posterior to anterior.
    """
    z = busiest_slice(reference if reference is not None and foreground(reference).any() else mask)
    turn = slice(None, None, -1 if upside else 1)
    where = f", slice {z + 1} of {len(mask)}" if len(mask) > 1 else ""
    guess, grey = mask[z, turn], _shades(volume[z, turn])
    panels = [
        Panel(title + where, (), np.zeros_like(guess)),
        Panel("", ((WRONG, found),), (guess > 0) * np.uint8(WRONG)),
    ]
    if reference is not None:
        key = ((AGREED, "agreed"), (LEFT_OUT, "missed"), (WRONG, "false"))
        panels.append(Panel(dice, key, _agreement(guess, reference[z, turn])))
    picture, file = Image.fromarray(_arrange(grey, panels)), io.BytesIO()
    picture.putpalette(_palette())
    picture.save(file, "png", compress_level=1)
    return file.getvalue()


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


def _shades(plane: NDArray[np.float32]) -> Mask:
    """A plane at panel size as shades, black at its 1st and white at its 99.5th percentile."""
    values = np.asarray(_resize(Image.fromarray(np.ascontiguousarray(plane))))
    low, high = np.percentile(values, [1, 99.5])
    scaled = (values - np.float32(low)) * np.float32((SHADES - 1) / max(high - low, 1e-6))
    return np.asarray(np.clip(scaled, 0, SHADES - 1), dtype=np.uint8)


def _paint(grey: Mask, tints: Mask) -> Mask:
    """Shades at panel size in the tints of a plane that is not resized yet."""
    result = grey.copy()
    for tint in range(1, len(COLOURS) + 1):
        where = tints == tint
        if where.any():
            share = np.asarray(_resize(Image.fromarray(where * np.uint8(255))))
            np.copyto(result, grey + np.uint8(tint * SHADES), where=share >= VISIBLE)
    return result


def _arrange(grey: Mask, panels: list[Panel]) -> Mask:
    """All panels side by side under their captions, as indices into the palette."""
    height, width = grey.shape
    column = max(width, PANEL * 3 // 4)
    sheet = np.full((CAPTION + height, len(panels) * (column + GAP) - GAP), SHADES - 1, dtype=np.uint8)
    captions = Image.new("L", (sheet.shape[1], CAPTION), "white")
    swatches = []
    for number, panel in enumerate(panels):
        left = number * (column + GAP)
        start = left + (column - width) // 2
        sheet[CAPTION:, start : start + width] = _paint(grey, panel.tints) if panel.key else grey
        swatches += _draw_caption(ImageDraw.Draw(captions), panel, left + MARGIN, left + column)
    sheet[:CAPTION] = np.asarray(captions, dtype=np.uint16) * (SHADES - 1) // 255
    top = (CAPTION - SWATCH) // 2
    for tint, left in swatches:
        sheet[top : top + SWATCH, left : left + SWATCH] = tint * SHADES + SHADES // 2
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
def _palette() -> bytes:
    """Grey from black to white, then the same under each of COLOURS, as RGB bytes."""
    grey = np.linspace(0, 255, SHADES)[:, None].repeat(3, axis=1)
    tinted = [grey * (1 - OPACITY) + np.array(ImageColor.getrgb(colour)[:3]) * OPACITY for colour in COLOURS]
    return np.concatenate([grey, *tinted]).round().astype(np.uint8).tobytes()
