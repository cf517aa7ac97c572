"""The gate: a pure decision on two tables of test cases whether a model becomes champion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

from segpipe.config.sections import GateConfig
from segpipe.evaluation import guards, trivial
from segpipe.evaluation.decision import Comparison, Decision, compared, interval, number, titled
from segpipe.evaluation.paired import Shared, check_columns, match
from segpipe.metrics import statistics
from segpipe.metrics.catalogue import METRICS
from segpipe.metrics.statistics import Difference, Interval

ROUNDING = 1e-9


@dataclass(frozen=True)
class Footprint:
    """The cost of running a model: median milliseconds for a test case, and the size of its weights in megabytes."""

    latency_ms: float
    size_mb: float


def decide(
    challenger: pd.DataFrame,
    champion: pd.DataFrame | None,
    gate: GateConfig,
    footprint: Footprint,
    samples: int,
    seed: int,
    subgroups: Sequence[str] = (),
    of_sites: Mapping[str, pd.DataFrame | None] = MappingProxyType({}),
) -> Decision:
    """Promote if every criterion is met: a value of gate.metric, floors, enough patients, better than what needs no
    network, limits on time and size and, against a champion, the paired test and the guards. All are checked; the first
    failure decides. `of_sites` has the table of each site's own model where the challenger was trained at several, None
    where a site has none. Tables are cases.csv; the champion's may lack cases that it was trained on, which are then
    excluded. Raises InputError if it has cases that the challenger lacks, or a table lacks a required column.
    """
    check_columns(challenger, ("case", "patient", gate.metric, *gate.floors), "challenger")
    mean = statistics.bootstrap_mean(challenger[gate.metric], challenger["patient"], samples, seed)
    demands = [_value(mean, gate), *_floors(challenger, gate, samples, seed), _patients(challenger, gate)]
    demands += [*_trivial(challenger, gate, samples, seed), *guards.sites(challenger, of_sites, gate, samples, seed)]
    primary: list[Comparison] = []
    if champion is None:
        demands += _limits(gate, footprint)
    else:
        shared = match(challenger, champion, gate, samples, seed, subgroups)
        primary = _primary(shared, gate)
        demands += [_shared_patients(shared, len(challenger), gate), *_limits(gate, footprint), *primary]
        demands += [*guards.subgroups(shared, gate, subgroups), *guards.lesions(shared, gate)]
    failed = [demand for demand in demands if not demand.passed]
    if failed:
        return Decision(False, failed[0].rule, tuple(demand.detail for demand in failed), tuple(demands))
    if champion is None:
        reason = f"first model; mean test {titled(gate.metric)} {interval(mean, gate.metric)}"
        return Decision(True, "first model", (reason,), tuple(demands))
    return Decision(True, primary[0].rule, tuple(demand.detail for demand in primary), tuple(demands))


def _value(mean: Interval, gate: GateConfig) -> Comparison:
    title, n = titled(gate.metric), mean.n_valid
    told = f"{n} of {mean.n} test cases have a {title} (gate.metric)"
    detail = told if n else f"{told}: reference and prediction are empty in all"
    return Comparison(f"cases with a {title}", n, 1, n > 0, n=n, detail=detail, rule="value")


def _floors(cases: pd.DataFrame, gate: GateConfig, samples: int, seed: int) -> list[Comparison]:
    found = []
    for metric, floor in gate.floors.items():
        mean = statistics.bootstrap_mean(cases[metric], cases["patient"], samples, seed)
        side, bound, sign = ("lower", mean.low, 1) if METRICS[metric].higher else ("upper", mean.high, -1)
        passed = sign * bound >= sign * floor - ROUNDING
        name = f"{side} bound of mean {titled(metric)}"
        verb = "reaches" if passed else "does not reach"
        detail = f"mean {titled(metric)} {interval(mean, metric)}: {side} bound {verb} gate.floors {metric}={floor:g}"
        n = _count(cases, cases[metric].notna())
        found.append(Comparison(name, bound, floor, passed, mean.low, mean.high, n=n, detail=detail, rule="floors"))
    return found


def _count(cases: pd.DataFrame, rows: "pd.Series[bool]") -> int:
    return int(cases.loc[rows, "patient"].nunique())


def _patients(cases: pd.DataFrame, gate: GateConfig) -> Comparison:
    n, title = _count(cases, cases[gate.metric].notna()), titled(gate.metric)
    return _enough(f"patients with a {title}", n, f"{n} test patients have a {title}", gate)


def _shared_patients(shared: Shared, cases: int, gate: GateConfig) -> Comparison:
    ours, theirs = shared.sides(gate.metric)
    n = _count(shared.ours, ours.notna() & theirs.notna())
    told = f"{n} patients can be compared with the champion, on {len(shared.ours)} of {cases} cases"
    if shared.ours.empty:
        told = f"the champion was trained on all {cases} test cases: 0 patients can be compared"
    return _enough("patients shared with the champion", n, told, gate)


def _enough(name: str, n: int, told: str, gate: GateConfig) -> Comparison:
    passed = n >= gate.min_patients
    detail = f"{told}, {'at least' if passed else 'fewer than'} gate.min_patients {gate.min_patients}"
    return Comparison(name, n, gate.min_patients, passed, n=n, detail=detail, rule="patients")


def _trivial(cases: pd.DataFrame, gate: GateConfig, samples: int, seed: int) -> list[Comparison]:
    """Whether the model is better in Dice than each prediction that needs no network."""
    if not gate.beat_trivial:
        return []
    check_columns(cases, ("dice", "reference_voxels", *trivial.COLUMNS.values()), "challenger")
    found = []
    for name, column in trivial.COLUMNS.items():
        gain = Shared(cases, cases.assign(dice=cases[column]), samples, seed).difference("dice")
        found.append(_shown(gain, "dice", gate, "trivial", f"predicting {name}"))
    return found


def _limits(gate: GateConfig, footprint: Footprint) -> list[Comparison]:
    rows = [
        ("median time for a test case", footprint.latency_ms, "ms", gate.max_latency_ms, "gate.max_latency_ms"),
        ("file of weights", footprint.size_mb, "MB", gate.max_size_mb, "gate.max_size_mb"),
    ]
    found = []
    for name, value, unit, limit, knob in rows:
        if limit:
            passed = value <= limit
            detail = f"{name} {value:.1f} {unit}, {'within' if passed else 'not within'} {knob} {limit:g}"
            found.append(Comparison(name, value, limit, passed, detail=detail, rule="limits"))
    return found


def _gain(shared: Shared, metric: str, gate: GateConfig, rule: str, margin: float = 0.0) -> Comparison:
    """Whether the gain over the champion in a metric is above -margin."""
    return _shown(shared.difference(metric, margin), metric, gate, rule, "the champion", margin)


def _shown(gain: Difference, metric: str, gate: GateConfig, rule: str, over: str, margin: float = 0.0) -> Comparison:
    """Whether a gain in a metric is above -margin, by the paired test at gate.alpha."""
    passed = gain.p <= gate.alpha and gain.mean > -margin
    claim = f"not worse by gate.margin {number(margin, metric)}" if margin else "better"
    name = f"gain in mean {titled(metric)}"
    detail = (
        f"{name} {interval(gain, metric, '+')} over {over}, {gain.n} cases of "
        f"{gain.patients} patients: {claim if passed else f'not shown to be {claim}'}, "
        f"one-sided p {gain.p:.2g} for gate.alpha {gate.alpha:g} (signed rank {gain.wilcoxon:.2g})"
    )
    whole = name if rule != "trivial" else f"{name} over {over}"
    return compared(whole, gain, 0.0 - margin, passed, detail, rule)


def _primary(shared: Shared, gate: GateConfig) -> list[Comparison]:
    if gate.rule == "superiority":
        return [_gain(shared, gate.metric, gate, "superiority")]
    metric = _gain(shared, gate.metric, gate, "non-inferiority", gate.margin)
    return [metric, _gain(shared, gate.guard, gate, "non-inferiority")]
