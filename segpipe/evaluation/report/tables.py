"""The report's figures as tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segpipe.metrics import pixels
from segpipe.metrics.catalogue import METRICS, Metric
from segpipe.metrics.statistics import Interval
from segpipe.plots.colours import class_colours

LOWEST = 10
SIZES = ("small", "medium", "large", "none")
FAILED = ("missed", "false alarm")


class Row(NamedTuple):
    """A metric with its mean, its interval, the cases there are and those that have a value."""

    metric: Metric
    unit: str
    mean: float
    low: float
    high: float
    n: int
    n_valid: int


def unit(metric: Metric, cases: pd.DataFrame) -> str:
    """A metric's unit for these cases: lengths are pixels where no case has a spacing."""
    spaced = "reference_ml" not in cases or bool(cases["reference_ml"].notna().any())
    return metric.unit if spaced or metric.unit != "mm" else "pixels"


def metric_rows(found: Mapping[str, Interval], cases: pd.DataFrame) -> list[Row]:
    """The metrics of a summary that any case has a value of, in the order of METRICS."""
    return [
        Row(metric, unit(metric, cases), *found[name])
        for name, metric in METRICS.items()
        if name in found and found[name].n_valid
    ]


def values(cases: pd.DataFrame) -> dict[str, tuple[NDArray[np.float64], str]]:
    """Title to (value of each case, unit), for the metrics that any case has a value of."""
    return {
        metric.title: (cases[name].to_numpy(dtype=float), unit(metric, cases))
        for name, metric in METRICS.items()
        if name in cases and cases[name].notna().any()
    }


def roc(band: NDArray[np.int64]) -> pd.DataFrame:
    """False and true positive rate, as the threshold falls."""
    negative, positive = pixels.roc(band)
    return pd.DataFrame(
        {"threshold": np.linspace(1, 0, len(negative)), "false_positive_rate": negative, "recall": positive}
    )


def pr(band: NDArray[np.int64]) -> pd.DataFrame:
    """Recall and precision, as the threshold falls."""
    recall, precision = pixels.pr(band)
    return pd.DataFrame({"threshold": np.linspace(1, 0, len(recall)), "recall": recall, "precision": precision})


def reliability(band: NDArray[np.int64], whole: NDArray[np.int64]) -> pd.DataFrame:
    """Mean probability, observed share and voxels of each bin, in the band and in the whole image."""
    regions = {"band": pixels.reliability(band), "whole image": pixels.reliability(whole)}
    parts = [pd.DataFrame({"region": region, **found._asdict()}) for region, found in regions.items()]
    return pd.concat(parts, ignore_index=True)


def lesion_bins(lesions: pd.DataFrame) -> list[tuple[str, int, int]]:
    """(size, found, lesions) by tertile of the reference lesions; one bin where there are fewer than three."""
    if lesions.empty:
        return []
    name = "ml" if lesions["ml"].notna().all() else "voxels"
    size = lesions[name].to_numpy(dtype=float)
    edges = np.unique(np.quantile(size, [1 / 3, 2 / 3])) if len(size) >= 3 else np.array([])
    groups = lesions.groupby(np.searchsorted(edges, size))
    return [(_span(group[name], name), int(group["found"].sum()), len(group)) for _, group in groups]


def _span(size: "pd.Series[float]", name: str) -> str:
    low, high = (f"{value:.2g}" if value < 100 else f"{value:.0f}" for value in (size.min(), size.max()))
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"


def failures(cases: pd.DataFrame) -> pd.DataFrame:
    """Why a case is here, case, patient, site, Dice, volumes: missed, false alarms, those with a Dice below half the
    median, then, as `lowest`, the lowest Dice of the others.
    """
    failed = [cases[cases["outcome"] == outcome].assign(why=outcome) for outcome in FAILED]
    rest = cases[cases["dice"].notna() & ~cases["outcome"].isin(FAILED)].sort_values(["dice", "case"])
    poor = rest["dice"] < rest["dice"].median() / 2
    failed.append(rest[poor].assign(why="below half the median"))
    lowest = rest[~poor].head(LOWEST).assign(why="lowest")
    columns = ["why", "case", "patient", "site", "dice"]
    columns += ["reference_ml", "predicted_ml", "reference_voxels", "predicted_voxels"]
    return pd.concat([*failed, lowest], ignore_index=True).reindex(columns=columns)


def classes(by_class: pd.DataFrame, names: Sequence[str]) -> list[dict[str, Any]]:
    """Each of several classes with its colour and, by metric, its row."""
    colours = dict(zip(names, class_colours(names), strict=True))
    return [
        {"name": name, "colour": colours[str(name)], **{str(row["metric"]): row for row in part.to_dict("records")}}
        for name, part in (by_class.groupby("group", sort=False) if len(by_class) else ())
    ]


def labels(counts: NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
    """Voxels by the label of the reference (rows) and the predicted one (columns)."""
    known = ["background", *names]
    return pd.DataFrame(counts, index=pd.Index(known, name="reference"), columns=known).reset_index()


def pivot(subgroups: pd.DataFrame, shown: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """{column: {group: {metric: row}}} of the metrics shown; groups in the table's order, sizes by size."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    kept = subgroups[subgroups["metric"].isin(shown)]
    for row in kept.to_dict("records"):
        groups = found.setdefault(str(row["column"]), {})
        groups.setdefault(str(row["group"]), {})[str(row["metric"])] = dict(row)
    rank = {name: n for n, name in enumerate(SIZES)}
    return {column: dict(sorted(groups.items(), key=lambda g: rank.get(g[0], -1))) for column, groups in found.items()}
