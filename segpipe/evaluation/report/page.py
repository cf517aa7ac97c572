"""What a test showed, as one page that stands alone: no network, no other file, every number also as CSV beside it."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segpipe.data.volume import IGNORE, Kind
from segpipe.errors import InputError
from segpipe.evaluation.report import embedding, tables
from segpipe.evaluation.report.embedding import Planes
from segpipe.evaluation.summary import Summary
from segpipe.metrics import overlaps, pixels
from segpipe.metrics.catalogue import METRICS
from segpipe.plots import evidence as charts
from segpipe.plots import training
from segpipe.plots.cases import COLOURED, differing_slice, overlay, slices

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment

FILE = "report.html"
RANKS = ("worst", "median", "best")
SUBGROUP_METRICS = ("dice", "precision", "recall", "hd95", "lesion_recall")


class Shown(NamedTuple):
    """A case to look at: image C,D,H,W float32; reference and prediction D,H,W uint8 labels."""

    case: str
    image: NDArray[np.float32]
    reference: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


class Suspect(NamedTuple):
    """A validation case whose mask may be wrong, its `suspects.score` and the Dice of its foreground."""

    shown: Shown
    score: float
    dice: float


@dataclass(frozen=True)
class Evidence:
    """Everything the report is made from; any part but title and kind may be empty.

    `summary`, `cases`, `lesions` and `subgroups` are what evaluation saves; `subgroups` has the columns column, group,
    metric, patients, mean, low, high, n, n_valid, and so has `by_class` but for the first; `labels` K+1,K+1 counts
    voxels by the label of the reference and the predicted one. `sweep` has threshold, val_dice, test_dice. `band` and
    `whole` are histograms (2, bins) of the foreground probability, negatives above positives, summed over the test
    cases. `embeddings` N,E are in the order of `cases`; `shown` has a case for each of RANKS; `suspects` has the
    most suspicious first; `history` has one row per epoch; `tree` is what `plots.evidence.lineage` draws; `lineage` and
    `facts` are rows of label and value.
    """

    title: str
    kind: Kind
    classes: tuple[str, ...]
    summary: Summary
    cases: "pd.DataFrame"
    lesions: "pd.DataFrame"
    by_class: "pd.DataFrame"
    labels: NDArray[np.int64]
    subgroups: "pd.DataFrame"
    sweep: "pd.DataFrame"
    band: NDArray[np.int64]
    whole: NDArray[np.int64]
    embeddings: NDArray[np.floating[Any]]
    shown: dict[str, Shown]
    suspects: Sequence[Suspect]
    history: list[dict[str, float]]
    lineage: Sequence[tuple[str, str]]
    tree: Sequence[dict[str, Any]]
    facts: Sequence[tuple[str, str]]


def write(evidence: Evidence, folder: Path) -> None:
    """Write report.html, the pictures under plots/ and the tables as CSV into `folder`."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    planes = embedding.planes(evidence.embeddings)
    written, drawn = _tables(evidence, planes), _charts(evidence, planes, folder / "plots")
    for name, table in written.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    page = (
        environment()
        .get_template("template.html")
        .render(
            e=evidence,
            rows=tables.metric_rows(evidence.summary.metrics, evidence.cases),
            convention=METRICS,
            failures=written["failures"].to_dict("records"),
            groups=tables.pivot(evidence.subgroups, SUBGROUP_METRICS),
            classes=tables.classes(evidence.by_class, evidence.classes),
            mean_iou=overlaps.mean_iou(evidence.labels),
            charts=drawn,
            coloured=_coloured(evidence),
            viewers=_viewers(evidence, folder / "plots"),
            suspects=[_suspect(one, evidence.kind, evidence.classes) for one in evidence.suspects],
            lineage=evidence.lineage,
            picture=drawn.get("lineage"),
            decision=None,
        )
    )
    (folder / FILE).write_text(page, encoding="utf-8")


def with_decision(
    html: str, decision: dict[str, Any], lineage: Sequence[tuple[str, str]], tree: Sequence[dict[str, Any]]
) -> str:
    """The page with its decision filled in: promote, verdict, rule, reasons, comparisons (name, value, required,
    passed, low, high, p, n, detail), who, when, version, override; and with the lineage as it now is, as in `Evidence`.

    Raises InputError where `html` is no page of `write`.
    """
    html = _filled(html, "decision", decision=decision)
    drawn = BytesIO()
    charts.lineage(tree, drawn)
    return _filled(html, "lineage", lineage=lineage, picture=uri("png", drawn.getvalue()))


def _filled(html: str, name: str, **values: Any) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = html.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise InputError(f"{FILE}: no place for the {name}: not a page of this version; run evaluate again")
    return head + begin + environment().get_template(f"{name}.html").render(**values) + end + tail


@cache
def environment() -> "Environment":
    """What makes pages of the templates beside this file."""
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent)
    made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = number
    return made


def number(value: float | None, places: int = 3) -> str:
    """A figure for a table; a dash where there is none."""
    known = isinstance(value, int | float) and np.isfinite(value)
    return f"{value:.{places}f}" if known else "\N{EN DASH}"


