"""`python -m steps.register [approve VERSION | rollback | history]`"""

import getpass
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from segpipe.config import Config
from segpipe.errors import InputError
from steps import cli

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities.model_registry import ModelVersion

    from segpipe.gate import Decision, Footprint
    from segpipe.turns import Contender

EVALUATION = "evaluation"
DRY_RUN = "register --dry-run"  # the step that its run is tagged with: no later register is replaced by it


def login() -> str:
    """The name of who runs this, or its number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


MORE: tuple[click.Parameter, ...] = (
    click.Argument(
        ["action"],
        type=click.Choice(("register", "approve", "rollback", "history")),
        default="register",
        required=False,
    ),
    click.Argument(["number"], default="", required=False, metavar="[VERSION]"),
    click.Option(
        ["--dry-run"],
        is_flag=True,
        help="measure, compare and tell what register would do; the registry stays as it is",
    ),
    click.Option(["--by"], default=login, metavar="NAME", help="who decides  [default: the login name]"),
)


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
        from segpipe import artifacts, evaluation, tracking
        from segpipe.gate import Footprint

        folder = artifacts.local(f"runs:/{evaluate}/{EVALUATION}")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        try:
            footprint = Footprint(summary["latency_ms"], summary["size_mb"])
            card = (folder / "model_card.md").read_text(encoding="utf-8")
        except (KeyError, FileNotFoundError):
            raise InputError(f"evaluate_run={evaluate} was made by an earlier version; run evaluate again") from None
        model_id = tracking.tag_of(evaluate, tracking.MODEL)
        cases = evaluation.read(folder / "cases.csv")
        tags = tracking.version_tags(preprocess, evaluate)
        return cls(preprocess, evaluate, model_id, cases, footprint, tags, card)


def elsewhere(config: Config, action: str, number: str, dry_run: bool, by: str) -> bool:
    """What needs no run: approve, rollback and history."""
    if (action == "approve") != bool(number):
        raise cli.Refused("VERSION goes with approve, and approve with VERSION: python -m steps.register approve 3")
    if dry_run and action != "register":
        raise cli.Refused(f"--dry-run is for register itself; {action} has none")
    if action == "register" or not config.tracking.enabled:
        return False
    from segpipe import registry, tracking

    tracking.connect()
    name = config.registry.model_name
    if action == "history":
        show_history(name)
    elif action == "approve":
        cli.say(registry.approve(name, number, by, cli.say))
    else:
        cli.say(registry.rollback(name, by, cli.say))
    return True


@cli.step("register", inputs=("preprocess", "evaluate"), elsewhere=elsewhere, more=MORE)
def main(config: Config, preprocess: str, evaluate: str, dry_run: bool, by: str, **_: str) -> str:
    """Register the evaluated model and promote it if it passes the gate.

    `approve VERSION` promotes what waits for approval or was rolled back, `rollback` brings back the champion before
    the current one, `history` shows who was champion when, how and why.
    """
    from segpipe import registry, tracking, turns

    name, challenger = config.registry.model_name, Challenger.of(preprocess, evaluate)
    if dry_run:
        tracking.tag(step=DRY_RUN)
    else:
        registry.exist(name)
    while True:
        champion = registry.holder(name)
        decision = compare(challenger, champion, config)
        if dry_run:
            decision = registry.withheld(decision, registry.find(name, challenger.model_id))
            return show(decision, f"dry run, nothing moved; it would be {told(decision, config, '')}")
        with turns.turn(name, cli.say) as turn:
            if registry.number(registry.holder(name)) == registry.number(champion):
                decision, version = carry_out(turn, challenger, champion, decision, config, by)
                break
        cli.say("another version became champion meanwhile: comparing with that one")
    report(challenger, version)
    tracking.tag(champion=registry.number(registry.holder(name)))
    return show(decision, told(decision, config, registry.number(version)))


def compare(challenger: Challenger, champion: "ModelVersion | None", config: Config) -> "Decision":
    """The gate's decision about a challenger and today's champion, which is measured first where that is needed."""
    from segpipe import gate, registry

    rival = None
    if champion is not None:
        known = registry.find(champion.name, challenger.model_id)
        if known is not None and known.version == champion.version:
            return gate.Decision(False, registry.CHAMPION, (f"version {champion.version} is the champion already",))
        rival = registry.cases_of(champion, challenger.preprocess, config, cli.progress("champion"))
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
    from segpipe import artifacts, registry, tracking

    name, against, moves = (
        config.registry.model_name,
        registry.number(champion),
        registry.settle(turn, config.registry.model_name),
    )
    decision = registry.withheld(decision, registry.find(name, challenger.model_id))
    run, at = tracking.active().info.run_id, registry.moment(moves)
    moving = decision.rule != registry.CHAMPION
    tags = registry.decision_tags(decision, config.gate.approval, against, by, run, at) if moving else {}
    version = registry.version_of(turn, name, challenger.model_id, challenger.tags | tags, challenger.card)
    with artifacts.folder("register") as folder:
        about = {"version": registry.describe(version), "champion": champion and registry.describe(champion)}
        verdict = registry.verdict(decision, config.gate.approval)
        text = decision.to_json(verdict=verdict, who=by, when=at, **about)
        (folder / "decision.json").write_text(text, encoding="utf-8")
    if moving:
        registry.apply(turn, version, against)
    return decision, version


def report(challenger: Challenger, version: "ModelVersion") -> None:
    """The evaluation's report with the decision in it, beside decision.json."""
    from segpipe import artifacts, lineage, tracking
    from segpipe import report as pages

    run_id = tracking.active().info.run_id
    decided = json.loads(artifacts.local(f"runs:/{run_id}/register/decision.json").read_text(encoding="utf-8"))
    decided |= {"version": str(version.version), "promote": decided["verdict"] == "promoted"}
    page = artifacts.local(f"runs:/{challenger.evaluate}/{EVALUATION}/report.html").read_text(encoding="utf-8")
    rows = lineage.of(f"models:/{version.name}/{version.version}").rows()
    with artifacts.files("register") as folder:
        (folder / "report.html").write_text(pages.with_decision(page, decided, rows), encoding="utf-8")


