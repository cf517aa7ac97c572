"""The gate: a pure decision on two tables of test cases whether a model becomes champion."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pandas as pd

from segpipe.config.sections import GateConfig
from segpipe.errors import InputError
from segpipe.metrics import statistics
from segpipe.metrics.catalogue import METRICS
from segpipe.metrics.statistics import Difference, Interval

NAN = float("nan")
ROUNDING = 1e-9
LESIONS = ("lesions", "lesions_found", "lesions_predicted", "lesions_false")


@dataclass(frozen=True)
class Footprint:
    """The cost of running a model: median milliseconds for a test case, and the size of its weights in megabytes."""

    latency_ms: float
    size_mb: float


@dataclass(frozen=True)
class Comparison:
    """One criterion of the gate: the value, the required value, and whether it is met. `low` and `high` are a 95 %
    interval, `p` a one-sided p-value, `n` the number of patients (lesions, for shares of them); NaN and 0 if there is
    none. `detail` is a sentence for people, `rule` the rule it belongs to.
    """

    name: str
    value: float
    required: float
    passed: bool
    low: float = NAN
    high: float = NAN
    p: float = NAN
    n: int = 0
    detail: str = ""
    rule: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether the challenger becomes champion, by which rule, why, and all numbers.

    `rule` is one of: value, floors, patients, limits, first model, superiority, non-inferiority, guards. The first
    reason is the decisive one; if several criteria fail, the others follow.
    """

    promote: bool
    rule: str
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()

    def record(self, **more: object) -> dict[str, Any]:
        """The decision as values of JSON (NaN is None), with what else is to be remembered about it."""
        return {key: _finite(value) for key, value in {**asdict(self), **more}.items()}


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Shared(NamedTuple):
    """The rows of both tables for the champion's cases, in the same order; the number of resamples and the seed."""

    ours: pd.DataFrame
    theirs: pd.DataFrame
    samples: int
    seed: int

    def sides(self, metric: str) -> tuple["pd.Series[float]", "pd.Series[float]"]:
        """Both models' values of a metric, signed so that higher is better. If the reference is empty and only one
        model has a false alarm, the correct empty prediction has no value by the convention: it counts as the metric's
        best value.
        """
        ours, theirs = self.ours[metric], self.theirs[metric]
        one_silent = (self.ours["reference_voxels"] == 0) & (ours.isna() != theirs.isna())
        best, sign = METRICS[metric].best, 1 if METRICS[metric].higher else -1
        return sign * ours.mask(one_silent & ours.isna(), best), sign * theirs.mask(one_silent & theirs.isna(), best)

    def difference(self, metric: str, margin: float = 0.0) -> Difference:
        """The challenger's gain over the champion; positive is better."""
        return statistics.paired(*self.sides(metric), self.ours["patient"], self.samples, self.seed, margin)

    def groups(self, column: str) -> list[tuple[str, "_Shared"]]:
        """The cases of each value of a column, sorted."""
        rows = self.ours.groupby(column, sort=True).indices
        return [(str(v), self._replace(ours=self.ours.iloc[r], theirs=self.theirs.iloc[r])) for v, r in rows.items()]


def decide(
    challenger: pd.DataFrame,
    champion: pd.DataFrame | None,
    gate: GateConfig,
    footprint: Footprint,
    samples: int,
    seed: int,
    subgroups: Sequence[str] = (),
) -> Decision:
    """Promote if every criterion is met: a value of gate.metric, floors, enough patients, limits on time and size and,
    against a champion, the paired test and the guards. All are checked; the first failure decides. Both tables are
    cases.csv; the champion's may lack cases that it was trained on, which are then excluded. Raises InputError if it
    has cases that the challenger lacks, or a table lacks a required column.
    """
    _complete(challenger, ("case", "patient", gate.metric, *gate.floors), "challenger")
    mean = statistics.bootstrap_mean(challenger[gate.metric], challenger["patient"], samples, seed)
    demands = [_value(mean, gate), *_floors(challenger, gate, samples, seed), _patients(challenger, gate)]
    primary: list[Comparison] = []
    if champion is None:
        demands += _limits(gate, footprint)
    else:
        shared = _match(challenger, champion, gate, samples, seed, subgroups)
        primary = _primary(shared, gate)
        demands += [_shared_patients(shared, len(challenger), gate), *_limits(gate, footprint), *primary]
        demands += [*_subgroups(shared, gate, subgroups), *_lesions(shared, gate)]
    failed = [demand for demand in demands if not demand.passed]
    if failed:
        return Decision(False, failed[0].rule, tuple(demand.detail for demand in failed), tuple(demands))
    if champion is None:
        reason = f"first model; mean test {_title(gate.metric)} {_interval(mean, gate.metric)}"
        return Decision(True, "first model", (reason,), tuple(demands))
    return Decision(True, primary[0].rule, tuple(demand.detail for demand in primary), tuple(demands))


