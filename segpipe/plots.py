"""Pictures for a person to look at."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from segpipe.inference import Predictor
    from segpipe.manifest import Manifest

matplotlib.use("agg")
from matplotlib.colors import to_rgb  # the backend must be chosen before anything else of matplotlib
from matplotlib.figure import Figure

Array = NDArray[np.float32]
Mask = NDArray[np.uint8]
HIT, MISSED, FALSE = "#2ca25f", "#3182bd", "#de2d26"


def busiest_slice(mask: Mask) -> int:
    """The slice of D,H,W with most foreground, or the middle one."""
    areas = (mask > 0).sum(axis=(1, 2))
    return int(areas.argmax()) if areas.any() else len(mask) // 2


def _upright(plane: NDArray[Any], volume: bool) -> NDArray[Any]:
    """Rows from top to bottom: volumes are stored from posterior to anterior, pictures as they are seen."""
    return plane[::-1] if volume else plane


def _grey(axes: Any, plane: Array) -> None:
    low, high = np.percentile(plane, [1, 99.5])
    axes.imshow(plane, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest")


def _outline(axes: Any, mask: Mask, colour: str) -> None:
    if mask.any():
        axes.contour(mask > 0, levels=[0.5], colors=colour, linewidths=1.0)


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
    z = busiest_slice(reference if reference.any() else predicted)
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
    panels[3].set_title("green agreed, blue missed, red false", fontsize=9)
    figure.suptitle(f"{title}, slice {z + 1} of {len(reference)}" if volume else title, fontsize=10)
    figure.savefig(path, dpi=110)


def _agreement(truth: Mask, guess: Mask) -> Array:
    """Labels H,W to colours H,W,RGBA; a voxel of another class than the reference's counts as missed."""
    agreed = (truth > 0) & (truth == guess)
    colours = np.zeros((*truth.shape, 4), dtype=np.float32)
    for where, colour in ((agreed, HIT), ((truth > 0) & ~agreed, MISSED), ((guess > 0) & (truth == 0), FALSE)):
        colours[where] = (*to_rgb(colour), 0.75)
    return colours


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
    """Loss and Dice over the epochs, training and validation."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "dice"), strict=True):
        for split in ("train", "val"):
            axes.plot([report[f"{split}_{name}"] for report in history], label=split)
        axes.set_xlabel("epoch")
        axes.set_title(name)
        axes.legend()
    figure.savefig(path, dpi=100)