def told(decision: "Decision", config: Config, version: str) -> str:
    """What became of a version, in a line, with the command that approves it where it waits."""
    from segpipe import registry

    verdict = registry.verdict(decision, config.gate.approval)
    approve = f"python -m steps.register approve {version} --registry.model_name '{config.registry.model_name}'"
    how = f"; {approve}" if version and verdict in (registry.WAITING, registry.ROLLED_BACK) else ""
    kept = registry.KEPT if verdict == registry.ROLLED_BACK else verdict
    return f"{kept}: {'; '.join(decision.reasons)}{how}"


def show(decision: "Decision", figure: str) -> str:
    """Print every demand of the gate with its numbers, and what came of them, which is returned."""
    rows = [
        (c.name, number(c.value), number(c.required), "yes" if c.passed else "NO", span(c.low, c.high), share(c.p))
        for c in decision.comparisons
    ]
    if rows:
        table(("comparison", "value", "asked", "passed", "95 % interval", "p"), rows)
    cli.say(figure)
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


def show_history(name: str) -> None:
    """Print who was champion when, how it came, through whom and why; the current one has a star."""
    from segpipe import registry

    moves, champion = registry.history(name), registry.number(registry.holder(name))
    rows = []
    for place, move in enumerate(moves, start=1):
        tags = registry.tags_of(name, move.version)
        dice, low, high = (float(tags.get(f"test_dice{end}", "nan")) for end in ("", "_ci_low", "_ci_high"))
        star = "*" if place == len(moves) and move.version == champion else ""
        measured = f"{share(dice)} {span(low, high)}".strip() if tags else "deleted"
        rows.append((star, f"{move.at[:19]}Z", move.version, move.how, move.by, move.why, measured))
    table(("", "when (UTC)", "version", "how", "by", "why", "test Dice [95 %]"), rows)
    if champion and (not moves or moves[-1].version != champion):
        click.echo(f"The champion is version {champion}; the record gets it with the next register.")


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table()
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 160).print(drawn)


if __name__ == "__main__":
    main()
