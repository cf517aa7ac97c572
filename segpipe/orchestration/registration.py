"""Registering one evaluated model: what is known of it, the gate's decision, and what that means for the registry."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.files import project
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.session import Session

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from segpipe.evaluation.decision import Decision
    from segpipe.evaluation.gate import Footprint
    from segpipe.tracking.one_at_a_time import Contender

EVALUATION, DECISION = "evaluation", "decision.json"
DRY_RUN = "register --dry-run"  # the step that its run is tagged with: no later register is replaced by it


@dataclass(frozen=True)
class Challenger:
    """What register knows about the evaluated model before it has a version; `pages` is what its pages were made from,
    empty where that is not known.
    """

    preprocess: str
    evaluate: str
    model_id: str
    cases: "pd.DataFrame"
    footprint: "Footprint"
    tags: dict[str, str]
    card: str
    pages: str

    @classmethod
    def of(cls, preprocess: str, evaluate: str) -> "Challenger":
        """What an evaluation left. Raises InputError where a version before 0.5.0 made it."""
        from mlflow import MlflowClient

        from segpipe.evaluation import kept
        from segpipe.evaluation.gate import Footprint
        from segpipe.evaluation.summary import Summary
        from segpipe.tracking import artifacts, run_tags, runs

        pages = MlflowClient().get_run(evaluate).data.tags.get(run_tags.PAGES, "")  # before they are read
        folder = artifacts.local(f"runs:/{evaluate}/{EVALUATION}")
        try:
            summary, described = Summary.read(folder), card(evaluate)
        except InputError:
            raise InputError(f"evaluate_run={evaluate} was made by an earlier version; run evaluate again") from None
        footprint = Footprint(summary.latency_ms, summary.size_mb)
        model_id = runs.tag_of(evaluate, run_tags.MODEL)
        cases = kept.table(folder / kept.CASES)
        tags = _version_tags(preprocess, evaluate)
        return cls(preprocess, evaluate, model_id, cases, footprint, tags, described, pages)


def _version_tags(preprocess: str, evaluate: str) -> dict[str, str]:
    """What a model version remembers: dataset digests, git commit, run IDs, test Dice with its interval."""
    from mlflow import MlflowClient

    from segpipe.tracking import run_tags, runs

    client = MlflowClient()
    run = client.get_run(evaluate)
    train = runs.tag_of(evaluate, f"{run_tags.INPUT}train")
    figures = {k: f"{v:.6g}" for k, v in run.data.metrics.items() if k.startswith("test_dice")}
    return {
        "dataset_digest": runs.tag_of(preprocess, "segpipe.dataset_digest"),
        "test_digest": runs.tag_of(preprocess, "segpipe.test_digest"),
        "git_commit": client.get_run(train).data.tags.get("mlflow.source.git.commit", "unknown"),
        "preprocess_run": preprocess,
        "train_run": train,
        "evaluate_run": evaluate,
        "weights_sha256": runs.tag_of(evaluate, "segpipe.weights_sha256"),
        **figures,
    }


def last_evaluation(session: Session, config: Config, asked: Collection[str]) -> tuple[Config, dict[str, str]]:
    """The run ID of the last evaluation of registry.model_name, as `evaluate`, and the config to register it with: its
    own gate and way to measure, but for the knobs that were `asked` for.

    Raises InputError where there is none, or it was made with another value of such a knob.
    """
    from segpipe.config import settings
    from segpipe.orchestration.step_table import ROWS
    from segpipe.registry import champions
    from segpipe.tracking import artifacts, runs

    name = config.registry.model_name
    run = runs.last("evaluate", "registry.model_name", name)
    evaluate = run.info.run_id if run else champions.last_evaluation(name)
    if not evaluate:
        how = f"{project.called('pipeline')} --registry.model_name '{name}', with its recipe or --data.root, makes one"
        raise InputError(f"{name} has no evaluation yet: {how}; or give --evaluate-run")
    recorded = settings.recorded(artifacts.local(f"runs:/{evaluate}/{runs.CONFIG}"), {})
    deciding = {section for row in ("preprocess", "train", "evaluate") for section in ROWS[row].sections}
    theirs, ours = settings.flat(recorded), settings.flat(config)
    for knob in sorted(set(asked) - {"evaluate.subgroups", "evaluate.bootstrap_samples"}):
        if knob.partition(".")[0] in deciding and ours[knob] != theirs[knob]:
            raise InputError(
                f"{knob}={ours[knob]}, but the last evaluation of {name}, run {evaluate}, has {theirs[knob]}; "
                f"leave it out, or give it to {project.called('pipeline')}"
            )
    session.say(f"registering the last evaluation of {name}, run {evaluate}")
    return settings.completed(config, recorded, ("gate", "evaluate", "seed"), asked), {"evaluate": evaluate}


def card(evaluate: str) -> str:
    """The model card of an evaluation."""
    from segpipe.evaluation.card import FILE
    from segpipe.tracking import artifacts

    return artifacts.local(f"runs:/{evaluate}/{EVALUATION}/{FILE}").read_text(encoding="utf-8")


def register(session: Session, config: Config, challenger: Challenger, dry_run: bool, by: str) -> str:
    """Compare a challenger with the champion until the registry has stood still meanwhile, move what the decision says,
    and show it; the key figure. With `dry_run` nothing moves.
    """
    from segpipe.orchestration import decisions, site_models
    from segpipe.registry import champions, lock
    from segpipe.tracking import artifacts, runs

    name, screen = config.registry.model_name, session.screen
    evaluations = site_models.evaluations(session.keys, challenger.evaluate)
    of_sites = site_models.cases(evaluations, config)
    runs.tag(site_models=json.dumps(evaluations))
    if dry_run:
        runs.tag(step=DRY_RUN)
    else:
        champions.ensure_model(name)
    while True:
        champion = champions.holder(name)
        decision = compare(screen, challenger, champion, config, of_sites)
        if dry_run:
            decision = champions.withheld(decision, champions.find(name, challenger.model_id))
            would_be = outcome(decision, config, "")
            return decisions.show(screen, decision, f"dry run, nothing moved; it would be {would_be}")
        with lock.turn(name, screen.say, session.store.hurry_after) as turn:
            if champions.number(champions.holder(name)) == champions.number(champion):
                decision, decided = carry_out(turn, challenger, champion, decision, config, by)
                break
        screen.say("another version became champion meanwhile: comparing with that one")
    with artifacts.files("register") as folder:
        report(challenger.evaluate, decided, folder)
    if challenger.pages:
        runs.tag(pages=challenger.pages)
    runs.tag(champion=champions.number(champions.holder(name)))
    return decisions.show(screen, decision, outcome(decision, config, decided["version"]["version"]))


def compare(
    screen: Screen,
    challenger: Challenger,
    champion: "ModelVersion | None",
    config: Config,
    of_sites: "Mapping[str, pd.DataFrame | None]",
) -> "Decision":
    """The gate's decision about a challenger and today's champion, which is measured first where that is needed;
    `of_sites` has the cases of sites' own models.
    """
    from segpipe.evaluation import gate
    from segpipe.evaluation.decision import Decision
    from segpipe.orchestration import champion_cases
    from segpipe.registry import champions

    rival = None
    if champion is not None:
        known = champions.find(champion.name, challenger.model_id)
        if known is not None and known.version == champion.version:
            return Decision(False, champions.CHAMPION, (f"version {champion.version} is the champion already",))
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
        of_sites=of_sites,
    )


def carry_out(
    turn: "Contender",
    challenger: Challenger,
    champion: "ModelVersion | None",
    decision: "Decision",
    config: Config,
    by: str,
) -> tuple["Decision", dict[str, Any]]:
    """Inside the turn: what a decision means for the registry, and what decision.json holds. The version and its tags
    come first, then decision.json, then the aliases; a version that is the champion already only gets the tags of its
    newest evaluation.
    """
    from segpipe.registry import champions, record
    from segpipe.tracking import artifacts, runs

    name, against = config.registry.model_name, champions.number(champion)
    moves = champions.settle(turn, name)
    decision = champions.withheld(decision, champions.find(name, challenger.model_id))
    run, at = runs.active().info.run_id, record.moment(moves)
    moving = decision.rule != champions.CHAMPION
    tags = champions.decision_tags(decision, config.gate.approval, against, by, run, at) if moving else {}
    version = champions.ensure_version(turn, name, challenger.model_id, challenger.tags | tags, challenger.card)
    decided = decision.record(
        verdict=champions.verdict(decision, config.gate.approval),
        who=by,
        when=at,
        version=champions.describe(version),
        champion=champion and champions.describe(champion),
    )
    with artifacts.folder("register") as folder:
        (folder / DECISION).write_text(json.dumps(decided, indent=1, allow_nan=False), encoding="utf-8")
    if moving:
        champions.apply(turn, version, against)
    return decision, decided


def report(evaluate: str, decided: dict[str, Any], folder: Path) -> None:
    """Write an evaluation's report with the decision in it."""
    from segpipe.evaluation.report import page as pages
    from segpipe.registry import champions, record
    from segpipe.tracking import artifacts, lineage

    page = artifacts.local(f"runs:/{evaluate}/{EVALUATION}/{pages.FILE}").read_text(encoding="utf-8")
    name, number = (decided["version"][part] for part in ("name", "version"))
    override = champions.tags_of(name, number).get(champions.OVERRIDE, "")
    promoted = decided["verdict"] == record.PROMOTED
    shown = {**decided, "version": number, "promote": promoted, "override": override}
    origin = lineage.of(f"models:/{name}/{number}")
    whole = pages.with_decision(page, shown, origin.rows(), origin.picture())
    (folder / pages.FILE).write_text(whole, encoding="utf-8")


def outcome(decision: "Decision", config: Config, version: str) -> str:
    """What became of a version and the reason that decided, in a line, with the command that approves it where it
    waits.
    """
    from segpipe.registry import champions, record

    verdict = champions.verdict(decision, config.gate.approval)
    approve = f"{project.called('register')} approve {version} --registry.model_name '{config.registry.model_name}'"
    how = f"; {approve}" if version and verdict in (champions.WAITING, record.ROLLED_BACK) else ""
    kept = champions.KEPT if verdict == record.ROLLED_BACK else verdict
    first, *others = decision.reasons
    return f"{kept}: {first}{f', and {len(others)} more' if others else ''}{how}"
