"""What a test showed, as charts: from data to a PNG file each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from segpipe.plots.colours import FAINT, FALSE, HIT, INK, MISSED
from segpipe.plots.style import printable, save, tidy

if TYPE_CHECKING:
    import pandas as pd

Values = NDArray[np.floating[Any]]
COLUMNS = 6
READABLE = 25  # labels of a confusion matrix whose cells have numbers
PALETTE = ("#3182bd", "#e6842a", "#2ca25f", "#8856a7", "#b5651d", "#e377c2", "#17a3b8", "#bcbd22", "#7f7f7f")
BOX = (2.5, 0.95)  # inches: a node of `lineage`
GAP = (0.55, 0.3)  # inches between two of them


def distributions(values: Mapping[str, tuple[Values, str]], path: Path) -> None:
    """One small panel per metric, `{title: (value of each case, unit)}`: a dot per case, a box between the quartiles.

    The dots are spread sideways evenly by rank, so that equal values stay apart.
    """
    rows = -(-len(values) // COLUMNS)
    figure = Figure(figsize=(11, 2.15 * rows))
    figure.subplots_adjust(left=0.045, right=0.995, bottom=0.05 / rows, top=1 - 0.14 / rows, wspace=0.5, hspace=0.22)
    for n, (title, (given, unit)) in enumerate(values.items()):
        axes, known = figure.add_subplot(rows, COLUMNS, n + 1), np.sort(given[~np.isnan(given)])
        tidy(axes, title, y=unit)
        axes.title.set_fontsize(9)
        axes.boxplot(
            known, positions=[0], widths=0.75, showfliers=False, showcaps=False,
            boxprops={"color": FAINT}, whiskerprops={"color": FAINT}, medianprops={"color": INK, "linewidth": 1.8},
        )  # fmt: skip
        golden = np.arange(len(known)) * 0.618034 % 1 - 0.5
        axes.scatter(0.5 * golden, known, s=12, color=MISSED, alpha=0.65, linewidths=0, zorder=3)
        axes.set(xlim=(-0.7, 0.7), xticks=[])
        if not unit and known[-1] <= 1:
            axes.set_ylim(-0.03, 1.03)
    save(figure, path)


def sweep(table: "pd.DataFrame", threshold: float, path: Path) -> None:
    """Mean Dice over the threshold (columns threshold, val_dice, test_dice); a dotted line where it was chosen."""
    figure = Figure(figsize=(6.2, 3.3), layout="constrained")
    axes = figure.subplots()
    tidy(axes, x="threshold on the foreground probability", y="mean Dice")
    for name, colour, label in (("val_dice", HIT, "validation"), ("test_dice", MISSED, "test")):
        if name in table and table[name].notna().any():
            axes.plot(table["threshold"], table[name], color=colour, linewidth=1.8, label=label)
    axes.axvline(threshold, color=INK, linestyle=":", linewidth=1.4, label=f"used: {threshold:.3g}")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8, frameon=False)
    save(figure, path)


def roc_pr(roc: tuple[Values, Values], pr: tuple[Values, Values], path: Path) -> None:
    """Receiver operating characteristic and precision over recall; dashed: what guessing gives."""
    figure = Figure(figsize=(8.2, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    (negative, positive), (recall, precision) = roc, pr
    tidy(left, f"ROC, area {np.trapezoid(positive, negative):.3f}", "false positive rate", "true positive rate")
    left.plot(negative, positive, color=MISSED, linewidth=1.8)
    left.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
    area = np.sum(np.diff(recall) * precision[1:])
    tidy(right, f"precision and recall, area {area:.3f}", "recall", "precision")
    right.plot(recall, precision, color=MISSED, linewidth=1.8)
    right.axhline(precision[-1], color=FAINT, linestyle="--", linewidth=1)
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    save(figure, path)


def reliability(curves: Mapping[str, tuple[Values, Values, NDArray[np.int64]]], path: Path) -> None:
    """For each region mean probability, observed share and voxels of each bin: a diagram above, the voxels below."""
    figure = Figure(figsize=(8.2, 4.4), layout="constrained")
    panels = figure.subplots(2, len(curves), squeeze=False, height_ratios=[3, 1], sharex=True)
    for column, (title, (probability, observed, voxels)) in enumerate(curves.items()):
        above, below = panels[:, column]
        tidy(above, title, y="share that is foreground")
        above.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
        above.plot(probability, observed, color=MISSED, marker="o", markersize=4, linewidth=1.5)
        above.set_ylim(-0.02, 1.02)
        tidy(below, x="foreground probability", y="voxels")
        known = ~np.isnan(probability) & (voxels > 0)
        below.bar(probability[known], voxels[known], width=0.8 / len(voxels), color=MISSED)
        below.set(xlim=(0, 1), yscale="log", ylim=(1, 3 * voxels.max()))
        below.yaxis.set_major_locator(LogLocator(numticks=4))
        below.yaxis.set_major_formatter(FuncFormatter(_count))
        below.yaxis.set_minor_formatter(NullFormatter())
    save(figure, path)


def _count(value: float, _: object) -> str:
    """A count for a logarithmic axis: 1, 100, 10k, 2M."""
    return EngFormatter(places=0, sep="")(value) if value >= 1 else ""


def confusion(tp: int, fp: int, fn: int, tn: int, path: Path) -> None:
    """Two by two: reference down, prediction across, with the share of each row."""
    figure = Figure(figsize=(4.2, 3.1), layout="constrained")
    axes = figure.subplots()
    cells = (((tp, HIT), (fn, MISSED)), ((fp, FALSE), (tn, FAINT)))
    for row, pair in enumerate(cells):
        total = sum(count for count, _ in pair)
        for column, (count, colour) in enumerate(pair):
            share = count / total if total else 0.0
            axes.fill_between([column, column + 1], row, row + 1, color=colour, alpha=0.15 + 0.6 * share, linewidth=0)
            axes.text(column + 0.5, row + 0.45, f"{count:,}", ha="center", va="center", fontsize=12, color="#111827")
            axes.text(column + 0.5, row + 0.7, f"{100 * share:.1f} %", ha="center", va="center", fontsize=9, color=INK)
    axes.set(xlim=(0, 2), ylim=(2, 0))
    axes.set_xticks([0.5, 1.5], ["foreground", "background"])
    axes.set_yticks([0.5, 1.5], ["foreground", "background"], rotation=90, va="center")
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", fontsize=9, color=INK)
    axes.set_ylabel("reference", fontsize=9, color=INK)
    save(figure, path)


def labels(counts: NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Each label of the reference (rows, background first) by the predicted one, as the share of its row; numbers where
    there are few enough to be read.
    """
    names = [printable(name) for name in ("background", *classes)]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = 1.6 + 0.42 * len(names)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greens", vmin=0, vmax=1)
    if len(names) <= READABLE:
        for (row, column), share in np.ndenumerate(shares):
            shown = "" if share == 0 else "<1" if share < 0.01 else f"{100 * share:.0f}"
            axes.text(column, row, shown, ha="center", va="center", fontsize=7, color="white" if share > 0.6 else INK)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted, % of the row", fontsize=9, color=INK)
    axes.set_ylabel("reference", fontsize=9, color=INK)
    save(figure, path)


