"""Every metric of one case."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.data.volume import IGNORE, Spacing, volume_ml
from segpipe.errors import InputError
from segpipe.metrics import centreline, lesions, overlaps, pixels, surface
from segpipe.metrics.catalogue import METRICS
from segpipe.metrics.overlaps import OVERLAPS, Counts, Values, count, overlap


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
    """Every metric of one case, from labels 0..K (in the reference also IGNORE) and the foreground probability, all
    D,H,W. Lengths are in mm, or in pixels without a spacing. A picture, D = 1, is measured in 2-D. Raises InputError if
    shapes differ or a probability is not within 0..1.
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

    values = {
        **{name: overlap(name, counts) for name in OVERLAPS},
        "specificity": overlaps.specificity(counts, int(valid.sum())),
        **{name: np.array([values[name] for values, _ in compared]) for name in ("hd95", "assd", "nsd", "cldice")},
        **overlaps.volume_errors(counts, volume_ml(1, spacing) or float("nan")),
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
    """The metrics of a class that depend on its shape, and its lesions."""
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
        raise InputError(f"the foreground probability ranges from {low:g} to {high:g}; the model must give 0..1")
