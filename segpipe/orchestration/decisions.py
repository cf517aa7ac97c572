"""The gate's decisions as tables for a person."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segpipe.orchestration.screen import Column, Screen, Table

if TYPE_CHECKING:
    from segpipe.evaluation.decision import Decision

DECISION = ("comparison", "value", "asked", "passed", "95 % interval", "p")


def show(screen: Screen, decision: "Decision", figure: str) -> str:
    """Show every demand of the gate with its numbers; what came of them is returned."""
    rows = [
        (c.name, number(c.value), number(c.required), "yes" if c.passed else "NO", span(c.low, c.high), share(c.p))
        for c in decision.comparisons
    ]
    if rows:
        screen.show(table(DECISION, rows))
    return figure


def number(value: float) -> str:
    """A number of a demand, and 0 without a sign."""
    return f"{value + 0.0:.4g}" if math.isfinite(value) else ""


def span(low: float, high: float) -> str:
    """An interval; empty where there is none."""
    return f"[{low:.4g}, {high:.4g}]" if math.isfinite(low) and math.isfinite(high) else ""


def share(value: float) -> str:
    """A p-value or a Dice; empty where there is none."""
    return f"{value:.4f}" if math.isfinite(value) else ""


def table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose columns wrap."""
    return Table([Column(title, wrap=True) for title in titles], rows)
