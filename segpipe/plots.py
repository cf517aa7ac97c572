"""Pictures for a person to look at."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segpipe.data.volume import IGNORE

if TYPE_CHECKING:
    import pandas as pd

    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest

matplotlib.use("agg")
from matplotlib.colors import to_rgb  # the backend must be chosen before anything else of matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Array = NDArray[np.float32]
Mask = NDArray[np.uint8]
HIT, MISSED, FALSE, IGNORED = "#2ca25f", "#3182bd", "#de2d26", "#bdbdbd"
CURVES = {
    "loss": {"train_loss": HIT, "val_loss": FALSE},
    "Dice": {"train_dice": HIT, "val_dice": FALSE},
    "learning rate": {"learning_rate": MISSED},
}
PANEL = 192  # pixels: the shorter side of a panel of `prediction_png`, at least


def _foreground(mask: Mask) -> NDArray[np.bool_]:
    return np.asarray((mask > 0) & (mask != IGNORE), dtype=bool)


def busiest_slice(mask: Mask) -> int:
    """The slice of D,H,W with most foreground, or the middle one."""
    areas = _foreground(mask).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(mask) // 2


def _upright(plane: NDArray[Any], volume: bool) -> NDArray[Any]:
    """Rows from top to bottom: volumes are stored from posterior to anterior, pictures as they are seen."""
    return plane[::-1] if volume else plane


def _range(plane: Array) -> tuple[float, float]:
    """What is shown as black and as white."""
    low, high = np.percentile(plane, [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def _grey(axes: Any, plane: Array, limits: tuple[float, float] | None = None) -> None:
    low, high = limits or _range(plane)
    axes.imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def _outline(axes: Any, mask: Mask, colour: str) -> None:
    foreground = _foreground(mask)
    if foreground.any() and not foreground.all():
        axes.contour(foreground, levels=[0.5], colors=colour, linewidths=1.0)


def extremes(
    predictor: "Predictor", manifest: "Manifest", dataset: Path, chosen: dict[str, str], threshold: float, folder: Path
) -> None:
    """An overlay of each chosen test case, `{rank: case}`, as RANK.png in `folder`."""
    cases = {case.case: case for case in manifest.of("test")}
    for rank, name in chosen.items():
        image, reference = manifest.native(dataset, cases[name])
        predicted = predictor.segment(image, threshold).mask
        overlay(image, reference, predicted, f"{rank}: {name}", folder / f"{rank}.png")


def overlay(image: Array, reference: Mask, predicted: Mask, title: str, path: Path) -> None:
    """One case (image C,D,H,W; masks D,H,W) at its busiest slice: image, reference, prediction, agreement."""
    z = busiest_slice(reference if _foreground(reference).any() else predicted)
    volume = image.shape[1] > 1
    plane, truth, guess = (_upright(a, volume) for a in (image[0, z], reference[z], predicted[z]))
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    panels = figure.subplots(1, 4)
    for axes, name in zip(panels, ("image", "reference", "prediction", "agreement"), strict=True):
        _grey(axes, plane)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    _outline(panels[1], truth, MISSED)
    _outline(panels[2], guess, FALSE)
    panels[3].imshow(_agreement(truth, guess), interpolation="nearest")
    ignored = ", grey ignored" if (truth == IGNORE).any() else ""
    panels[3].set_title("green agreed, blue missed, red false" + ignored, fontsize=8)
    figure.suptitle(f"{title}, slice {z + 1} of {len(reference)}" if volume else title, fontsize=10)
    figure.savefig(path, dpi=110)


def _agreement(truth: Mask, guess: Mask) -> Array:
    """Labels H,W to colours H,W,RGBA; a voxel of another class than the reference's counts as missed."""
    real = _foreground(truth)
    agreed = real & (truth == guess)
    colours = np.zeros((*truth.shape, 4), dtype=np.float32)
    for where, colour in (
        (agreed, HIT),
        (real & ~agreed, MISSED),
        ((guess > 0) & (truth == 0), FALSE),
        (truth == IGNORE, IGNORED),
    ):
        colours[where] = (*to_rgb(colour), 0.75)
    return colours


