"""The model card in Markdown, from run data alone: what a model is, what it was trained on, and its results.

The list of fields follows MONAI's metadata for model bundles (Cardoso et al. 2022).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from segpipe.config.sections import Config, PreprocessConfig
from segpipe.data.manifest import SPLITS, CaseRecord, Manifest
from segpipe.evaluation.summary import Summary
from segpipe.metrics.catalogue import METRICS
from segpipe.metrics.statistics import Interval

if TYPE_CHECKING:
    import pandas as pd

FILE = "model_card.md"
LARGEST = 5000  # characters: what a model version's description holds
FEW_PATIENTS, GROUP_PATIENTS = 20, 3
# Metrics, subgroups, characters of a text and of a name that are told, from all to least.
ROOMS = ((len(METRICS), 12, 800, 40), (14, 6, 250, 30), (6, 3, 120, 20), (3, 0, 60, 12), (1, 0, 20, 6))
MEANING = {
    "dwi": "diffusion-weighted MRI",
    "adc": "apparent diffusion coefficient, MRI",
    "flair": "fluid-attenuated inversion recovery, MRI",
    "t1": "T1-weighted MRI",
    "t2": "T2-weighted MRI",
    "ct": "computed tomography",
    "grey": "brightness",
}
Section = tuple[str, list[str]]


def card(
    config: Config, manifest: Manifest, summary: Summary, subgroups: "pd.DataFrame", facts: Mapping[str, str]
) -> str:
    """A model card of at most LARGEST characters; if it would be longer, tables and lists are truncated, with a note.

    `facts` are a training's params without `cfg.` (model.parameters, hardware.*, version.*) and best_epoch, counted
    from 1; `summary` and `subgroups` are what evaluation saved.
    """
    cards = (_card(config, manifest, summary, subgroups, facts, room) for room in ROOMS)
    text = next((text for text in cards if len(text) <= LARGEST), None)
    return (
        text
        or _card(config, manifest, summary, subgroups, facts, ROOMS[-1])[: LARGEST - 2] + "\N{HORIZONTAL ELLIPSIS}\n"
    )


def _card(
    config: Config,
    manifest: Manifest,
    summary: Summary,
    subgroups: "pd.DataFrame",
    facts: Mapping[str, str],
    room: tuple[int, int, int, int],
) -> str:
    prose, name = room[2:]
    sections: list[Section] = [
        ("Model", _model(config, manifest, facts, prose, name)),
        ("Data", _data(config, manifest, prose, name)),
        ("Training", _training(config, facts)),
        ("Evaluation", _evaluation(manifest, summary, subgroups, room)),
        ("Limits", [f"- {line}" for line in _limits(config, manifest, summary, subgroups, prose, name)]),
        ("Requirements", [_versions(facts)]),
    ]
    body = "\n\n".join(f"## {title}\n" + "\n".join(lines) for title, lines in sections)
    return f"# {_plain(config.registry.model_name, prose)}\n\n{body}\n"


def _plain(text: object, most: int) -> str:
    """One line of text, escaped for Markdown and cut to a length."""
    line = " ".join(str(text).split())
    cut = line if len(line) <= most else line[: max(most - 1, 1)] + "\N{HORIZONTAL ELLIPSIS}"
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", cut)


def _prose(text: str, most: int) -> str:
    """The user's text, including its Markdown, cut to a length."""
    line = " ".join(text.split())
    return (line if len(line) <= most else line[: most - 1] + "\N{HORIZONTAL ELLIPSIS}") or "not given"


def _names(names: Iterable[str], most: int, meaning: Mapping[str, str] | None = None) -> str:
    """A list of names, of which ten are told, with what is known of them."""
    every, known = list(names), meaning or {}
    shown = [f"{_plain(name, most)} ({known[name]})" if name in known else _plain(name, most) for name in every[:10]]
    return ", ".join(shown) + (f" and {len(every) - 10} more" if len(every) > 10 else "")


def _number(value: float | None, places: int = 3) -> str:
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{value:.{places}f}"