def lesion_sizes(bins: Sequence[tuple[str, int, int]], path: Path) -> None:
    """Share of the reference lesions found: `(label of the size, found, lesions)` from small to large."""
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.subplots()
    tidy(axes, x="size of the reference lesion", y="share found")
    for place, (_, found, lesions) in enumerate(bins):
        axes.bar(place, 1, color=MISSED, alpha=0.18, width=0.62)
        axes.bar(place, found / lesions, color=HIT, width=0.62)
        axes.text(place, 1.03, f"{found} of {lesions}", ha="center", fontsize=9, color=INK)
    axes.set_xticks(range(len(bins)), [label for label, _, _ in bins])
    axes.set(xlim=(-0.6, len(bins) - 0.4), ylim=(0, 1.14), yticks=[0, 0.5, 1])
    axes.grid(visible=False, axis="x")
    save(figure, path)


def embedding(points: Mapping[str, Values], site: "pd.Series[str]", dice: "pd.Series[float]", path: Path) -> None:
    """Cases as points N,2 of each projection: left coloured by site, right by Dice (grey: no Dice)."""
    figure = Figure(figsize=(9.2, 3.7 * len(points)), layout=ConstrainedLayoutEngine(hspace=0.06))
    panels = figure.subplots(len(points), 2, squeeze=False)
    names, sites, values = sorted(set(site)), site.to_numpy(), dice.to_numpy(dtype=float)
    shown = names if len(names) <= len(PALETTE) else names[: len(PALETTE) - 1]
    for (left, right), (title, given) in zip(panels, points.items(), strict=True):
        for axes, by in ((left, "site"), (right, "Dice")):
            tidy(axes, f"{title}, by {by}", f"{title} 1", f"{title} 2")
        for name, colour in zip(shown, PALETTE, strict=False):
            left.scatter(*given[sites == name].T, s=26, color=colour, alpha=0.8, linewidths=0, label=printable(name))
        if rest := set(names) - set(shown):
            chosen = np.isin(sites, sorted(rest))
            left.scatter(*given[chosen].T, s=26, color=PALETTE[-1], linewidths=0, label=f"{len(rest)} other sites")
        known = ~np.isnan(values)
        right.scatter(*given[~known].T, s=20, color="0.8", linewidths=0)
        drawn = right.scatter(*given[known].T, s=26, c=values[known], cmap="viridis", vmin=0, vmax=1, linewidths=0)
        figure.colorbar(drawn, ax=right, shrink=0.9).ax.tick_params(labelsize=8)
    panels[0][0].legend(fontsize=8, frameon=True, framealpha=0.8)
    save(figure, path)


