"""Measure a model on the test set, case by case, on each case's own grid."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from segpipe import metrics, statistics
from segpipe.data.volume import volume_ml
from segpipe.errors import InputError
from segpipe.manifest import CaseRecord, Manifest

if TYPE_CHECKING:
    from segpipe.inference import Predictor

Progress = Callable[[int, int, str], None]
Summary = dict[str, Any]
HEADLINE = ("dice", "iou", "precision", "recall")
ABSOLUTE = ("volume_error_ml",)
NAMES = ("case", "patient", "site", "outcome")


def evaluate(
    predictor: "Predictor", manifest: Manifest, dataset: Path, threshold: float, progress: Progress
) -> pd.DataFrame:
    """One row per test case: dice, iou, precision, recall (mean over classes; per class too where there are several),
    reference_ml, predicted_ml, volume_error_ml (absolute), reference and predicted voxels, outcome; all of
    them without the voxels whose reference is IGNORE.

    Raises InputError where the model's channels or classes are not the dataset's, or there is no test case.
    """
    for what in ("channels", "classes"):
        ours, theirs = getattr(manifest, what), getattr(predictor.spec, what)
        if ours != theirs:
            raise InputError(f"the model's {what} are {theirs}, the dataset's {ours}: they can't be measured together")
    cases = manifest.of("test")
    if not cases:
        raise InputError("the test split has no case; give more patients or a larger split.test")
    rows = []
    for done, case in enumerate(cases, start=1):
        image, reference = manifest.native(dataset, case)
        predicted = predictor.segment(image, threshold).mask
        rows.append(_row(case, metrics.count(predicted, reference, len(manifest.classes)), manifest.classes))
        progress(done, len(cases), case.case)
    return pd.DataFrame(rows)


def _row(case: CaseRecord, counts: metrics.Counts, classes: tuple[str, ...]) -> dict[str, object]:
    predicted, reference = int(np.sum(counts.predicted)), int(np.sum(counts.reference))
    row: dict[str, object] = {
        "case": case.case,
        "patient": case.patient,
        "site": case.site,
        "outcome": metrics.outcome(counts),
    }
    for name in HEADLINE:
        values = metrics.overlap(name, counts)
        row[name] = metrics.class_mean(values)
        if len(classes) > 1:
            row.update({f"{name}_{k}": float(v) for k, v in zip(classes, values, strict=True)})
    reference_ml, predicted_ml = volume_ml(reference, case.spacing), volume_ml(predicted, case.spacing)
    error = None if reference_ml is None or predicted_ml is None else abs(predicted_ml - reference_ml)
    row.update(reference_voxels=reference, predicted_voxels=predicted)
    row.update(reference_ml=reference_ml, predicted_ml=predicted_ml, volume_error_ml=error)
    return row


def summarise(cases: pd.DataFrame, threshold: float, samples: int, seed: int) -> Summary:
    """Means with confidence intervals over patients, counts of outcomes, the threshold and the convention."""
    names = [name for name in (*HEADLINE, *ABSOLUTE) if cases[name].notna().any()]
    intervals = {
        name: statistics.bootstrap_mean(cases[name].astype(float), cases["patient"], samples, seed)._asdict()
        for name in names
    }
    return {
        "metrics": intervals,
        "outcomes": {str(k): int(v) for k, v in cases["outcome"].value_counts().items()},
        "patients": int(cases["patient"].nunique()),
        "threshold": threshold,
        "interval": f"95 %, bootstrap over patients, {samples} resamples",
        "convention": metrics.CONVENTION,
    }


def save(cases: pd.DataFrame, summary: Summary, folder: Path) -> None:
    """Write cases.csv and, last, summary.json."""
    cases.to_csv(folder / "cases.csv", index=False)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def read(path: Path) -> pd.DataFrame:
    """What `save` wrote as cases.csv; names stay text, whatever they look like."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    numbers = table.columns.difference(list(NAMES))
    table[numbers] = table[numbers].apply(pd.to_numeric)
    return table


def ranked(cases: pd.DataFrame) -> dict[str, str]:
    """The names of the best, median and worst case by Dice, of those that have one."""
    known = cases[cases["dice"].notna()].sort_values(["dice", "case"], ascending=[False, True])
    if known.empty:
        return {}
    return {
        "best": str(known.iloc[0]["case"]),
        "median": str(known.iloc[(len(known) - 1) // 2]["case"]),
        "worst": str(known.iloc[-1]["case"]),
    }


def headline(summary: Summary) -> str:
    """The test Dice with its interval, as one phrase."""
    if "dice" not in summary["metrics"]:
        return "no test case has any foreground"
    dice = summary["metrics"]["dice"]
    valid = f"{dice['n_valid']} of {dice['n']} cases"
    return f"test Dice {dice['mean']:.3f} [{dice['low']:.3f}, {dice['high']:.3f}], {valid}"
