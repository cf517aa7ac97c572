"""Who is champion: versions, the aliases that say so, and the record of every move.

Whoever writes has a turn (`lock.turn`) and asks it before each write. A process that is killed between two writes
leaves one champion, the old or the new one; whoever has the next turn completes what it left (`settle`).
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.evaluation.decision import Decision
from segpipe.registry import record
from segpipe.registry.record import LONGEST_WHY, PROMOTED, RECORD, ROLLED_BACK, Move, history, line, moment
from segpipe.tracking import connection
from segpipe.tracking.one_at_a_time import Contender

ALIAS = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous", "challenger"
KEPT, WAITING = "kept", "waiting for approval"
MOVE = "segpipe.move"  # tag of a version: the move that makes it champion, written before the alias
WITHDRAWN = "rolled_back"  # tag of a version that was rolled back, until somebody approves it
OVERRIDE = "override"  # tag of a version that a person promoted against the gate: who, when and why
NOTE = "\n\n**Promoted against the gate** "  # begins the same in its description

Say = Callable[[str], None]
Hurry = Callable[[BaseException], None]


def holder(name: str, alias: str = CHAMPION) -> ModelVersion | None:
    """The version that has an alias; None where the model or the alias does not exist."""
    return connection.get_if_there(MlflowClient().get_model_version_by_alias, name, alias)


def number(version: ModelVersion | None) -> str:
    """A version's number as text, whatever the store makes of it; empty for none."""
    return "" if version is None else str(version.version)


def named(config: Config) -> str:
    """The URI of the model to serve or predict with: predict.model, or the champion of registry.model_name."""
    return config.predict.model or f"models:/{config.registry.model_name}@{CHAMPION}"


def followed(uri: str) -> tuple[str, str] | None:
    """Name and alias of a URI models:/NAME@ALIAS; None for one that always means the same."""
    match = ALIAS.fullmatch(uri)
    return (match["name"], match["alias"]) if match else None


def pinned(uri: str) -> str:
    """The URI of the version that an alias names now. Raises InputError where it names none."""
    alias = followed(uri)
    if alias is None:
        return uri
    found = holder(*alias)
    if found is None:
        raise InputError(
            f"{uri}: no such model or alias; give --registry.model_name or --predict.model, or register a model first"
        )
    return f"models:/{alias[0]}/{number(found)}"


def find(name: str, model_id: str) -> ModelVersion | None:
    """The version that a logged model is registered as."""
    found = MlflowClient().search_model_versions(f"name = '{name}' and source_path = 'models:/{model_id}'")
    return next(iter(found), None)


def version(name: str, wanted: str) -> ModelVersion:
    """A version by its number. Raises InputError where there is none."""
    known = sorted(versions(name), key=int)
    if wanted not in known:
        raise InputError(f"{name} has no version {wanted}; there are {', '.join(known) or 'none'}")
    return MlflowClient().get_model_version(name, wanted)


def last_evaluation(name: str) -> str:
    """The run ID of the evaluation of a model's newest version; empty where there is none."""
    found = MlflowClient().search_model_versions(f"name = '{name}'")
    newest = max(found, key=lambda version: int(version.version), default=None)
    return newest.tags.get("evaluate_run", "") if newest else ""


def versions(name: str) -> set[str]:
    """The numbers of a model's versions."""
    return {str(found.version) for found in MlflowClient().search_model_versions(f"name = '{name}'")}


def tags_of(name: str, wanted: str) -> dict[str, str]:
    """The tags of a version; none where it was deleted."""
    return dict(version(name, wanted).tags) if wanted in versions(name) else {}


def ensure_model(name: str) -> None:
    """Create the registered model if it is not there; of several who do so at once all but one fail, and all go on."""
    client = MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException:
        client.get_registered_model(name)


def ensure_version(turn: Contender, name: str, model_id: str, tags: dict[str, str], description: str) -> ModelVersion:
    """The version of a logged model with these tags and description, created if there is none yet; safe to repeat."""
    client, known = MlflowClient(), find(name, model_id)
    if known is None:
        model = client.get_logged_model(model_id)
        turn.check()
        known = client.create_model_version(
            name, f"models:/{model_id}", model.source_run_id, tags, description=description, model_id=model_id
        )
    present(turn, known, description)
    tag(turn, known, tags)
    return client.get_model_version(name, number(known))


def present(turn: Contender, known: ModelVersion, description: str) -> None:
    """Let a version have this description, and say in it whether it was promoted against the gate."""
    if OVERRIDE in known.tags:
        description = f"{description.partition(NOTE)[0]}{NOTE}{known.tags[OVERRIDE]}"
    if (known.description or "") != description:
        turn.check()
        MlflowClient().update_model_version(known.name, number(known), description)


def tag(turn: Contender, known: ModelVersion, tags: dict[str, str]) -> None:
    """Set those tags of a version that differ."""
    for key, value in tags.items():
        if known.tags.get(key) != value:
            turn.check()
            MlflowClient().set_model_version_tag(known.name, number(known), key, value)