def _model(config: Config, manifest: Manifest, facts: Mapping[str, str], prose: int, name: int) -> list[str]:
    model, height, width = config.model, *manifest.preprocess.size
    count = facts.get("model.parameters", "")
    parameters = f"{int(count):,}" if count.isdigit() else "unknown"
    options = f", options {_plain(model.options, prose)}" if model.options else ""
    start = {
        "rand": "random weights",
        "img": "ImageNet weights",
        "bundled": "ImageNet weights from a package",
        "file": "weights from a file",
    }[model.initialisation]
    return [
        f"- Task: segmentation, slice by slice, of {_names(manifest.classes, name)}",
        f"- Input: {_names(manifest.channels, name, MEANING)}; {height} x {width} px",
        f"- Network: {model.arch}, encoder {_plain(model.encoder, 60)} (depth {model.encoder_depth}, {start}, "
        f"{model.norm} norm{options}); {parameters} parameters",
        f"- Intended use: {_prose(config.card.intended_use, prose)}",
        "- Out of scope: clinical use. Research software, not a medical device.",
        f"- Authors and copyright: {_prose(config.card.authors, prose)}",
        f"- Licence: {_prose(config.card.licence, prose)}",
        f"- References: {_prose(config.card.references, prose)}",
    ]


def _data(config: Config, manifest: Manifest, prose: int, name: int) -> list[str]:
    rows = [_split_row(split, cases, name) for split in SPLITS if (cases := manifest.of(split))]
    return [
        f"- Source: {_prose(config.card.data_source, prose)}",
        f"- Type: {manifest.kind}s, format {_plain(manifest.reader, 40)}; {_spacings(manifest.cases)}; "
        f"digest {manifest.digest}",
        f"- Preprocessing: {_preprocessing(manifest.preprocess)}",
        "",
        "| split | patients | cases | sites |",
        "|---|---|---|---|",
        *rows,
    ]


def _split_row(split: str, cases: Sequence[CaseRecord], name: int) -> str:
    sites = _names(sorted({case.site for case in cases}), name)
    return f"| {split} | {len({case.patient for case in cases})} | {len(cases)} | {sites} |"


def _spacings(cases: Iterable[CaseRecord]) -> str:
    """The range of the spacings along depth, height and width."""
    known = [case.spacing for case in cases if case.spacing]
    if not known:
        return "no spacing"
    low, high = ([extreme(axis) for axis in zip(*known, strict=True)] for extreme in (min, max))
    spans = (f"{a:.3g}" if math.isclose(a, b) else f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True))
    return f"spacing {' x '.join(spans)} mm (depth, height, width)"


def _preprocessing(knobs: PreprocessConfig) -> str:
    fit = {
        "resize": "each slice resized with its aspect ratio and padded to",
        "patch": "seen in windows of",
        "crop": "each slice cropped or padded around the centre to",
    }
    return f"{_intensities(knobs)}; {fit[knobs.fit]} {knobs.size[0]} x {knobs.size[1]} px"


def _intensities(knobs: PreprocessConfig) -> str:
    if knobs.window:
        low, high = knobs.window
        return f"intensities from {low:g} to {high:g} scaled to -1..1"
    scale = {"zscore": "scaled to mean 0 and standard deviation 1", "minmax": "scaled to 0..1"}
    clahe = ", contrast-limited adaptive histogram equalisation" if knobs.clahe else ""
    clipped = f"each channel of a case clipped at its percentiles {knobs.clip_low:g} and {knobs.clip_high:g}{clahe}"
    return f"{clipped}, {scale[knobs.normalise]}"


def _training(config: Config, facts: Mapping[str, str]) -> list[str]:
    train = config.train
    best = f", best epoch {facts['best_epoch']}" if "best_epoch" in facts else ""
    device = facts.get("hardware.device", "unknown device")
    gpu = facts.get("hardware.gpu", "none")
    hardware = device if gpu == "none" else f"{device} ({_plain(gpu, 60)})"
    return [
        f"- Loss {config.loss.name}; {train.optimizer}, learning rate {train.lr:g}, {train.schedule}, "
        f"weight decay {train.weight_decay:g}, batches of {train.batch_size}",
        f"- {train.epochs} epochs{best}; seed {config.seed}; augmentation {'on' if config.augment.enabled else 'off'}; "
        f"averaged weights {f'with decay {train.ema_decay:g}' if train.ema_decay else 'no'}",
        f"- Hardware: {hardware}, {facts.get('hardware.processes', '1')} process(es), "
        f"precision {facts.get('hardware.precision', 'unknown')}",
    ]


