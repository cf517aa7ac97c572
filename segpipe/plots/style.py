"""What all charts share."""

from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator

from segpipe.plots.colours import FAINT, INK


@cache
def _drawable(character: str) -> bool:
    return character == "\n" or bool(get_font(findfont("DejaVu Sans")).get_char_index(ord(character)))


def printable(text: str) -> str:
    """The text with a box for each character that the font has no shape for."""
    return "".join(c if _drawable(c) else "\N{WHITE SQUARE}" for c in text)


def tidy(axes: Any, title: str = "", x: str = "", y: str = "") -> None:
    """A chart without what nobody reads: two spines, few ticks, a faint grid, units on the axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(labelsize=8, colors=INK, length=3)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10, y=1.0, color=INK)
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)


def save(figure: Figure, path: Path | BinaryIO) -> None:
    """Write a chart as PNG, sharp on a dense screen."""
    figure.savefig(path, format="png", dpi=130, pil_kwargs={"compress_level": 4})