def withheld(decision: Decision, known: ModelVersion | None) -> Decision:
    """The gate's decision, or a refusal where it would promote a version that was rolled back."""
    if not decision.promote or known is None or WITHDRAWN not in known.tags:
        return decision
    reason = f"version {known.version} was {known.tags[WITHDRAWN]}; approve it to bring it back"
    return replace(decision, promote=False, rule=ROLLED_BACK, reasons=(reason, *decision.reasons))


def verdict(decision: Decision, approval: str) -> str:
    """What becomes of a version: promoted, kept, waiting for approval, or rolled back, which waits for it too."""
    if decision.promote:
        return WAITING if approval == "manual" else PROMOTED
    return ROLLED_BACK if decision.rule == ROLLED_BACK else KEPT


def decision_tags(decision: Decision, approval: str, against: str, by: str, run: str, at: str) -> dict[str, str]:
    """What a version remembers of its decision; `against` is the champion it was compared with."""
    return {
        "decision": verdict(decision, approval),
        "decision_rule": decision.rule,
        "decision_reason": "; ".join(decision.reasons)[:LONGEST_WHY],
        "decision_against": against,
        "decided_by": by,
        "decided_at": at,
        "register_run": run,
    }


def apply(turn: Contender, chosen: ModelVersion, champion: str) -> None:
    """Move the aliases as the version's tags say: promoted, it becomes champion in the place of `champion`; otherwise
    `challenger` names it. Repeating it changes nothing.
    """
    tags = chosen.tags
    if tags["decision"] == PROMOTED:
        at, by, why = (tags[tag] for tag in ("decided_at", "decided_by", "decision_reason"))
        move = Move(at, number(chosen), champion, PROMOTED, by, why, tags["decision_rule"], tags["register_run"])
        crown(turn, chosen, move)
    else:
        turn.check()
        MlflowClient().set_registered_model_alias(chosen.name, CHALLENGER, number(chosen))


def crown(turn: Contender, chosen: ModelVersion, move: Move) -> None:
    """Make a version champion: the intention first, then the alias, then the rest, which anybody can complete."""
    tag(turn, chosen, {MOVE: move.to_json()})
    turn.check()
    MlflowClient().set_registered_model_alias(chosen.name, CHAMPION, number(chosen))
    settle(turn, chosen.name)


def settle(turn: Contender, name: str) -> list[Move]:
    """Make record, aliases and tags agree with who is champion; returns the record.

    After a whole move there is nothing to do; a killed one is completed, and an alias that was set by hand is recorded.
    """
    client = MlflowClient()
    moves, aliases = history(name), client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return moves
    champion = client.get_model_version(name, aliases[CHAMPION])
    if not moves or moves[-1].version != number(champion):
        moves.append(_unrecorded(champion, moves, str(aliases.get(PREVIOUS, ""))))
        turn.check()
        client.set_registered_model_tag(name, RECORD + moves[-1].at, moves[-1].to_json())
    if champion.tags.get("decision") != PROMOTED or WITHDRAWN in champion.tags:
        tag(turn, champion, {"decision": PROMOTED, "decided_by": moves[-1].by, "decided_at": moves[-1].at})
        turn.check()
        client.delete_model_version_tag(name, number(champion), WITHDRAWN)
    if moves[-1].how == record.OVERRIDDEN:
        tag(turn, champion, {OVERRIDE: f"by {moves[-1].by} on {moves[-1].at[:10]}: {moves[-1].why}"})
        present(turn, version(name, number(champion)), champion.description or "")
    _point(turn, name, PREVIOUS, "".join(line(moves, versions(name))[-2:-1]))
    if str(aliases.get(CHALLENGER)) == number(champion):
        _point(turn, name, CHALLENGER, "")
    return moves


def _unrecorded(champion: ModelVersion, moves: list[Move], previous: str) -> Move:
    """The move that made a version champion and is not in the record: the one it was meant to make, or one by hand."""
    meant = Move.read(champion.tags[MOVE]) if MOVE in champion.tags else None
    if meant is not None and meant.at > (moves[-1].at if moves else ""):
        return meant
    before = moves[-1].version if moves else previous
    why = "the alias was set without register"
    return Move(moment(moves), number(champion), "" if before == number(champion) else before, PROMOTED, "", why)


def _point(turn: Contender, name: str, alias: str, target: str) -> None:
    """Let an alias name a version, or nothing."""
    client = MlflowClient()
    if number(holder(name, alias)) == target:
        return
    turn.check()
    if target:
        client.set_registered_model_alias(name, alias, target)
    else:
        client.delete_registered_model_alias(name, alias)


def describe(known: ModelVersion) -> dict[str, Any]:
    """Name, version and the figures its tags carry."""
    return {"name": known.name, "version": number(known), **known.tags}