def _evaluation(
    manifest: Manifest, summary: Summary, subgroups: "pd.DataFrame", room: tuple[int, int, int, int]
) -> list[str]:
    metrics, groups, prose, name = room
    found = [key for key in METRICS if key in summary.metrics and summary.metrics[key].n_valid]
    outcomes = ", ".join(f"{count} {_plain(outcome, 20)}" for outcome, count in summary.outcomes.items())
    lines = [
        f"- {summary.patients} test patients; outcomes: {outcomes}",
        f"- Threshold {summary.threshold:.3g}, {_plain(summary.threshold_from, 200)}",
        *(f"- {_plain(reason, 200)}" for reason in summary.labelling_from),
        f"- Network run in {summary.precision}",
        f"- Intervals: {_plain(summary.interval, 120)}",
        f"- Convention: {_plain(summary.convention, prose)}",
        "",
        *_metrics(summary.metrics, found[:metrics], "mm" if _spaced(manifest) else "pixels"),
    ]
    rows = subgroups[subgroups["metric"] == "dice"].to_dict("records")
    if rows and groups:
        lines += ["", "| subgroup | patients | Dice | 95 % interval |", "|---|---|---|---|"]
    lines += [
        f"| {_plain(row['column'], name)}: {_plain(row['group'], name)} | {row['patients']} | {_number(row['mean'])} | "
        f"{_number(row['low'])} to {_number(row['high'])} |"
        for row in rows[:groups]
    ]
    cut = len(found) > metrics or len(rows) > groups
    return [*lines, *(["", "The tables are cut; all of them are in `evaluation/report.html`."] if cut else [])]


def _spaced(manifest: Manifest) -> bool:
    return any(case.spacing for case in manifest.cases)


def _metrics(values: Mapping[str, Interval], names: Iterable[str], length: str) -> list[str]:
    rows = []
    for key in names:
        metric, value = METRICS[key], values[key]
        mean, low, high = (_number(part, 2 if metric.unit else 3) for part in value[:3])
        unit = length if metric.unit == "mm" else metric.unit
        title = f"{metric.title}, {unit}" if unit else metric.title
        rows.append(f"| {title} | {mean} | {low} to {high} | {value.n_valid}/{value.n} |")
    return (
        ["| metric | mean | 95 % interval | cases |", "|---|---|---|---|", *rows]
        if rows
        else ["No metric has a value."]
    )


def _limits(
    config: Config, manifest: Manifest, summary: Summary, subgroups: "pd.DataFrame", prose: int, name: int
) -> list[str]:
    """What the user knows, then what the data and the results show by themselves."""
    patients, sites = summary.patients, sorted({case.site for case in manifest.cases})
    lesions, outcomes = summary.lesions, summary.outcomes
    missed = lesions["lesions"] - lesions["found"]
    shown = {
        _prose(config.card.limits, prose): bool(config.card.limits),
        f"few test patients: {patients}; the intervals are too narrow for so few": patients < FEW_PATIENTS,
        f"one site only ({_names(sites, name)}): nothing is known about any other": len(sites) == 1,
        f"missed {missed} of {lesions['lesions']} reference lesions": missed > 0,
        f"missed everything in {outcomes.get('missed', 0)} test case(s)": outcomes.get("missed", 0) > 0,
        f"false alarm in {outcomes.get('false alarm', 0)} empty test case(s)": outcomes.get("false alarm", 0) > 0,
        "no spacing: distances are in pixels, volumes unknown": not _spaced(manifest),
        "no test case has a Dice: the results say nothing": "dice" not in summary.metrics,
    }
    lines = [line for line, holds in shown.items() if holds]
    return [*lines, *_worse(summary, subgroups, name)] or ["none known"]


def _worse(summary: Summary, subgroups: "pd.DataFrame", name: int) -> list[str]:
    """The subgroups whose whole interval lies below the mean over all cases."""
    rows = subgroups[(subgroups["metric"] == "dice") & (subgroups["patients"] >= GROUP_PATIENTS)].to_dict("records")
    overall = summary.metrics["dice"].mean if "dice" in summary.metrics else math.nan
    return [
        f"clearly worse for {_plain(row['column'], name)} {_plain(row['group'], name)}: "
        f"Dice {row['mean']:.3f}, {overall:.3f} over all"
        for row in rows
        if row["high"] < overall
    ][:5]


def _versions(facts: Mapping[str, str]) -> str:
    found = {key.removeprefix("version."): value for key, value in facts.items() if key.startswith("version.")}
    return (
        ", ".join(f"{_plain(key, 40)} {_plain(value, 20)}" for key, value in found.items() if value != "none")
        or "unknown"
    )
