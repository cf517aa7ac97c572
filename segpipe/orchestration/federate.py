"""Compare trainings at single sites, on all cases together and federated, each on every site's test cases."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segpipe.config.sections import AVERAGED, Config
from segpipe.data.manifest import FILE, Manifest
from segpipe.errors import InputError, SegpipeError, StepError
from segpipe.orchestration import chain, compare, driver, plan, site_models
from segpipe.orchestration.compare import Member
from segpipe.orchestration.launch import Launcher
from segpipe.orchestration.plan import Asked
from segpipe.orchestration.screen import Column, Screen, Table
from segpipe.orchestration.session import Session

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from mlflow.entities import Run

ALL = "all sites"
COLUMNS = ("model", "site", "dice", "dice_ci_low", "dice_ci_high", "group", "cases", "patients")
BY_SITE, CURVES = "sites.png", "curves.png"
NOT_IN_METRICS = r"[^\w\-. /]"


def members(config: Config, sites: tuple[str, ...]) -> list[Member]:
    """One training at each site, one on all their cases, one with each federated strategy; all of as many epochs."""
    apart = [_member(f"local:{site}", f"local_{n}", site_models.alone(config, site)) for n, site in enumerate(sites)]
    central = site_models.variant(config, strategy="central", sites=config.federate.sites)
    return [*apart, _member("central", "central", central), *federations(config)]


def federations(config: Config) -> list[Member]:
    """A training with each federated strategy."""
    given, found = config.federate.model_dump(exclude={"strategy", "mu"}), []
    for strategy in AVERAGED:
        knobs = {**given, "mu": config.federate.mu} if strategy == "fedprox" else given
        found.append(_member(strategy, strategy, site_models.variant(config, strategy=strategy, **knobs)))
    return found


def _member(name: str, file: str, config: Config) -> Member:
    return Member(name, config, f"federate/configs/{file}.yaml")


def sites(config: Config, manifest: Manifest) -> tuple[str, ...]:
    """The sites that take part. Raises InputError where there are not two of them."""
    found = manifest.sites(config.federate.sites)
    if len(found) < 2:
        raise InputError(
            "pipeline.py federate needs cases of two sites or more; give each case its own in cases.csv, column site"
        )
    return found


def planned(session: Session, config: Config, asked: Asked) -> Iterator[tuple[str, chain.Choice]]:
    """What would become of the data set and, where it is there to tell its sites, of each training; nothing is run."""
    step, dataset = next(plan.plan(session, config, asked))
    yield step, dataset
    if dataset.run is None:
        return
    for member in members(config, sites(config, _manifest(dataset.run))):
        choice = chain.choose(session, "train", member.config, {step: dataset.key}, fresh=asked.anew("train"))
        yield member.name, choice


def run(launcher: Launcher, config: Config, then: str, asked: Asked, results: dict[str, chain.Result]) -> None:
    """Train and evaluate all members below the launcher's run, show what each is worth at each site, and go on with the
    best federated one by validation. `results` has the plan if there is one.

    Raises InputError where there are not two sites, StepError where no federation could be trained.
    """
    from segpipe.evaluation.report import federation_page
    from segpipe.tracking import artifacts, runs

    began, screen = time.perf_counter(), launcher.session.screen
    driver.advance(("preprocess",), config, results, launcher, asked)
    taking_part = sites(config, _manifest(results["preprocess"].run))
    outcomes = compare.train(members(config, taking_part), results, launcher, config.compare.parallel, asked)
    trained = {member: outcome for member, outcome in outcomes.items() if isinstance(outcome, chain.Result)}
    evaluated = {
        member: _evaluate(member, {"preprocess": results["preprocess"], "train": result}, launcher, asked)
        for member, result in trained.items()
    }
    named = {member.name: result for member, result in trained.items()}
    cases = {member.name: _cases(result) for member, result in evaluated.items()}
    board = by_site(cases, taking_part, config.evaluate.bootstrap_samples, config.seed)
    best = _best(outcomes)
    with artifacts.files("federate") as folder:
        rounds = _save(board, named, folder)
        federation_page.write(board, rounds, best.name, cases[best.name], folder, [BY_SITE, CURVES])
    _log_by_site(board, named)
    _show(screen, board, taking_part)
    screen.answer(f"Sites apart and together: {artifacts.place(runs.active(), f'federate/{federation_page.FILE}')}")
    results |= {"train": trained[best], "evaluate": evaluated[best]}
    val_dice = results["train"].run.data.metrics["best_val_dice"]
    runs.tag(best=best.name, figure=f"best federation: {best.name}, val Dice {val_dice:.3f}")
    if then == "promote":
        driver.advance(("register",), best.config, results, replace(launcher, recipe=best.recipe), asked)
    driver.describe(results)
    driver.show(screen, results, time.perf_counter() - began)
    driver.show_pages(screen, results)
    if then == "promote":
        driver.show_champion(screen, config.registry.model_name)


def _manifest(preprocess: "Run") -> Manifest:
    from segpipe.tracking import artifacts

    return Manifest.read(artifacts.local(f"runs:/{preprocess.info.run_id}/dataset/{FILE}"))


def _evaluate(member: Member, built: dict[str, chain.Result], launcher: Launcher, asked: Asked) -> chain.Result:
    inputs = {step: result.run for step, result in built.items()}
    mine, fresh = replace(launcher, recipe=member.recipe), asked.anew("evaluate")
    return chain.obtain("evaluate", member.config, inputs, mine, fresh=fresh, label=f"evaluate {member.name}")


def _cases(evaluated: chain.Result) -> "pd.DataFrame":
    """What an evaluation measured of each test case, with the case as the index."""
    from segpipe.evaluation import kept
    from segpipe.tracking import artifacts

    return kept.table(artifacts.local(f"runs:/{evaluated.run.info.run_id}/evaluation/{kept.CASES}")).set_index("case")


def by_site(cases: "dict[str, pd.DataFrame]", taking_part: tuple[str, ...], samples: int, seed: int) -> "pd.DataFrame":
    """One row per model and site, and per model for all sites together, with `COLUMNS`: the mean Dice of the test cases
    there with its interval over patients. Models that share a letter of `group` do not differ significantly there.
    """
    import pandas as pd

    from segpipe.metrics import statistics

    rows = []
    for site in (*taking_part, ALL):
        wanted = {site} if site != ALL else {*taking_part}
        found = {name: table[table["site"].isin(wanted)] for name, table in cases.items()}
        found = {name: table for name, table in found.items() if table["dice"].notna().any()}
        ranked = sorted(found, key=lambda name: -found[name]["dice"].mean())
        groups = compare.groups({name: found[name] for name in ranked}, samples, seed)
        for name, table in found.items():
            known = table.dropna(subset="dice")
            interval = statistics.bootstrap_mean(known["dice"], known["patient"], samples, seed)
            row = (name, site, known["dice"].mean(), interval.low, interval.high, groups[name])
            rows.append((*row, len(known), known["patient"].nunique()))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _best(trained: compare.Outcomes) -> Member:
    """The federation with the best validation Dice. Raises StepError where none could be trained."""
    dice = {
        member: outcome.run.data.metrics["best_val_dice"]
        for member, outcome in trained.items()
        if member.name in AVERAGED and not isinstance(outcome, SegpipeError)
    }
    if not dice:
        failed = "; ".join(f"{m.name}: {error}" for m, error in trained.items() if isinstance(error, SegpipeError))
        raise StepError(f"no federation could be trained ({failed})")
    return max(dice, key=lambda member: dice[member])


def _save(board: "pd.DataFrame", trained: "dict[str, chain.Result]", folder: "Path") -> "pd.DataFrame":
    """Write the table, its picture, how trainings went, and what became of each site in each round, which is returned:
    one row per model, round and site.
    """
    import pandas as pd

    from segpipe.plots import federation, training
    from segpipe.recording import artifact_tree
    from segpipe.tracking import artifacts, runs

    board.to_csv(folder / "sites.csv", index=False)
    federation.by_site(board, folder / BY_SITE)
    curves, rounds = dict[str, list[float]](), list[dict[str, Any]]()
    for name, outcome in trained.items():
        run_id = outcome.run.info.run_id
        if not name.startswith("local:"):
            curves[name] = runs.history(run_id, "val_dice")
        if name in AVERAGED:
            path = artifacts.local(f"runs:/{run_id}/{artifact_tree.ROUNDS}")
            rounds += [{"model": name, **row} for row in json.loads(path.read_text(encoding="utf-8"))]
    training.overlaid(curves, "validation Dice", folder / CURVES, unit="epoch or round")
    table = pd.json_normalize(rounds, "sites", ["model", "round", "bytes_down"])
    table["bytes_down"] = table["bytes_down"].astype(int)
    table.to_csv(folder / "rounds.csv", index=False)
    return table


def _log_by_site(board: "pd.DataFrame", trained: "dict[str, chain.Result]") -> None:
    """Let each training carry what it is worth at each site."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    for name, rows in board.groupby("model"):
        run = trained[str(name)].run
        values = {
            f"{re.sub(NOT_IN_METRICS, '_', row['site'])}_test_{metric}": float(row[metric])
            for row in rows.to_dict("records")
            for metric in ("dice", "dice_ci_low", "dice_ci_high")
        }
        fresh = {metric: value for metric, value in values.items() if run.data.metrics.get(metric) != value}
        at = round(time.time() * 1000)
        MlflowClient().log_batch(run.info.run_id, [Metric(metric, value, at, 0) for metric, value in fresh.items()])


def _show(screen: Screen, board: "pd.DataFrame", taking_part: tuple[str, ...]) -> None:
    columns = (Column("model"), *(Column(site, wrap=True) for site in (*taking_part, ALL)))
    cells = {(row["model"], row["site"]): _cell(row) for row in board.to_dict("records")}
    rows = [(name, *(cells.get((name, site), "") for site in (*taking_part, ALL))) for name in board["model"].unique()]
    caption = (
        "test Dice with its 95 % interval over the patients of each site; models that share a letter do not differ "
        "significantly there"
    )
    screen.show(Table(columns, rows, caption=caption))


def _cell(row: Mapping[Any, Any]) -> str:
    return f"{row['dice']:.3f} [{row['dice_ci_low']:.3f}, {row['dice_ci_high']:.3f}] {row['group']}"
