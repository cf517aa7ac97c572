"""How trainings went."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from segpipe.plots.colours import FALSE, HIT, MISSED

if TYPE_CHECKING:
    import pandas as pd

WILD = 10.0  # times the median
CURVES = {
    "loss": {"train_loss": HIT, "val_loss": FALSE},
    "Dice": {"train_dice": HIT, "val_dice": FALSE},
    "learning rate": {"learning_rate": MISSED},
}


def curves(history: list[dict[str, float]], path: Path) -> None:
    """Loss, Dice and learning rate over the epochs, counted from 1; a dotted line where the validation Dice is best. A
    loss that is WILD is drawn on a log axis, or cut off there where it is not above 0; the title says so.

    Few ticks and titles in a fixed place: those are what matplotlib takes most of its time for.
    """
    figure = Figure(figsize=(11, 3))
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.16, top=0.89, wspace=0.15)
    dice = np.array([report["val_dice"] for report in history])
    marker, last = "." if len(history) < 30 else "", len(history)
    epochs = np.arange(1, last + 1)
    for axes, (title, names) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.tick_params(labelsize=8)
        drawn = np.array([[report[name] for report in history] for name in names])
        for name, colour, values in zip(names, names.values(), drawn, strict=True):
            axes.plot(epochs, values, colour, marker=marker, linewidth=1.2, label=name.partition("_")[0])
        if not np.isnan(dice).all():
            best = int(np.nanargmax(dice)) + 1
            told = f"best: {dice[best - 1]:.3f}, epoch {best}"
            axes.axvline(best, color="0.4", linestyle=":", linewidth=1, label=told)
        axes.set_xlim(1 - 0.02 * last, 1.02 * last)
        axes.set_title(f"{title}{_tame(axes, drawn) if title == 'loss' else ''}", fontsize=10, y=1.0)
        axes.set_xlabel("epoch", fontsize=9)
        if title == "Dice":
            axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=80, pil_kwargs={"compress_level": 1})


def _tame(axes: Axes, values: NDArray[np.float64]) -> str:
    """Keep a few wild values from hiding the others; how, for the title."""
    known = values[np.isfinite(values)]
    if not known.size or known.max() <= WILD * abs(np.median(known)):
        return ""
    if known.min() > 0:
        axes.set_yscale("log")
        return " (log scale)"
    axes.set_ylim(top=WILD * abs(np.median(known)) or None)
    return " (cut off above)"


def leaderboard(board: "pd.DataFrame", path: Path) -> None:
    """Validation Dice with its interval and the group's letters, seconds per epoch, parameters and inference time of
    each model, as bars.
    """
    columns = {
        "val_dice": ("validation Dice", "{:.3f}", 1.0),
        "seconds_per_epoch": ("s per epoch", "{:.1f}", 1.0),
        "parameters": ("parameters (M)", "{:.2f}", 1e6),
        "inference_ms": ("inference (ms)", "{:.1f}", 1.0),
    }
    figure = Figure(figsize=(12, 1.1 + 0.42 * len(board)), layout="constrained")
    rows = np.arange(len(board))[::-1]
    for axes, (name, (title, form, unit)) in zip(
        figure.subplots(1, len(columns), sharey=True), columns.items(), strict=True
    ):
        values = board[name].to_numpy(dtype=float) / unit
        axes.barh(rows, np.nan_to_num(values), color=HIT if name == "val_dice" else MISSED, height=0.65)
        ends = board["val_dice_ci_high"].to_numpy(dtype=float) if name == "val_dice" else values
        top = np.nanmax(ends) if np.isfinite(ends).any() else 1.0
        if name == "val_dice":
            axes.hlines(rows, board["val_dice_ci_low"].to_numpy(dtype=float), ends, color="0.25", linewidth=1.2)
        for row, value, end, group in zip(rows, values, ends, board["group"], strict=True):
            shown = form.format(value) if np.isfinite(value) else "failed" if name == "val_dice" else ""
            letters = f"  {group}" if name == "val_dice" and np.isfinite(value) else ""
            axes.text(0.02 * top if np.isnan(end) else end + 0.02 * top, row, shown + letters, va="center", fontsize=8)
        axes.set_xlim(0, 1.3 * top)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(rows, board["model"])
    figure.savefig(path, dpi=110)


def overlaid(histories: dict[str, list[float]], title: str, path: Path, unit: str = "epoch") -> None:
    """One curve over the epochs (or another `unit`), counted from 1, for each model."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, values in histories.items():
        axes.plot(range(1, len(values) + 1), values, label=name, linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set(xlabel=unit, title=title)
    axes.grid(alpha=0.25)
    if histories:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
