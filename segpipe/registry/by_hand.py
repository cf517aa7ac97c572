"""What a person decides about a model's versions: to approve one, to promote one against the gate, to roll back."""

from segpipe.errors import ConflictError, InputError
from segpipe.registry import champions, lock
from segpipe.registry.champions import KEPT, WAITING, WITHDRAWN, Hurry, Say, crown, holder, number
from segpipe.registry.record import APPROVED, OVERRIDDEN, ROLLED_BACK, Move, history, line, moment


def approve(name: str, wanted: str, by: str, say: Say, hurry: Hurry) -> str:
    """Make champion a version that waits for approval or was rolled back; what came of it as a line.

    Raises InputError where its decision was another one, ConflictError where it was made against another champion than
    today's.
    """
    history(name)
    with lock.turn(name, say, hurry) as turn:
        moves, chosen = champions.settle(turn, name), champions.version(name, wanted)
        tags, champion = chosen.tags, number(holder(name))
        if champion == wanted:
            return f"version {wanted} is the champion already"
        decision, why = tags.get("decision", "never decided on"), tags.get("decision_reason", "")
        if decision == KEPT:
            how = f'approve {wanted} --override --why "..." promotes it against the gate'
            raise InputError(f"version {wanted} of {name} was refused: {why}; {how}")
        if decision not in (WAITING, ROLLED_BACK):
            raise InputError(f"version {wanted} of {name} does not wait for approval ({decision}); run register again")
        if tags["decision_against"] != champion:
            against = f"version {tags['decision_against']}" if tags["decision_against"] else "no champion"
            raise ConflictError(
                f"version {wanted} of {name} was compared with {against}, the champion is now version {champion}; "
                "run register again"
            )
        rule, run = tags["decision_rule"], tags.get("register_run", "")
        why = f"was {tags[WITHDRAWN]}" if WITHDRAWN in tags else why
        crown(turn, chosen, Move(moment(moves), wanted, champion, APPROVED, by, why, rule, run))
    return f"approved: version {wanted} is champion{_in_the_place_of(champion)}"


def override(name: str, wanted: str, by: str, why: str, say: Say, hurry: Hurry) -> str:
    """Make champion a version that the gate refused, for a reason that is recorded; what came of it as a line.

    Raises InputError where it was not refused.
    """
    history(name)
    with lock.turn(name, say, hurry) as turn:
        moves, chosen = champions.settle(turn, name), champions.version(name, wanted)
        tags, champion = chosen.tags, number(holder(name))
        if champion == wanted:
            return f"version {wanted} is the champion already"
        decision = tags.get("decision", "never decided on")
        if decision != KEPT:
            raise InputError(f"version {wanted} of {name} was not refused ({decision}); leave out --override")
        reason = f"{why} (the gate: {tags['decision_reason']})"
        rule, run = tags["decision_rule"], tags.get("register_run", "")
        crown(turn, chosen, Move(moment(moves), wanted, champion, OVERRIDDEN, by, reason, rule, run))
    return f"overridden: version {wanted} is champion{_in_the_place_of(champion)}, against the gate"


def _in_the_place_of(champion: str) -> str:
    return f" in the place of version {champion}" if champion else ""


def rollback(name: str, by: str, say: Say, hurry: Hurry) -> str:
    """Make champion again who was it before the current one, which is not promoted again until it is approved.

    Raises InputError where nobody was.
    """
    history(name)
    with lock.turn(name, say, hurry) as turn:
        moves, current = champions.settle(turn, name), holder(name)
        before = line(moves, champions.versions(name))
        if current is None or len(before) < 2:
            now = f"no version was champion before version {current.version}" if current else "there is no champion"
            raise InputError(f"{name}: {now}; there is nothing to roll back to")
        at, earlier = moment(moves), before[-2]
        told = f"rolled back to version {earlier} on {at[:10]} by {by}"
        tags = {WITHDRAWN: told, "decision": ROLLED_BACK, "decision_rule": ROLLED_BACK, "decision_reason": told}
        champions.tag(turn, current, {**tags, "decision_against": earlier, "decided_by": by, "decided_at": at})
        why, chosen = f"version {current.version} was rolled back", champions.version(name, earlier)
        crown(turn, chosen, Move(at, earlier, number(current), ROLLED_BACK, by, why, ROLLED_BACK))
    return f"rolled back: version {earlier} is champion in the place of version {current.version}"