def _complete(cases: pd.DataFrame, columns: Sequence[str], whose: str) -> None:
    missing = [column for column in dict.fromkeys(columns) if column not in cases]
    if missing:
        raise InputError(f"the {whose}'s table of test cases has no column {', '.join(missing)}; evaluate it again")


def _match(
    challenger: pd.DataFrame,
    champion: pd.DataFrame,
    gate: GateConfig,
    samples: int,
    seed: int,
    subgroups: Sequence[str],
) -> _Shared:
    guard = (gate.guard,) if gate.rule == "non_inferiority" else ()
    columns = ("case", gate.metric, *guard, *LESIONS)
    _complete(challenger, (*columns, "reference_voxels"), "challenger")
    _complete(champion, columns, "champion")
    unknown = [column for column in subgroups if column not in challenger]
    if unknown:
        raise InputError(f"evaluate.subgroups names {', '.join(unknown)}, but the test cases have no such column")
    if not set(champion["case"]) <= set(challenger["case"]):
        raise InputError("challenger and champion were measured on different cases; evaluate both on one dataset")
    theirs = champion.set_index("case")
    return _Shared(challenger.set_index("case").loc[theirs.index], theirs, samples, seed)


def _title(metric: str) -> str:
    return METRICS[metric].title


def _number(value: float, metric: str, sign: str = "") -> str:
    return f"{value:{sign}.4f} {METRICS[metric].unit}".rstrip()


def _interval(mean: Interval | Difference, metric: str, sign: str = "") -> str:
    return f"{_number(mean.mean, metric, sign)} [{mean.low:{sign}.4f}, {mean.high:{sign}.4f}]"


def _value(mean: Interval, gate: GateConfig) -> Comparison:
    title, n = _title(gate.metric), mean.n_valid
    told = f"{n} of {mean.n} test cases have a {title} (gate.metric)"
    detail = told if n else f"{told}: reference and prediction are empty in all"
    return Comparison(f"cases with a {title}", n, 1, n > 0, n=n, detail=detail, rule="value")


def _floors(cases: pd.DataFrame, gate: GateConfig, samples: int, seed: int) -> list[Comparison]:
    found = []
    for metric, floor in gate.floors.items():
        mean = statistics.bootstrap_mean(cases[metric], cases["patient"], samples, seed)
        side, bound, sign = ("lower", mean.low, 1) if METRICS[metric].higher else ("upper", mean.high, -1)
        passed = sign * bound >= sign * floor - ROUNDING
        name = f"{side} bound of mean {_title(metric)}"
        verb = "reaches" if passed else "does not reach"
        detail = f"mean {_title(metric)} {_interval(mean, metric)}: {side} bound {verb} gate.floors {metric}={floor:g}"
        n = _count(cases, cases[metric].notna())
        found.append(Comparison(name, bound, floor, passed, mean.low, mean.high, n=n, detail=detail, rule="floors"))
    return found


def _count(cases: pd.DataFrame, rows: "pd.Series[bool]") -> int:
    return int(cases.loc[rows, "patient"].nunique())


