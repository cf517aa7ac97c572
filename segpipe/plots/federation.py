"""What trainings of several sites are worth at each."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from segpipe.plots.colours import INK

if TYPE_CHECKING:
    import pandas as pd


def by_site(board: "pd.DataFrame", path: Path) -> None:
    """Test Dice of each model with its interval, a panel for each site; a dotted line where the best mean is."""
    sites, models = list(board["site"].unique()), list(board["model"].unique())
    figure = Figure(figsize=(1.6 + 2.4 * len(sites), 1.2 + 0.32 * len(models)), layout="constrained")
    rows = {name: row for row, name in enumerate(reversed(models))}
    for axes, site in zip(np.atleast_1d(figure.subplots(1, len(sites), sharey=True)), sites, strict=True):
        here = board[board["site"] == site]
        for row in here.to_dict("records"):
            y = rows[row["model"]]
            axes.plot([row["dice_ci_low"], row["dice_ci_high"]], [y, y], color=INK, linewidth=2, alpha=0.5)
            axes.plot(row["dice"], y, "o", color=INK)
            axes.annotate(f"{row['dice']:.3f} {row['group']}", (row["dice"], y), (0, 5), textcoords="offset points",
                          fontsize=7, ha="center")  # fmt: skip
        axes.axvline(here["dice"].max(), color="0.4", linestyle=":", linewidth=1)
        axes.set_title(site, fontsize=10)
        axes.set_yticks(list(rows.values()), list(rows), fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.set_ylim(-0.6, len(models) - 0.2)
    figure.supxlabel("test Dice, 95 % interval over patients", fontsize=9)
    figure.savefig(path, dpi=100)
