"""Registering one evaluated model: what is known of it, the gate's decision, and what that means for the registry."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.session import Session

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from segpipe.evaluation.gate import Decision, Footprint
    from segpipe.tracking.one_at_a_time import Contender

EVALUATION = "evaluation"
DRY_RUN = "register --dry-run"  # the step that its run is tagged with: no later register is replaced by it


@dataclass(frozen=True)
class Challenger:
    """What register knows about the evaluated model before it has a version."""

    preprocess: str
    evaluate: str
    model_id: str
    cases: "pd.DataFrame"
    footprint: "Footprint"
    tags: dict[str, str]
    card: str

    @classmethod
    def of(cls, preprocess: str, evaluate: str) -> "Challenger":
        """What an evaluation left. Raises InputError where an earlier version of segpipe made it."""
        from segpipe.evaluation import measuring
        from segpipe.evaluation.gate import Footprint
        from segpipe.tracking import artifacts, run_tags, runs

        folder = artifacts.local(f"runs:/{evaluate}/{EVALUATION}")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        try:
            footprint = Footprint(summary["latency_ms"], summary["size_mb"])
            card = (folder / "model_card.md").read_text(encoding="utf-8")
        except (KeyError, FileNotFoundError):
            raise InputError(f"evaluate_run={evaluate} was made by an earlier version; run evaluate again") from None
        model_id = runs.tag_of(evaluate, run_tags.MODEL)
        cases = measuring.read(folder / "cases.csv")
        tags = runs.version_tags(preprocess, evaluate)
        return cls(preprocess, evaluate, model_id, cases, footprint, tags, card)


def register(session: Session, config: Config, challenger: Challenger, dry_run: bool, by: str) -> str:
    """Compare a challenger with the champion until the registry has stood still meanwhile, move what the decision says,
    and show it; the key figure. With `dry_run` nothing moves.
    """
    from segpipe.orchestration import decisions
    from segpipe.registry import champions, lock
    from segpipe.tracking import runs

    name, screen = config.registry.model_name, session.screen
    if dry_run:
        runs.tag(step=DRY_RUN)
    else:
        champions.exist(name)
    while True:
        champion = champions.holder(name)
        decision = compare(screen, challenger, champion, config)
        if dry_run:
            decision = champions.withheld(decision, champions.find(name, challenger.model_id))
            would_be = told(decision, config, "")
            return decisions.show(screen, decision, f"dry run, nothing moved; it would be {would_be}")
        with lock.turn(name, screen.say, session.store.hurry_after) as turn:
            if champions.number(champions.holder(name)) == champions.number(champion):
                decision, version = carry_out(turn, challenger, champion, decision, config, by)
                break
        screen.say("another version became champion meanwhile: comparing with that one")
    report(challenger, version)
    runs.tag(champion=champions.number(champions.holder(name)))
    return decisions.show(screen, decision, told(decision, config, champions.number(version)))


def compare(screen: Screen, challenger: Challenger, champion: "ModelVersion | None", config: Config) -> "Decision":
    """The gate's decision about a challenger and today's champion, which is measured first where that is needed."""
    from segpipe.evaluation import gate
    from segpipe.orchestration import champion_cases
    from segpipe.registry import champions

    rival = None
    if champion is not None:
        known = champions.find(champion.name, challenger.model_id)
        if known is not None and known.version == champion.version:
            return gate.Decision(False, champions.CHAMPION, (f"version {champion.version} is the champion already",))
        rival = champion_cases.cases_of(champion, challenger.preprocess, config, screen.progress("champion"))
    knobs = config.evaluate
    return gate.decide(
        challenger.cases,
        rival,
        config.gate,
        challenger.footprint,
        knobs.bootstrap_samples,
        config.seed,
        subgroups=knobs.subgroups,
    )


def carry_out(
    turn: "Contender",
    challenger: Challenger,
    champion: "ModelVersion | None",
    decision: "Decision",
    config: Config,
    by: str,
) -> "tuple[Decision, ModelVersion]":
    """Inside the turn: what a decision means for the registry. The version and its tags come first, then decision.json,
    then the aliases; a version that is the champion already only gets the tags of its newest evaluation.
    """
    from segpipe.registry import champions, record
    from segpipe.tracking import artifacts, runs

    name, against = config.registry.model_name, champions.number(champion)
    moves = champions.settle(turn, name)
    decision = champions.withheld(decision, champions.find(name, challenger.model_id))
    run, at = runs.active().info.run_id, record.moment(moves)
    moving = decision.rule != champions.CHAMPION
    tags = champions.decision_tags(decision, config.gate.approval, against, by, run, at) if moving else {}
    version = champions.version_of(turn, name, challenger.model_id, challenger.tags | tags, challenger.card)
    with artifacts.folder("register") as folder:
        about = {"version": champions.describe(version), "champion": champion and champions.describe(champion)}
        verdict = champions.verdict(decision, config.gate.approval)
        text = decision.to_json(verdict=verdict, who=by, when=at, **about)
        (folder / "decision.json").write_text(text, encoding="utf-8")
    if moving:
        champions.apply(turn, version, against)
    return decision, version


def report(challenger: Challenger, version: "ModelVersion") -> None:
    """The evaluation's report with the decision in it, beside decision.json."""
    from segpipe.evaluation.report import page as pages
    from segpipe.tracking import artifacts, lineage, runs

    run_id = runs.active().info.run_id
    decided = json.loads(artifacts.local(f"runs:/{run_id}/register/decision.json").read_text(encoding="utf-8"))
    decided |= {"version": str(version.version), "promote": decided["verdict"] == "promoted"}
    page = artifacts.local(f"runs:/{challenger.evaluate}/{EVALUATION}/report.html").read_text(encoding="utf-8")
    origin = lineage.of(f"models:/{version.name}/{version.version}")
    whole = pages.with_decision(page, decided, origin.rows(), origin.picture())
    with artifacts.files("register") as folder:
        (folder / "report.html").write_text(whole, encoding="utf-8")


def told(decision: "Decision", config: Config, version: str) -> str:
    """What became of a version and the reason that decided, in a line, with the command that approves it where it
    waits.
    """
    from segpipe.registry import champions, record

    verdict = champions.verdict(decision, config.gate.approval)
    approve = f"python -m steps.register approve {version} --registry.model_name '{config.registry.model_name}'"
    how = f"; {approve}" if version and verdict in (champions.WAITING, record.ROLLED_BACK) else ""
    kept = champions.KEPT if verdict == record.ROLLED_BACK else verdict
    first, *others = decision.reasons
    return f"{kept}: {first}{f', and {len(others)} more' if others else ''}{how}"
