"""The gate's decisions and the record of champions, as tables for a person."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from segpipe.orchestration.screen import Column, Screen, Table
from segpipe.orchestration.session import Session

if TYPE_CHECKING:
    from segpipe.evaluation.gate import Decision

DECISION = ("comparison", "value", "asked", "passed", "95 % interval", "p")
HISTORY = ("", "when (UTC)", "version", "how", "by", "why", "test Dice [95 %]")


def show(screen: Screen, decision: "Decision", figure: str) -> str:
    """Show every demand of the gate with its numbers, and what came of them, which is returned."""
    rows = [
        (c.name, number(c.value), number(c.required), "yes" if c.passed else "NO", span(c.low, c.high), share(c.p))
        for c in decision.comparisons
    ]
    if rows:
        screen.show(_table(DECISION, rows))
    screen.say(figure)
    return figure


def number(value: float) -> str:
    """A number of a demand, and 0 without a sign."""
    return f"{value + 0.0:.4g}"


def span(low: float, high: float) -> str:
    """An interval; empty where there is none."""
    return f"[{low:.4g}, {high:.4g}]" if math.isfinite(low) and math.isfinite(high) else ""


def share(value: float) -> str:
    """A p-value or a Dice; empty where there is none."""
    return f"{value:.4f}" if math.isfinite(value) else ""


def carry_out(session: Session, action: str, name: str, number: str, by: str) -> None:
    """Do what a person asks of a registered model, approve, rollback or history, and tell what came of it."""
    from segpipe.registry import champions

    if action == "history":
        show_history(session.screen, name)
    elif action == "approve":
        session.say(champions.approve(name, number, by, session.say, session.store.hurry_after))
    else:
        session.say(champions.rollback(name, by, session.say, session.store.hurry_after))


def show_history(screen: Screen, name: str) -> None:
    """Show who was champion when, how it came, through whom and why; the current one has a star."""
    from segpipe.registry import champions, record
    from segpipe.tracking import run_tags

    moves, champion = record.history(name), champions.number(champions.holder(name))
    rows = []
    for place, move in enumerate(moves, start=1):
        tags = champions.tags_of(name, move.version)
        dice, low, high = run_tags.dice_of(tags)
        star = "*" if place == len(moves) and move.version == champion else ""
        measured = f"{share(dice)} {span(low, high)}".strip() if tags else "deleted"
        rows.append((star, f"{move.at[:19]}Z", move.version, move.how, move.by, move.why, measured))
    screen.show(_table(HISTORY, rows))
    if champion and (not moves or moves[-1].version != champion):
        screen.answer(f"The champion is version {champion}; the record gets it with the next register.")


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    return Table([Column(title, wrap=True) for title in titles], rows)
