"""Measure a model on the test set, case by case, on each case's own grid."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from segpipe.config.sections import EvaluateConfig, MetricName
from segpipe.data.dataset import Dataset
from segpipe.data.manifest import CaseRecord, Manifest
from segpipe.data.volume import foreground, volume_ml
from segpipe.errors import InputError, nearest
from segpipe.evaluation import trivial
from segpipe.evaluation.summary import Summary
from segpipe.metrics import catalogue, centreline, lesions, measurement, overlaps, pixels, statistics

if TYPE_CHECKING:
    from segpipe.evaluation.choosing import Choice
    from segpipe.inference.predictor import Predictor
    from segpipe.inference.spec import Labelling

Progress = Callable[[int, int, str], None]
COUNTS = ("lesions", "lesions_found", "lesions_predicted", "lesions_false")
ELONGATION = "elongation"
UNLIKE = "unlike"  # the distance of a case from the training data, usually below 1
PER_CLASS = ("dice", "iou")
THRESHOLDS = np.arange(5, 96) / 100
Table = NDArray[np.float64]
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Measurement:
    """The results of one model on a test set.

    `cases` has one row per case and `lesions` one per reference lesion (docs/reference/metrics.md names the columns),
    `band` and `whole` are histograms of the foreground probability (see `pixels.histograms`) over all cases,
    `confusion` the voxels of the band, `labels` those of whole cases by reference and prediction, `test_dice` the mean
    Dice at each of `THRESHOLDS`, `embeddings` what the encoder says of each case, `latency_ms` the median time of a
    case.
    """

    cases: pd.DataFrame
    lesions: pd.DataFrame
    band: NDArray[np.int64]
    whole: NDArray[np.int64]
    confusion: dict[str, int]
    labels: NDArray[np.int64]
    test_dice: Table
    embeddings: NDArray[np.float32]
    latency_ms: float


def evaluate(
    predictor: "Predictor",
    dataset: Dataset,
    labelling: "Labelling",
    knobs: EvaluateConfig,
    progress: Progress,
) -> Measurement:
    """Segment and measure every test case, without voxels whose reference is IGNORE. Raises InputError if the model's
    channels or classes differ from the data set's, there is no test case, or a subgroup's column is unknown.
    """
    manifest, cases = dataset.manifest, dataset.where(split="test").cases
    _check(predictor, manifest, knobs.subgroups)
    rows, found_lesions, sweep, embeddings, seconds = [], [], [], [], []
    band, whole = (np.zeros((2, pixels.BINS), dtype=np.int64) for _ in range(2))
    confusion, constants = np.zeros(4, dtype=np.int64), trivial.learn(dataset)
    classes, profile = len(manifest.classes), predictor.spec.profile
    labels = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for done, case in enumerate(cases, start=1):
        image, reference = dataset.native(case)
        began = time.perf_counter()
        prepared = predictor.prepare(image, case.spacing)
        found = predictor.answer(prepared, labelling)
        seconds.append(time.perf_counter() - began)
        measured = measurement.measure(
            found.mask,
            reference,
            found.foreground,
            case.spacing,
            classes=classes,
            tolerance=knobs.tolerance,
            width=knobs.band,
        )
        row = _row(case, measured, manifest.classes) | _beside(reference, constants, classes)
        if profile:
            row[UNLIKE] = profile.compare(image, case.spacing)[0]
        rows.append(row)
        labels += overlaps.confusion(found.mask, reference, classes)
        found_lesions += _lesions(case, measured, manifest.classes)
        sweep.append(by_threshold(measured.whole))
        embeddings.append(predictor.embedding(prepared))
        band, whole, confusion = band + measured.band, whole + measured.whole, confusion + measured.confusion
        progress(done, len(cases), case.case)
    table = pd.DataFrame(rows)
    volumes = table["reference_ml"].fillna(table["reference_voxels"])
    table.insert(list(table).index("outcome") + 1, "size", statistics.tertiles(volumes.to_numpy(dtype=float)))
    return Measurement(
        table,
        pd.DataFrame(found_lesions, columns=["case", "patient", "site", "class", "lesion", "voxels", "ml", "found"]),
        band,
        whole,
        dict(zip(("tp", "fp", "fn", "tn"), confusion.tolist(), strict=True)),
        labels,
        mean_of_known(np.stack(sweep)),
        np.stack(embeddings),
        1000 * float(np.median(seconds[1:] or seconds)),
    )


def _check(predictor: "Predictor", manifest: Manifest, subgroups: Sequence[str]) -> None:
    for what in ("channels", "classes"):
        ours, theirs = getattr(manifest, what), getattr(predictor.spec, what)
        if ours != theirs:
            raise InputError(f"the model's {what} are {theirs}, the dataset's {ours}: they do not match")
    cases = manifest.of("test")
    if not cases:
        raise InputError("the test split has no case; give more patients or a larger split.test")
    known = ["site", "size", "patient", *cases[0].attributes]
    for name in subgroups:
        if name not in known:
            raise InputError(
                f"evaluate.subgroups={name}: no such column{nearest(name, known)}; known: {', '.join(known)}"
            )


def _row(case: CaseRecord, measured: measurement.Measured, classes: tuple[str, ...]) -> dict[str, object]:
    """One row of the table of cases."""
    predicted, reference = int(np.sum(measured.counts.predicted)), int(np.sum(measured.counts.reference))
    row: dict[str, object] = {"case": case.case, "patient": case.patient, "site": case.site, **case.attributes}
    row["outcome"] = overlaps.outcome(measured.counts)
    row.update({name: overlaps.class_mean(values) for name, values in measured.values.items()})
    for name, values in measured.values.items():
        if len(values) > 1:
            row.update({f"{name}_{k}": float(v) for k, v in zip(classes, values, strict=True)})
    row.update(reference_voxels=reference, predicted_voxels=predicted)
    row.update(reference_ml=volume_ml(reference, case.spacing), predicted_ml=volume_ml(predicted, case.spacing))
    return row | dict(zip(COUNTS, lesions.tally(measured.lesions), strict=True))


def _beside(reference: Mask, constants: dict[str, Mask], classes: int) -> dict[str, float]:
    """How elongated what is to be found in a case is, and the Dice of each trivial prediction."""
    dice = {trivial.COLUMNS[name]: trivial.dice(labels, reference, classes) for name, labels in constants.items()}
    return {ELONGATION: centreline.elongation(foreground(reference)[0 if len(reference) == 1 else ...])} | dice


def _lesions(case: CaseRecord, measured: measurement.Measured, classes: tuple[str, ...]) -> list[tuple[object, ...]]:
    """Each reference lesion of a case, as a row."""
    return [
        (case.case, case.patient, case.site, name, number, int(size), volume_ml(int(size), case.spacing), int(found))
        for name, matched in zip(classes, measured.lesions, strict=True)
        for number, (size, found) in enumerate(zip(matched.sizes, matched.found, strict=True), start=1)
    ]


def mean_of_known(values: Table) -> Table:
    """Mean down each column of what is not NaN; NaN where a column has nothing else."""
    return pd.DataFrame(values).mean().to_numpy(dtype=np.float64)


def by_threshold(histogram: NDArray[np.int64], thresholds: Table = THRESHOLDS) -> Table:
    """Dice of the foreground at each threshold, NaN if reference and prediction are empty."""
    dice: Table = pixels.dice_by_threshold(histogram)[1]
    bins = (thresholds * pixels.BINS).round().astype(np.int64)
    return dice[np.minimum(bins, pixels.BINS - 1)]


def summarise(found: Measurement, choice: "Choice", weights: tuple[str, float], samples: int, seed: int) -> Summary:
    """What was measured, in figures; `weights` are the SHA-256 of the model's and their megabytes."""
    cases = found.cases
    names = [name for name in catalogue.METRICS if cases[name].notna().any()]
    return Summary(
        metrics={
            name: statistics.bootstrap_mean(cases[name].astype(float), cases["patient"], samples, seed)
            for name in names
        },
        outcomes={str(k): int(v) for k, v in cases["outcome"].value_counts().items()},
        patients=int(cases["patient"].nunique()),
        lesions={name.removeprefix("lesions_"): int(cases[name].sum()) for name in COUNTS},
        confusion=found.confusion,
        threshold_from=choice.origin,
        labelling_from=choice.reasons,
        **choice.labelling._asdict(),
        latency_ms=found.latency_ms,
        precision=choice.precision,
        interval=f"95 %, bootstrap over patients, {samples} resamples",
        convention=catalogue.CONVENTION,
        weights_sha256=weights[0],
        size_mb=weights[1],
    )


