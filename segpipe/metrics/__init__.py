"""Metrics per case, with one convention for empty masks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.data.volume import IGNORE, Spacing, volume_ml
from segpipe.errors import InputError
from segpipe.metrics import centreline, lesions, overlaps, pixels, surface
from segpipe.metrics.overlaps import OVERLAPS, Counts, Values, class_mean, count, outcome, overlap

__all__ = [
    "CONVENTION", "METRICS", "OVERLAPS", "Counts", "Measured", "Metric", "class_mean", "count", "measure", "outcome",
    "overlap",
]  # fmt: skip

CONVENTION = (
    "Per case (a whole volume or image), foreground only, then averaged over cases; never over pooled pixels, never "
    "with the background. Reference and prediction both empty: left out of the mean, but counted. Only one of them "
    "empty (missed, or false alarm): 0 for overlap, surface Dice, clDice and lesions, the image's diagonal for surface "
    "distances; specificity and volume errors follow their formulas. Pixel-wise metrics need a reference. With several "
    "classes a case's value is the mean over the classes that have one."
)


class Metric(NamedTuple):
    """How a metric is told: its name, its unit (mm, ml or none), whether more is better, what a perfect case has, and
    what the convention says where only one mask is empty.
    """

    title: str
    unit: str
    higher: bool
    best: float
    one_empty: str


_NEEDS_REFERENCE = "missed: formula; false alarm: left out"
METRICS: dict[str, Metric] = {
    "dice": Metric("Dice", "", True, 1, "0"),
    "iou": Metric("IoU", "", True, 1, "0"),
    "precision": Metric("precision", "", True, 1, "0"),
    "recall": Metric("recall", "", True, 1, "0"),
    "specificity": Metric("specificity", "", True, 1, "formula"),
    "hd95": Metric("HD95", "mm", False, 0, "image diagonal"),
    "assd": Metric("ASSD", "mm", False, 0, "image diagonal"),
    "nsd": Metric("NSD", "", True, 1, "0"),
    "cldice": Metric("clDice", "", True, 1, "0"),
    "volume_error_ml": Metric("volume error", "ml", False, 0, "formula (both empty: 0)"),
    "volume_error_relative": Metric("relative volume error", "", False, 0, "missed: 1; false alarm: left out"),
    "lesion_recall": Metric("lesion recall", "", True, 1, "0"),
    "lesion_precision": Metric("lesion precision", "", True, 1, "0"),
    "lesion_f1": Metric("lesion F1", "", True, 1, "0"),
    "accuracy_band": Metric("accuracy, band", "", True, 1, _NEEDS_REFERENCE),
    "precision_band": Metric("precision, band", "", True, 1, "missed: 0; false alarm: left out"),
    "recall_band": Metric("recall, band", "", True, 1, "missed: 0; false alarm: left out"),
    "f1_band": Metric("F1, band", "", True, 1, "missed: 0; false alarm: left out"),
    "roc_auc_band": Metric("ROC AUC, band", "", True, 1, _NEEDS_REFERENCE),
    "pr_auc_band": Metric("PR AUC, band", "", True, 1, _NEEDS_REFERENCE),
    "ece": Metric("calibration error, image", "", False, 0, "formula (both empty too)"),
    "ece_band": Metric("calibration error, band", "", False, 0, _NEEDS_REFERENCE),
}


class Measured(NamedTuple):
    """One case. `values` has for each metric K class values, or one for the foreground as a whole (lesions, pixels);
    `counts` and `lesions` are per class; `band` and `whole` are histograms of the foreground probability, 2,BINS, near
    the reference and everywhere; `confusion` is the band's.
    """

    values: dict[str, Values]
    counts: Counts
    lesions: list[lesions.Lesions]
    band: pixels.Histogram
    whole: pixels.Histogram
    confusion: pixels.Confusion


def measure(
    predicted: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    foreground: NDArray[np.float32],
    spacing: Spacing | None,
    classes: int,
    tolerance: float,
    width: float,
) -> Measured:
    """Every metric of one case, from labels 0..K (the reference's may be IGNORE) and the probability of foreground, all
    D,H,W. Lengths are in mm, in pixels without a spacing. A picture, D = 1, is measured in 2-D.

    Raises InputError where shapes differ or a probability is not within 0..1.
    """
    _check(predicted, reference, foreground)
    flat = int(len(reference) == 1)
    shape, steps = reference.shape[flat:], list(spacing or (1.0, 1.0, 1.0))[flat:]
    valid, foreground = (reference != IGNORE).reshape(shape), foreground.reshape(shape)
    predicted, reference = (labels.reshape(shape) * valid for labels in (predicted, reference))
    counts = count(predicted, reference, classes)
    compared = [_compare(predicted == k, reference == k, steps, tolerance) for k in range(1, classes + 1)]
    near = pixels.band(reference > 0, steps, width) & valid
    part = foreground[near], predicted[near] > 0, reference[near] > 0
    volumes = overlaps.volume_errors(counts, volume_ml(1, spacing) or float("nan"))
    values = {
        **{name: overlap(name, counts) for name in OVERLAPS},
        "specificity": overlaps.specificity(counts, int(valid.sum())),
        **{name: np.array([values[name] for values, _ in compared]) for name in ("hd95", "assd", "nsd", "cldice")},
        **dict(zip(("volume_error_ml", "volume_error_relative"), volumes, strict=True)),
        **_single(lesions.scores(lesions.tally(found for _, found in compared))),
        **_single({f"{name}_band": value for name, value in pixels.scores(*part).items()}),
        **_single({"ece": pixels.calibration_error(foreground[valid], reference[valid] > 0)}),
    }
    return Measured(
        values={name: values[name] for name in METRICS},
        counts=counts,
        lesions=[found for _, found in compared],
        band=pixels.histograms(foreground, reference > 0, near),
        whole=pixels.histograms(foreground, reference > 0, valid),
        confusion=pixels.confusion(*part[1:]),
    )


def _compare(
    prediction: surface.Mask, reference: surface.Mask, spacing: Sequence[float], tolerance: float
) -> tuple[dict[str, float], lesions.Lesions]:
    """What two masks of a class say by their shape."""
    surfaces = surface.distances(prediction, reference, spacing)
    box = surface.bounding_box(prediction | reference)
    values = {
        "hd95": surface.hd95(surfaces),
        "assd": surface.assd(surfaces),
        "nsd": surface.nsd(surfaces, tolerance),
        "cldice": centreline.cldice(prediction[box], reference[box]),
    }
    return values, lesions.match(prediction[box], reference[box])


def _single(values: dict[str, float]) -> dict[str, Values]:
    return {name: np.array([value]) for name, value in values.items()}


def _check(predicted: NDArray[np.uint8], reference: NDArray[np.uint8], foreground: NDArray[np.float32]) -> None:
    shapes = {predicted.shape, reference.shape, foreground.shape}
    if len(shapes) > 1 or reference.ndim != 3:
        raise InputError(f"labels, reference and probability have shapes {sorted(shapes)}; give all three as D,H,W")
    low, high = float(foreground.min()), float(foreground.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"the foreground probability goes from {low:g} to {high:g}; the model must give 0..1")
