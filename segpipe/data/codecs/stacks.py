"""What a TIFF of several pages says of them: whether they are slices, and how far apart."""

import re
from typing import Any

from PIL import Image

from segpipe.data.volume import Spacing
from segpipe.errors import InputError

DESCRIPTION, ACROSS, DOWN = 270, 282, 283  # tags: text, pixels a unit along rows and along columns
IMAGEJ = re.compile(r"^(\w+)=(.*?)\r?$", re.MULTILINE)
OME = re.compile(r'\bSize([ZCT])="(\d+)"')
MILLIMETRES = {"micron": 1e-3, "um": 1e-3, "\u00b5m": 1e-3, "\\u00B5m": 1e-3, "nm": 1e-6, "mm": 1.0, "cm": 10.0}


def described(opened: Image.Image, pages: int, where: str) -> tuple[Spacing | None, dict[int, Any]]:
    """The spacing in mm that ImageJ gives, None where it is not known, and the tags that say it.

    Raises InputError where the pages are not slices alone, by what ImageJ or OME wrote into the first of them.
    """
    opened.seek(0)
    tags: Any = getattr(opened, "tag_v2", {})
    text = str(tags.get(DESCRIPTION, ""))
    if text.startswith("ImageJ="):
        told = dict(IMAGEJ.findall(text))
        _check_slices(
            where, {name: int(told[name]) for name in ("channels", "frames") if told.get(name, "").isdecimal()}
        )
        kept = {tag: tags[tag] for tag in (DESCRIPTION, ACROSS, DOWN) if tag in tags}
        return _spacing(told, kept), kept
    sizes = {axis: int(number) for axis, number in OME.findall(text)}
    if sizes.get("Z", pages) != pages:
        _check_slices(where, {"channels": sizes.get("C", 1), "frames": sizes.get("T", 1)})
    return None, {}


def _check_slices(where: str, others: dict[str, int]) -> None:
    for name, number in others.items():
        if number > 1:
            raise InputError(f"{where}: pages of {number} {name}, expected slices alone; save each as a stack")


def _spacing(told: dict[str, str], tags: dict[int, Any]) -> Spacing | None:
    try:
        unit, between = MILLIMETRES[told["unit"]], float(told["spacing"])
        across, down = float(tags[ACROSS]), float(tags[DOWN])
        sizes = abs(between) * unit, unit / down, unit / across
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    return sizes if all(0 < size < float("inf") for size in sizes) else None
