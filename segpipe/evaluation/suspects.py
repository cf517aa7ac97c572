"""How far a model agrees with the mask of each case: the lowest scores are masks to look at first.

The score is the softmin of Lad and Mueller, "Estimating label quality and errors in semantic segmentation data via any
model", 2023, as in cleanlab 2.9: `cleanlab.segmentation.rank.get_label_quality_scores`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segpipe.data.volume import IGNORE

COUNT = 6  # as many as a person compares with their images in a few minutes; the table has the others
TEMPERATURE = 0.1  # of the softmin, as in the source
COLUMNS = ("case", "patient", "score", "dice")
Probability = NDArray[np.float32]
Labels = NDArray[np.uint8]
Values = NDArray[np.float64]


class Suspects(NamedTuple):
    """A table of all validation cases, the lowest score first, with the Dice of their foreground, and the predicted
    labels D,h,w uint8 of the first COUNT of them.
    """

    table: pd.DataFrame
    labels: tuple[Labels, ...]


def quality(foreground: Probability, labels: Labels, reference: Labels) -> Values:
    """The probability that a model gives to the reference's label, for each pixel but those of IGNORE, 1-D.

    Known are the foreground's probability p and its most probable class, which counts with all of p. Any other class
    counts with the lower of p and 1 - p: an estimate that is low where a model is sure of that class or of background.
    """
    known = reference != IGNORE
    probability, truth = foreground[known].astype(np.float64), reference[known]
    other = np.minimum(probability, 1 - probability)
    of_class = np.where(truth == labels[known], probability, other)
    s: Values = np.where(truth == 0, 1 - probability, of_class)
    return s


def score(foreground: Probability, labels: Labels, reference: Labels) -> float:
    """sum(softmax((1 - s) / TEMPERATURE) * s) over the pixels' qualities s of a case D,h,w, near 0 where some are, 1
    where all are; NaN where all is IGNORE.
    """
    total = weighted = 0.0
    for plane in zip(foreground, labels, reference, strict=True):
        s = quality(*plane)
        weights = np.exp(-s / TEMPERATURE)  # in e^-10..1, and the softmax after division by their sum
        total += float(weights.sum())
        weighted += float((weights * s).sum())
    return weighted / total if total else math.nan


def lowest(scores: Sequence[float]) -> list[int]:
    """Where the COUNT lowest scores are, the lowest first, without NaN."""
    order = np.argsort(scores, kind="stable")
    return [int(k) for k in order[:COUNT] if not math.isnan(scores[k])]


def table(cases: Sequence[tuple[str, str]], scores: Sequence[float], dice: Values) -> pd.DataFrame:
    """Cases (name and patient), scores and Dice as COLUMNS, the lowest score first, NaN last."""
    names, patients = zip(*cases, strict=True)
    whole = pd.DataFrame(dict(zip(COLUMNS, (names, patients, scores, dice), strict=True)))
    return whole.sort_values("score", kind="stable", ignore_index=True)
