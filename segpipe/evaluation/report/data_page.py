"""What a check of a data set found, as one page that stands alone, and as JSON beside it."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segpipe.config.sections import Config
from segpipe.data.checking.facts import Facts
from segpipe.data.checking.findings import Finding
from segpipe.data.checking.reading import Check
from segpipe.data.manifest import SPLITS
from segpipe.data.readers import READERS, channel_names
from segpipe.evaluation.report.page import environment, uri
from segpipe.plots.cases import outlined

FILE, NUMBERS = "data_report.html", "data_report.json"
PICTURES = 12  # of cases that something was found about, and of others
SEVERITIES = ("error", "warning", "note")


def write(check: Check, config: Config, folder: Path) -> None:
    """Write data_report.html and data_report.json into a folder. A few cases are read again, for their pictures."""
    found = check.findings
    known = {one.case: one for one in check.facts}
    about: dict[str, list[Finding]] = {}
    for finding in sorted(found, key=lambda one: SEVERITIES.index(one.severity)):
        for case in finding.cases:
            about.setdefault(case, []).append(finding)
    others = [name for name in known if name not in about]
    step = max(1, len(others) // PICTURES)
    page = (
        environment()
        .get_template("data.html")
        .render(
            name=Path(check.reader.root).name,
            found={severity: [one for one in found if one.severity == severity] for severity in SEVERITIES},
            tiles=_tiles(check, config),
            tables=_tables(check.facts, config),
            suspects=[_shown(name, known, about[name], check, config) for name in list(about)[:PICTURES]],
            samples=[_shown(name, known, (), check, config) for name in others[::step][:PICTURES]],
        )
    )
    (folder / FILE).write_text(page, encoding="utf-8")
    _write_numbers(check, folder / NUMBERS)


def _write_numbers(check: Check, path: Path) -> None:
    """The findings and the facts of each case but its patient, a line each: of many cases never all in memory twice."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"findings": [one._asdict() for one in check.findings]}, indent=1).removesuffix("\n}"))
        file.write(',\n "cases": [')
        for number, one in enumerate(check.facts):
            facts = {name: value for name, value in one._asdict().items() if name != "patient"}
            file.write(("," if number else "") + "\n  " + json.dumps(facts))
        file.write("\n ]\n}\n")


def _shown(
    name: str, known: dict[str, Facts], findings: Sequence[Finding], check: Check, config: Config
) -> dict[str, Any]:
    case = next(one for one in check.cases if one.name == name)
    volume = check.reader.load(case)
    kind = READERS[config.data.format].kind
    return {
        "case": name,
        "split": known[name].split,
        "src": uri("webp", outlined(volume.image, volume.mask, kind, config.data.class_names)),
        "told": [one.told for one in findings],
    }


def _tiles(check: Check, config: Config) -> list[tuple[str, str]]:
    """Figures and what they count."""
    patients, sites = {case.patient for case in check.cases}, {case.site for case in check.cases}
    splits = Counter(one.split for one in check.facts)
    return [
        (str(len(check.cases)), "cases"),
        (str(len(patients)), "patients" if len(patients) < len(check.cases) else "patients: each case counts as one"),
        (str(len(sites)), "site" if len(sites) == 1 else "sites"),
        ("/".join(str(splits[split]) for split in SPLITS), "/".join(SPLITS)),
        (config.data.format, "layout"),
    ]


def _tables(facts: Sequence[Facts], config: Config) -> list[dict[str, Any]]:
    """Tables with a title, the names of their columns, and rows of text."""
    sizes = Counter("x".join(str(n) for n in reversed(one.shape) if n > 1) for one in facts)
    spacings = Counter("x".join(f"{n:.3g}" for n in reversed(one.spacing)) if one.spacing else "none" for one in facts)
    values = Counter(", ".join(f"{n:g}" for n in one.values) for one in facts)
    return [
        _counted("Sizes in pixels", sizes),
        _counted("Spacings in mm", spacings),
        _counted("Values in masks", values),
        {
            "title": "Classes",
            "columns": ("class", *(f"cases of {split}" for split in SPLITS), "share of voxels"),
            "rows": [_class_row(facts, label, name) for label, name in enumerate(config.data.class_names)],
        },
        {
            "title": "Intensities",
            "columns": ("channel", "lowest", "mean", "highest"),
            "rows": [_range_row(facts, *channel) for channel in enumerate(channel_names(config.data)) if facts],
        },
    ]


def _counted(title: str, counts: Counter[str]) -> dict[str, Any]:
    rows = [(name or "none", str(count)) for name, count in counts.most_common(PICTURES)]
    more = sum(counts.values()) - sum(count for _, count in counts.most_common(PICTURES))
    return {"title": title, "columns": ("", "cases"), "rows": [*rows, *([("others", str(more))] if more else [])]}


def _class_row(facts: Sequence[Facts], label: int, name: str) -> tuple[str, ...]:
    having = Counter(one.split for one in facts if one.voxels[label])
    every = Counter(one.split for one in facts)
    voxels, whole = (
        sum(one.voxels[label] for one in facts),
        sum(one.shape[0] * one.shape[1] * one.shape[2] for one in facts),
    )
    return (name, *(f"{having[split]} of {every[split]}" for split in SPLITS), f"{voxels / max(1, whole):.2%}")


def _range_row(facts: Sequence[Facts], channel: int, name: str) -> tuple[str, ...]:
    lows, means, highs = zip(*(one.ranges[channel] for one in facts), strict=True)
    return name, f"{min(lows):g}", f"{sum(means) / len(means):.4g}", f"{max(highs):g}"
