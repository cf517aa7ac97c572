"""A small Evidence, whole or with parts missing, for the tests of the report."""

import dataclasses
import math

import numpy as np
import pandas as pd

from segpipe.evaluation.report import page
from segpipe.evaluation.summary import Summary
from segpipe.metrics import pixels
from segpipe.metrics.catalogue import CONVENTION, METRICS
from segpipe.metrics.statistics import Interval

NASTY = "a<b>&\"'$x$\N{GREEK SMALL LETTER ALPHA}\N{CJK UNIFIED IDEOGRAPH-4E2D}|`*"


def volume(depth: int, seed: int = 0) -> page.Shown:
    """A noisy case of D,40,36 with a bright column whose prediction is shifted."""
    y, x = np.mgrid[:40, :36]
    reference = np.zeros((depth, 40, 36), np.uint8)
    reference[depth // 3 :] = (y - 20) ** 2 + (x - 15) ** 2 < 36
    image = np.random.default_rng(seed).normal(0, 0.2, (1, depth, 40, 36)).astype(np.float32) + reference
    return page.Shown(f"case{seed}", image, reference, np.roll(reference, 2, axis=2))


def table(count: int = 8) -> pd.DataFrame:
    """Cases of two sites: the first missed, the second a false alarm, the third empty as it should be."""
    rng = np.random.default_rng(1)
    cases = pd.DataFrame({"case": [f"case{i}" for i in range(count)], "patient": [f"p{i // 2}" for i in range(count)]})
    cases["site"], cases["outcome"] = [f"site{i % 2}" for i in range(count)], "found"
    for name in METRICS:
        cases[name] = rng.uniform(0.5, 1, count)
    cases["reference_ml"], cases["predicted_ml"] = rng.uniform(1, 9, (2, count))
    cases["reference_voxels"], cases["predicted_voxels"] = rng.integers(100, 900, (2, count))
    for row, outcome in enumerate(("missed", "false alarm", "both empty")[: count - 1]):
        cases.loc[row, "outcome"] = outcome
        cases.loc[row, ["dice", "iou"]] = np.nan if outcome == "both empty" else 0.0
    return cases


def summarised(cases: pd.DataFrame) -> Summary:
    """A summary of `table`; its intervals are from the lowest to the highest value."""
    known = {name: cases[name] for name in METRICS if cases[name].notna().any()}
    return Summary(
        metrics={
            name: Interval(values.mean(), values.min(), values.max(), len(cases), values.notna().sum())
            for name, values in known.items()
        },
        outcomes=cases["outcome"].value_counts().to_dict(),
        patients=cases["patient"].nunique(),
        threshold=0.42,
        threshold_from="chosen on the validation set",
        interval="95 %, bootstrap over patients, 100 resamples",
        convention=CONVENTION,
        lesions={"lesions": 4, "found": 3, "predicted": 5, "false": 2},
        confusion={"tp": 50, "fp": 7, "fn": 9, "tn": 400},
        latency_ms=12.5,
        weights_sha256="0" * 64,
        size_mb=3.25,
    )


def of_classes(names: tuple[str, ...]) -> dict[str, object]:
    """What an evidence has of several classes: the last was nowhere."""
    row = {"n": 8, "patients": 4, "low": 0.5, "high": 0.9}
    rows = [
        {"group": name, "metric": metric, "mean": np.nan if last else 0.7, "n_valid": 0 if last else 7, **row}
        for name, last in zip(names, [False] * (len(names) - 1) + [True], strict=True)
        for metric in ("dice", "iou")
    ]
    labels = np.random.default_rng(3).integers(0, 900, (len(names) + 1,) * 2) * (1 - np.eye(len(names) + 1)[-1])
    return {"classes": names, "by_class": pd.DataFrame(rows), "labels": labels.astype(np.int64)}


def by_group(cases: pd.DataFrame) -> pd.DataFrame:
    """Each site's means."""
    rows = [
        {"column": "site", "group": site, "metric": name, "patients": part["patient"].nunique(), **values._asdict()}
        for site, part in cases.groupby("site")
        for name, values in summarised(part).metrics.items()
    ]
    columns = ["column", "group", "metric", "patients", "mean", "low", "high", "n", "n_valid"]
    return pd.DataFrame(rows, columns=columns)


def evidence(**changes: object) -> page.Evidence:
    """Everything there is, with some of it changed."""
    cases, rng = table(), np.random.default_rng(2)
    edges = np.linspace(0, 1, pixels.BINS + 1)
    band = np.stack([np.histogram(rng.normal(m, 0.15, n).clip(0, 1), edges)[0] for m, n in ((0.3, 2400), (0.7, 1600))])
    sizes = {"voxels": [3, 20, 20, 400], "ml": [0.1, 0.4, 0.4, 9.0], "found": [0, 1, 1, 1]}
    names = {"case": ["case3"] * 4, "patient": ["p1"] * 4, "site": ["site1"] * 4, "lesion": [1, 2, 3, 4]}
    losses = {"train_loss": 0.5, "val_loss": 0.6, "train_dice": 0.7, "val_dice": 0.6, "learning_rate": 1e-3}
    whole = page.Evidence(
        title="stroke, unet resnet18",
        kind="volume",
        classes=("foreground",),
        summary=summarised(cases),
        cases=cases,
        lesions=pd.DataFrame({**names, **sizes}),
        by_class=pd.DataFrame(),
        labels=np.array([[900, 20], [30, 170]]),
        subgroups=by_group(cases),
        sweep=pd.DataFrame({"threshold": [0.1, 0.4, 0.9], "val_dice": [0.5, 0.7, 0.6], "test_dice": [0.4, 0.6, 0.6]}),
        band=band,
        whole=band * 3,
        embeddings=rng.normal(size=(len(cases), 16)),
        shown={"worst": volume(5, 3), "median": volume(6, 4), "best": volume(1, 5)},
        suspects=[page.Suspect(volume(4, 6), 0.0123, 0.25), page.Suspect(volume(1, 7), 0.5, math.nan)],
        history=[losses] * 3,
        lineage=[("train", "run 12ab"), ("commit", "2812a0c")],
        tree=[
            {"id": "raw", "lines": ["raw data", "8 patients"], "parents": []},
            {"id": "pre", "lines": ["preprocess", "run 34cd"], "parents": ["raw"]},
            {"id": "train", "lines": ["train", "run 12ab"], "parents": ["pre", "not there"]},
            {"id": "evaluate", "lines": ["evaluate", "run 56ef"], "parents": ["train", "pre"]},
        ],
        facts=[("encoder", "resnet18")],
    )
    return dataclasses.replace(whole, **changes)


def nothing() -> page.Evidence:
    """What is left where one test case has no foreground and nothing was predicted: not a single value."""
    cases = table(1)
    cases["outcome"] = "both empty"
    cases[[*METRICS, "reference_ml", "predicted_ml"]] = np.nan
    cases[["reference_voxels", "predicted_voxels"]] = 0
    none = {
        "lesions": dict.fromkeys(("lesions", "found", "predicted", "false"), 0),
        "confusion": dict.fromkeys(("tp", "fp", "fn", "tn"), 0),
    }
    empty = evidence()
    return evidence(
        summary=summarised(cases).model_copy(update=none),
        cases=cases,
        lesions=empty.lesions[:0],
        subgroups=empty.subgroups[:0],
        sweep=empty.sweep[:0],
        band=np.zeros_like(empty.band),
        whole=np.zeros_like(empty.whole),
        embeddings=empty.embeddings[:1],
        shown={},
        suspects=[],
        history=[],
        lineage=[],
        tree=[],
        facts=[],
    )