def _tables(evidence: Evidence, planes: Planes | None) -> "dict[str, pd.DataFrame]":
    points = evidence.cases[["case", "patient", "site", "dice"]].copy()
    for name, plane in zip(("pca", "tsne"), planes or (np.full((len(points), 2), np.nan),) * 2, strict=True):
        points[[f"{name}_1", f"{name}_2"]] = plane
    return {
        "sweep": evidence.sweep,
        "roc": tables.roc(evidence.band),
        "pr": tables.pr(evidence.band),
        "reliability": tables.reliability(evidence.band, evidence.whole),
        "embeddings": points,
        "subgroups": evidence.subgroups,
        "failures": tables.failures(evidence.cases),
        "classes": evidence.by_class,
        "labels": tables.labels(evidence.labels, evidence.classes),
    }


def _charts(evidence: Evidence, planes: Planes | None, folder: Path) -> dict[str, str]:
    """The charts that the evidence is enough for, as files in `folder`, and their data: URIs by name."""
    cases, band, sweep = evidence.cases, evidence.band, evidence.sweep
    confusion, labels, several = evidence.summary.confusion, evidence.labels, len(evidence.classes) > 1
    values, bins = tables.values(cases), tables.lesion_bins(evidence.lesions)
    regions = {"band around the reference": band, "whole image": evidence.whole}
    reliable = {title: pixels.reliability(counts) for title, counts in regions.items() if counts.any()}
    swept = bool(sweep[["val_dice", "test_dice"]].notna().to_numpy().any())
    points = dict(zip(("PCA", "t-SNE"), planes or (), strict=False))
    drawn: dict[str, tuple[bool, Callable[[Path], None]]] = {
        "distributions": (bool(values), lambda p: charts.distributions(values, p)),
        "sweep": (swept, lambda p: charts.sweep(sweep, evidence.summary.threshold, p)),
        "roc_pr": (bool(band.any(axis=1).all()), lambda p: charts.roc_pr(pixels.roc(band), pixels.pr(band), p)),
        "reliability": (bool(reliable), lambda p: charts.reliability(reliable, p)),
        "confusion": (any(confusion.values()), lambda p: charts.confusion(**confusion, path=p)),
        "labels": (several and bool(labels.any()), lambda p: charts.labels(labels, evidence.classes, p)),
        "lesion_sizes": (bool(bins), lambda p: charts.lesion_sizes(bins, p)),
        "embedding": (bool(points), lambda p: charts.embedding(points, cases["site"], cases["dice"], p)),
        "curves": (bool(evidence.history), lambda p: training.curves(evidence.history, p)),
        "lineage": (bool(evidence.tree), lambda p: charts.lineage(evidence.tree, p)),
    }
    uris = {}
    for name, (enough, draw) in drawn.items():
        if enough:
            draw(folder / f"{name}.png")
            uris[name] = uri("png", (folder / f"{name}.png").read_bytes())
    return uris


def _viewers(evidence: Evidence, folder: Path) -> list[dict[str, Any]]:
    """Each case to look at: its slices as pictures, which of them comes first; and its overlay as a file."""
    found = []
    dice = dict(zip(evidence.cases["case"], evidence.cases["dice"], strict=True))
    for rank in (rank for rank in RANKS if rank in evidence.shown):
        case, image, reference, predicted = evidence.shown[rank]
        kind, classes = evidence.kind, evidence.classes
        overlay(image, reference, predicted, f"{rank}: {case}", folder / f"{rank}.png", kind, classes)
        chosen = slices(image, reference, predicted, kind, classes)
        viewer = {
            "rank": rank,
            "case": case,
            "dice": dice.get(case),
            "depth": len(reference),
            "first": chosen.first,
            "frames": [{"slice": one.slice + 1, "src": uri("webp", one.webp)} for one in chosen.shown],
            "size": chosen.size,
            "ignored": bool((reference == IGNORE).any()),
        }
        found.append(viewer)
    return found


def _coloured(evidence: Evidence) -> bool:
    """Whether cases are shown in colour."""
    shown = (*evidence.shown.values(), *(one.shown for one in evidence.suspects))
    return evidence.kind == "picture" and any(len(one.image) == COLOURED for one in shown)


def _suspect(suspect: Suspect, kind: Kind, classes: Sequence[str]) -> dict[str, Any]:
    """A case whose mask may be wrong: a picture of the slice in which mask and prediction differ most."""
    case, image, reference, predicted = suspect.shown
    z = differing_slice(reference, predicted)
    plane = slice(z, z + 1)
    picture = slices(image[:, plane], reference[plane], predicted[plane], kind, classes)
    return {
        "case": case,
        "score": suspect.score,
        "dice": suspect.dice,
        "slice": z + 1,
        "depth": len(reference),
        "src": uri("webp", picture.shown[0].webp),
        "size": picture.size,
        "ignored": bool((reference[z] == IGNORE).any()),
    }


def uri(kind: str, content: bytes) -> str:
    """A picture as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
