"""What a person asks of a registered model: approve, override, roll back, and the record of its champions."""

from segpipe.orchestration import pages
from segpipe.orchestration.decisions import share, span, table
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.session import Session
from segpipe.registry import by_hand, champions, record
from segpipe.tracking import run_tags

HISTORY = ("", "when (UTC)", "version", "how", "by", "why", "test Dice [95 %]")


def carry_out(session: Session, action: str, name: str, number: str, by: str, override: str = "") -> None:
    """Do what a person asks of a registered model, approve, rollback or history, and tell what came of it; `override`
    is why a refused version is approved.
    """
    if action == "history":
        show_history(session.screen, name)
    elif override:
        session.say(by_hand.override(name, number, by, override, session.say, session.store.hurry_after))
        pages.tell_override(session, champions.tags_of(name, number)["register_run"])
    elif action == "approve":
        session.say(by_hand.approve(name, number, by, session.say, session.store.hurry_after))
    else:
        session.say(by_hand.rollback(name, by, session.say, session.store.hurry_after))


def show_history(screen: Screen, name: str) -> None:
    """Show who was champion when, how it came, through whom and why; the current one has a star."""
    moves, champion = record.history(name), champions.number(champions.holder(name))
    rows = []
    for place, move in enumerate(moves, start=1):
        tags = champions.tags_of(name, move.version)
        dice, low, high = run_tags.dice_of(tags)
        star = "*" if place == len(moves) and move.version == champion else ""
        measured = f"{share(dice)} {span(low, high)}".strip() if tags else "deleted"
        rows.append((star, f"{move.at[:19]}Z", move.version, move.how, move.by, move.why, measured))
    screen.show(table(HISTORY, rows))
    if champion and (not moves or moves[-1].version != champion):
        screen.answer(f"The champion is version {champion}; the record gets it with the next register.")