def _columns(nodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many steps each node lies from the furthest of its ancestors; parents that are not there do not count."""
    parents = {node["id"]: list(node["parents"]) for node in nodes}
    depth = dict.fromkeys(parents, 0)
    for _ in nodes:
        depth = {name: max((depth[p] + 1 for p in parents[name] if p in depth), default=0) for name in depth}
    return depth


def lineage(nodes: Sequence[Mapping[str, Any]], path: Path | BinaryIO) -> None:
    """Boxes from left to right, `{id, lines, parents}` each; a title first, arrows come from the parents."""
    depth, places = _columns(nodes), dict[str, tuple[float, float]]()
    columns = [[node for node in nodes if depth[node["id"]] == c] for c in range(max(depth.values()) + 1)]
    height = max(len(column) for column in columns)
    size = (len(columns) * (BOX[0] + GAP[0]) - GAP[0] + 0.2, height * (BOX[1] + GAP[1]) + 0.5)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.1, size[0] - 0.1), ylim=(-0.1, size[1] - 0.1))
    axes.set_axis_off()
    for c, column in enumerate(columns):
        for r, node in enumerate(column):
            row = (height + len(column)) / 2 - 1 - r  # a short column is centred
            places[node["id"]] = (c * (BOX[0] + GAP[0]), row * (BOX[1] + GAP[1]))
            _box(axes, *places[node["id"]], node["lines"])
    for node in nodes:
        for parent in (p for p in node["parents"] if p in places):
            _arrow(axes, places[parent], places[node["id"]])
    save(figure, path)


def _arrow(axes: Any, parent: tuple[float, float], child: tuple[float, float]) -> None:
    """From box to box; past the boxes between them in a bow."""
    near = child[0] - parent[0] < 1.5 * (BOX[0] + GAP[0])
    if near:
        start, end = (parent[0] + BOX[0], parent[1] + BOX[1] / 2), (child[0], child[1] + BOX[1] / 2)
    else:
        start, end = (parent[0] + 0.8 * BOX[0], parent[1] + BOX[1]), (child[0] + 0.2 * BOX[0], child[1] + BOX[1])
    style = {"arrowstyle": "-|>", "color": FAINT, "shrinkA": 1, "shrinkB": 1}
    axes.annotate("", end, start, arrowprops={**style, "connectionstyle": f"arc3,rad={0 if near else -0.2}"}, zorder=0)


def _box(axes: Any, x: float, y: float, lines: Sequence[str]) -> None:
    axes.add_patch(FancyBboxPatch((x, y), *BOX, "round,pad=0,rounding_size=0.08", facecolor="#f3f6fa", edgecolor=FAINT))
    for n, line in enumerate(lines[:4]):
        shown = printable(line if len(line) <= 36 else line[:35] + "\N{HORIZONTAL ELLIPSIS}")
        weight, colour = ("bold", "#111827") if n == 0 else ("normal", INK)
        height = y + BOX[1] - 0.2 - 0.2 * n
        axes.text(x + 0.1, height, shown, fontsize=9 - (n > 0), weight=weight, color=colour, va="center")