def prediction_png(image: Array, reference: Mask, predicted: Mask, path: Path, volume: bool = False) -> None:
    """A slice H,W float with its masks H,W: image, reference, agreement side by side, as a small picture made quickly.

    `volume` says that the rows run from posterior to anterior.
    """
    plane, truth, guess = (_upright(a, volume) for a in (image, reference, predicted))
    low, high = _range(plane)
    grey = np.repeat(np.clip((plane - low) / (high - low), 0, 1)[..., None], 3, axis=2)
    panels = [grey]
    for colours in (_agreement(truth, truth), _agreement(truth, guess)):
        share = colours[..., 3:]
        panels.append(grey * (1 - share) + colours[..., :3] * share)
    times = max(1, -(-PANEL // min(plane.shape)))
    gap = np.ones((plane.shape[0], 1, 3), dtype=np.float32)
    row = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
    pixels = (row * 255).round().astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)
    Image.fromarray(pixels).save(path, compress_level=1)


def augmented(
    before: Array,
    labels_before: Mask,
    after: Array,
    labels_after: Mask,
    path: Path,
    names: Sequence[str],
    volume: bool = False,
) -> None:
    """The first samples of a batch (images N,C,H,W, labels N,H,W), first channel: as they are above as augmented.

    Both are shown on the grey scale of the original, so that a change of brightness is seen.
    """
    count = min(len(before), 8)
    figure = Figure(figsize=(1.6 * count, 3.6))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.88, wspace=0.04, hspace=0.04)
    panels = figure.subplots(2, count, squeeze=False)
    for k in range(count):
        limits = _range(before[k, 0])
        for row, (images, labels) in enumerate(((before, labels_before), (after, labels_after))):
            _grey(panels[row, k], _upright(images[k, 0], volume), limits)
            _outline(panels[row, k], _upright(labels[k], volume), FALSE)
            panels[row, k].set_axis_off()
        panels[0, k].set_title(names[k], fontsize=7)
    figure.suptitle("above: original, below: augmented", fontsize=9)
    figure.savefig(path, dpi=110)


def dataset(manifest: "Manifest", folder: Path, path: Path, count: int = 6) -> None:
    """Slices of a few training cases as the network sees them, each channel, with the mask's outline."""
    images, masks = (manifest.array(folder, f"train_{kind}") for kind in ("images", "masks"))
    cases = sorted(manifest.of("train"), key=lambda c: (not any(c.voxels.values()), c.case))[:count]
    if not cases:
        return
    channels = len(manifest.channels)
    figure = Figure(figsize=(2.4 * len(cases), 2.5 * channels), layout="constrained")
    panels = figure.subplots(channels, len(cases), squeeze=False)
    for column, case in enumerate(cases):
        mask = masks[case.start : case.start + case.shape[0]].astype(np.uint8)
        z, volume = busiest_slice(mask), case.shape[0] > 1
        for row in range(channels):
            axes = panels[row][column]
            _grey(axes, _upright(images[case.start + z, row].astype(np.float32), volume))
            _outline(axes, _upright(mask[z], volume), FALSE)
            axes.set_axis_off()
        panels[0][column].set_title(f"{case.case}\n{case.site}", fontsize=7)
    figure.savefig(path, dpi=100)


def curves(history: list[dict[str, float]], path: Path) -> None:
    """Loss, Dice and learning rate over the epochs; a dotted line where the validation Dice is best.

    Few ticks and titles in a fixed place: those are what matplotlib takes most of its time for.
    """
    figure = Figure(figsize=(11, 3))
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.16, top=0.89, wspace=0.15)
    dice = np.array([report["val_dice"] for report in history])
    marker, last = "." if len(history) < 30 else "", max(len(history) - 1, 1)
    for axes, (title, names) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.tick_params(labelsize=8)
        for name, colour in names.items():
            values = [report[name] for report in history]
            axes.plot(values, colour, marker=marker, linewidth=1.2, label=name.partition("_")[0])
        if not np.isnan(dice).all():
            best = int(np.nanargmax(dice))
            axes.axvline(best, color="0.4", linestyle=":", linewidth=1, label=f"best: {dice[best]:.3f}, epoch {best}")
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.set_title(title, fontsize=10, y=1.0)
        axes.set_xlabel("epoch", fontsize=9)
        if title == "Dice":
            axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=80, pil_kwargs={"compress_level": 1})


def leaderboard(board: "pd.DataFrame", path: Path) -> None:
    """Validation Dice, seconds per epoch, parameters and inference time of each model, as bars beside a table."""
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
        top = np.nanmax(values) if np.isfinite(values).any() else 1.0
        for row, value in zip(rows, values, strict=True):
            shown = form.format(value) if np.isfinite(value) else "failed" if name == "val_dice" else ""
            axes.text(0.02 * top if np.isnan(value) else value + 0.02 * top, row, shown, va="center", fontsize=8)
        axes.set_xlim(0, 1.25 * top)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(rows, board["model"])
    figure.savefig(path, dpi=110)


def overlaid(histories: dict[str, list[float]], title: str, path: Path) -> None:
    """One curve over the epochs for each model."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, values in histories.items():
        axes.plot(values, label=name, linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("epoch")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    if histories:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
