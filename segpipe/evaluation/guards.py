"""The gate's guards: no subgroup may lose, and no more lesions be missed or false than by the champion."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from segpipe.config.sections import GateConfig
from segpipe.evaluation.decision import NAN, Comparison, compared, interval, number, titled
from segpipe.evaluation.paired import ELONGATION, Shared
from segpipe.metrics import statistics
from segpipe.metrics.statistics import Counted

ROUNDING = 1e-9
TUBES = 15.0  # elongation of a case's structures from which they are tubes: three times that of any lesion seen


def subgroups(shared: Shared, gate: GateConfig, columns: Sequence[str]) -> list[Comparison]:
    """Each subgroup with enough patients to be checked; a column with a single value has none."""
    found = []
    several = [(column, groups) for column in columns if len(groups := shared.groups(column)) > 1]
    for group, part in [(f"{column} {name}", part) for column, groups in several for name, part in groups]:
        gain = part.difference(gate.metric)
        if gain.patients >= gate.subgroup_patients:
            passed = gain.mean >= -gate.subgroup_margin - ROUNDING
            name = f"{group}: gain in mean {titled(gate.metric)}"
            margin = f"gate.subgroup_margin {number(gate.subgroup_margin, gate.metric)}"
            told = f"{name} {interval(gain, gate.metric, '+')}, {gain.patients} patients"
            detail = f"{told}: {'within' if passed else 'beyond'} {margin}"
            found.append(compared(name, gain, -gate.subgroup_margin, passed, detail, "guards"))
    return found


def sites(
    cases: pd.DataFrame, of_sites: Mapping[str, pd.DataFrame | None], gate: GateConfig, samples: int, seed: int
) -> list[Comparison]:
    """Whether a federation's model loses against the model of a site alone, on that site's cases. No such model, or too
    few patients, is told and decides nothing.
    """
    found, title = [], titled(gate.metric)
    for site, theirs in of_sites.items():
        name = f"site {site}: gain in mean {title} over its own model"
        if theirs is None:
            told = f"{name}: not judged, as no model of that site alone was evaluated; pipeline.py federate makes one"
            found.append(Comparison(name, NAN, -gate.site_margin, True, detail=told, rule="sites"))
            continue
        here = cases[cases["site"] == site].set_index("case")
        gain = Shared(here, theirs.set_index("case").loc[here.index], samples, seed).difference(gate.metric)
        passed, knob = (
            gain.mean >= -gate.site_margin - ROUNDING,
            f"gate.site_margin {number(gate.site_margin, gate.metric)}",
        )
        verdict = f"{'within' if passed else 'beyond'} {knob}"
        if gain.patients < gate.subgroup_patients:
            passed, verdict = True, f"too few to judge: fewer than gate.subgroup_patients {gate.subgroup_patients}"
        detail = f"{name} {interval(gain, gate.metric, '+')}, {gain.patients} patients: {verdict}"
        found.append(compared(name, gain, -gate.site_margin, passed, detail, "sites"))
    return found


def lesions(shared: Shared, gate: GateConfig) -> list[Comparison]:
    """Whether more lesions are missed, or false, than by the champion; where lesions are what is to be found."""
    elongated = float(shared.ours[ELONGATION].median())
    if gate.lesions == "auto" and elongated >= TUBES:
        told = (
            f"the references are tubes, in the median {elongated:.0f} times longer than thick, at least {TUBES:g}: "
            "lesions do not count (gate.lesions=auto)"
        )
        return [Comparison("elongation of the references", elongated, TUBES, True, detail=told, rule="guards")]
    if not gate.lesions:
        return []
    ours, theirs = (_counted(table) for table in (shared.ours, shared.theirs))
    return [
        _rise("missed lesions", shared, (ours[0], theirs[0]), gate, gate.missed_margin, "gate.missed_margin"),
        _rise("false lesions", shared, (ours[1], theirs[1]), gate, gate.false_alarm_margin, "gate.false_alarm_margin"),
    ]


def _counted(cases: pd.DataFrame) -> tuple[Counted, Counted]:
    """Missed lesions among the reference's, and false ones among the predicted."""
    missed = Counted(cases["lesions"] - cases["lesions_found"], cases["lesions"])
    return missed, Counted(cases["lesions_false"], cases["lesions_predicted"])


def _rise(
    name: str, shared: Shared, counts: tuple[Counted, Counted], gate: GateConfig, margin: float, knob: str
) -> Comparison:
    """Whether a share, the challenger's and then the champion's, rises: beyond a margin, and shown by the test over
    patients. Too few lesions, or patients who have any, show nothing.
    """
    patients = shared.ours["patient"].to_numpy()
    rise, p = statistics.rise_in_share(*counts, patients, shared.samples, shared.seed)
    (ours, all_ours), (theirs, all_theirs) = ((int(np.sum(part)), int(np.sum(whole))) for part, whole in counts)
    n, having = max(all_ours, all_theirs), len(set(patients[sum(np.asarray(count.whole) for count in counts) > 0]))
    passed = True
    if n < gate.min_lesions:
        verdict = f"too few to judge: fewer lesions than gate.min_lesions {gate.min_lesions}"
    elif having < gate.min_patients:
        verdict = f"too few to judge: {having} patients have lesions, fewer than gate.min_patients {gate.min_patients}"
    elif rise <= margin + ROUNDING:
        verdict = f"within {knob} {margin:g}"
    else:
        passed = p > gate.alpha
        shown = f"{'not ' if passed else ''}shown over {having} patients"
        verdict = f"beyond {knob} {margin:g}, {shown}, one-sided p {p:.2g} for gate.alpha {gate.alpha:g}"
    detail = f"{name} {ours} of {all_ours}, the champion {theirs} of {all_theirs}: {rise:+.4f}, {verdict}"
    return Comparison(f"rise in share of {name}", rise, margin, passed, p=p, n=n, detail=detail, rule="guards")