def subgroups(cases: pd.DataFrame, columns: Sequence[str], samples: int, seed: int) -> pd.DataFrame:
    """Means with intervals within each group of each column."""
    parts = []
    for column in columns:
        part = statistics.by_group(cases, column, get_args(MetricName), samples, seed)
        part.insert(0, "column", column)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def by_class(cases: pd.DataFrame, classes: Sequence[str], samples: int, seed: int) -> pd.DataFrame:
    """Dice and IoU of each of several classes, as `statistics.by_group` has them, the class in the column `group`."""
    parts = []
    for name in classes if len(classes) > 1 else ():
        own = pd.DataFrame({metric: cases[f"{metric}_{name}"] for metric in PER_CLASS} | {"patient": cases["patient"]})
        parts.append(statistics.by_group(own.assign(group=name), "group", PER_CLASS, samples, seed))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def ranked(cases: pd.DataFrame) -> dict[str, str]:
    """The names of the worst, median and best case by Dice, among those that have one."""
    known = cases[cases["dice"].notna()].sort_values(["dice", "case"], ascending=[False, True])
    if known.empty:
        return {}
    return {
        "worst": str(known.iloc[-1]["case"]),
        "median": str(known.iloc[(len(known) - 1) // 2]["case"]),
        "best": str(known.iloc[0]["case"]),
    }


def examples(predictor: "Predictor", dataset: Dataset, cases: pd.DataFrame, labelling: "Labelling") -> dict[str, Mask]:
    """The predicted labels D,H,W uint8 of the worst, median and best case."""
    records = {case.case: case for case in dataset.where(split="test").cases}
    found = {rank: records[name] for rank, name in ranked(cases).items()}
    return {
        rank: predictor.answer(predictor.prepare(dataset.native(case)[0], case.spacing), labelling).mask
        for rank, case in found.items()
    }
