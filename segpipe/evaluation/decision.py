"""What the gate decided, with each of its numbers, and how they are worded."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from segpipe.metrics.catalogue import METRICS
from segpipe.metrics.statistics import Difference, Interval

NAN = float("nan")


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

    `rule` is one of: value, floors, patients, trivial, sites, limits, first model, superiority, non-inferiority and
    guards. The first reason is the decisive one; if several criteria fail, the others follow.
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


def titled(metric: str) -> str:
    """A metric as people know it."""
    return METRICS[metric].title


def number(value: float, metric: str, sign: str = "") -> str:
    """A value of a metric with its unit; `sign` is + where it is a difference."""
    return f"{value:{sign}.4f} {METRICS[metric].unit}".rstrip()


def interval(mean: Interval | Difference, metric: str, sign: str = "") -> str:
    """A mean of a metric with its 95 % interval."""
    return f"{number(mean.mean, metric, sign)} [{mean.low:{sign}.4f}, {mean.high:{sign}.4f}]"


def compared(name: str, gain: Difference, required: float, passed: bool, detail: str, rule: str) -> Comparison:
    """A gain in a metric as a criterion."""
    return Comparison(name, gain.mean, required, passed, gain.low, gain.high, gain.p, gain.patients, detail, rule)