def _patients(cases: pd.DataFrame, gate: GateConfig) -> Comparison:
    n, title = _count(cases, cases[gate.metric].notna()), _title(gate.metric)
    return _enough(f"patients with a {title}", n, f"{n} test patients have a {title}", gate)


def _shared_patients(shared: _Shared, cases: int, gate: GateConfig) -> Comparison:
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


def _gain(shared: _Shared, metric: str, gate: GateConfig, rule: str, margin: float = 0.0) -> Comparison:
    """Whether the gain in a metric is above -margin, by the paired test at gate.alpha."""
    gain = shared.difference(metric, margin)
    passed = gain.p <= gate.alpha and gain.mean > -margin
    claim = f"not worse by gate.margin {_number(margin, metric)}" if margin else "better"
    detail = (
        f"gain in mean {_title(metric)} {_interval(gain, metric, '+')} over the champion, {gain.n} cases of "
        f"{gain.patients} patients: {claim if passed else f'not shown to be {claim}'}, "
        f"one-sided p {gain.p:.2g} for gate.alpha {gate.alpha:g} (signed rank {gain.wilcoxon:.2g})"
    )
    return _comparison(f"gain in mean {_title(metric)}", gain, 0.0 - margin, passed, detail, rule)


def _comparison(name: str, gain: Difference, required: float, passed: bool, detail: str, rule: str) -> Comparison:
    return Comparison(name, gain.mean, required, passed, gain.low, gain.high, gain.p, gain.patients, detail, rule)


def _primary(shared: _Shared, gate: GateConfig) -> list[Comparison]:
    if gate.rule == "superiority":
        return [_gain(shared, gate.metric, gate, "superiority")]
    metric = _gain(shared, gate.metric, gate, "non-inferiority", gate.margin)
    return [metric, _gain(shared, gate.guard, gate, "non-inferiority")]


def _subgroups(shared: _Shared, gate: GateConfig, columns: Sequence[str]) -> list[Comparison]:
    """Each subgroup with enough patients to be checked; a column with a single value has none."""
    found = []
    several = [(column, groups) for column in columns if len(groups := shared.groups(column)) > 1]
    for group, part in [(f"{column} {name}", part) for column, groups in several for name, part in groups]:
        gain = part.difference(gate.metric)
        if gain.patients >= gate.subgroup_patients:
            passed = gain.mean >= -gate.subgroup_margin - ROUNDING
            name = f"{group}: gain in mean {_title(gate.metric)}"
            margin = f"gate.subgroup_margin {_number(gate.subgroup_margin, gate.metric)}"
            told = f"{name} {_interval(gain, gate.metric, '+')}, {gain.patients} patients"
            detail = f"{told}: {'within' if passed else 'beyond'} {margin}"
            found.append(_comparison(name, gain, -gate.subgroup_margin, passed, detail, "guards"))
    return found


def _lesions(shared: _Shared, gate: GateConfig) -> list[Comparison]:
    """Shares over all lesions of the shared cases."""
    tables = [table[list(LESIONS)].sum().astype(int) for table in (shared.ours, shared.theirs)]
    missed = [(int(t["lesions"] - t["lesions_found"]), int(t["lesions"])) for t in tables]
    false = [(int(t["lesions_false"]), int(t["lesions_predicted"])) for t in tables]
    return [
        _rise("missed lesions", missed, gate.missed_margin, "gate.missed_margin"),
        _rise("false lesions", false, gate.false_alarm_margin, "gate.false_alarm_margin"),
    ]


def _rise(name: str, counts: list[tuple[int, int]], margin: float, knob: str) -> Comparison:
    """Part and whole of the challenger, then of the champion; a share of nothing is 0."""
    ours, theirs = (part / whole if whole else 0.0 for part, whole in counts)
    rise, (told, before) = ours - theirs, (f"{part} of {whole}" for part, whole in counts)
    passed = rise <= margin + ROUNDING
    detail = f"{name} {told}, the champion {before}: {rise:+.4f}, {'within' if passed else 'beyond'} {knob} {margin:g}"
    return Comparison(f"rise in share of {name}", rise, margin, passed, n=counts[0][1], detail=detail, rule="guards")
