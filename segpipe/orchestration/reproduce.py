"""`python pipeline.py reproduce MODEL`: the recorded steps of a model once more, and what came out differently."""

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.errors import InputError, StepError
from segpipe.files import hashes, project
from segpipe.orchestration import chain, explain, keys, launch
from segpipe.orchestration.screen import Column, Screen, Table
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import STEPS
from segpipe.recording.artifact_tree import PLANNED
from segpipe.runtime import devices
from segpipe.tracking import artifacts, experiments, lineage, run_tags, runs

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

    from segpipe.metrics.statistics import Interval
    from segpipe.tracking.lineage_graph import Lineage

AGAIN = ("preprocess", "train", "evaluate")
IDENTICAL, TOLERATED, REFUTED = "bit-identical", "within tolerance", "NOT reproduced"
REPORT, EVALUATION, CASES = "reproduction/report.json", "evaluation", "cases.csv"
CIRCUMSTANCES = ("cfg.hardware.", "cfg.version.")


class Pair(NamedTuple):
    """One thing as recorded and as reproduced; the difference is None where it can't be computed."""

    recorded: str | float
    reproduced: str | float
    difference: float | None

    @property
    def equal(self) -> bool:
        return self.recorded == self.reproduced


@dataclass(frozen=True)
class Report:
    """What a reproduction gave beside what was recorded."""

    model: str
    tolerance: float
    runs: dict[str, Pair]
    dataset: Pair
    weights: Pair
    metrics: dict[str, Pair]
    cases: Pair
    circumstances: dict[str, Pair]

    @property
    def verdict(self) -> str:
        """Bit-identical weights, dataset and cases; or every mean within the tolerance, relative to means above 1."""
        if self.weights.equal and self.dataset.equal and self.cases.equal:
            return IDENTICAL
        return TOLERATED if all(_within(pair, self.tolerance) for pair in self.metrics.values()) else REFUTED

    def to_json(self) -> str:
        """The report, its verdict first."""
        head = {"model": self.model, "verdict": self.verdict, "tolerance": self.tolerance}
        pairs = {k: v._asdict() for k, v in vars(self).items() if isinstance(v, Pair)}
        several = {k: {n: p._asdict() for n, p in v.items()} for k, v in vars(self).items() if isinstance(v, dict)}
        return json.dumps(head | pairs | several, indent=1)


def _within(pair: Pair, tolerance: float) -> bool:
    if pair.difference is None:
        return pair.equal
    return abs(pair.difference) <= tolerance * max(1.0, abs(float(pair.recorded)))


def run(
    session: Session, uri: str, how: launch.How, tolerance: float, root: str | None, experiment: str | None
) -> None:
    """Reproduce a model below one run of a scratch experiment and show what came of it.

    Raises InputError where this checkout, environment or data is not what the model was made from (then nothing has
    run), StepError where a step fails, and where the model is not reproduced.
    """
    made_by = recorded(lineage.of(uri))
    configs = checked(session, uri, made_by, {"data.root": root} if root else {})
    if how.backend == "local":
        devices.check(configs["train"].train, training=True)
    before = artifacts.local(f"runs:/{made_by['evaluate'].info.run_id}/{EVALUATION}")
    scratch = experiments.ensure_scratch(experiment or f"{experiments.name_of(made_by['train'])}-reproduce")
    with runs.run(session.store, "reproduce", configs["train"], scratch), session.guard.watching():
        runs.tag(reproduces=uri)
        report = compare(
            uri, tolerance, made_by, again(launch.Launcher(session, runs.active(), how), made_by, configs), before
        )
        runs.log_text(report.to_json(), REPORT)
        runs.tag(verdict=report.verdict, figure=report.verdict)
    show(session.screen, report)
    if report.verdict == REFUTED:
        raise StepError(f"{uri}: {REFUTED}: a test metric differs by more than --tolerance {tolerance:g}")


def recorded(found: "Lineage") -> "dict[str, Run]":
    """The finished runs to repeat, by step. Raises InputError where one of them is missing or deleted."""
    made_by = {}
    for step in AGAIN:
        node = found.first(step)
        if node is None:
            raise InputError(f"{found.uri}: no {step} run behind it; give a model version or an evaluate run")
        if node.state == lineage.DELETED:
            gone = f"run {node.id} is gone: nothing says how it was made"
            raise InputError(f"{found.uri}: its {step} {runs.deleted(node.id) if lineage.find(node.id) else gone}")
        made_by[step] = runs.upstream(node.id, step)
    return made_by


def checked(session: Session, uri: str, made_by: "dict[str, Run]", moved: dict[str, str]) -> dict[str, Config]:
    """The config each step is to run with. Raises InputError, after a line for each step that can't be the same here,
    where code, requirements, Python, raw data or config differ.
    """
    here = {"train.resume": "never", "tracking.outputs": "", **moved}
    configs: dict[str, Config] = {}
    refused = []
    for step, made in made_by.items():
        said = _environment(session.keys, step, made)
        try:
            recipe = artifacts.local(f"runs:/{made.info.run_id}/{runs.CONFIG}")
            configs[step] = settings.recorded(recipe, here)
            inputs = chain.upstream_keys({i: made_by[i] for i in STEPS[step].inputs})
            wanted = session.keys.key(step, configs[step], inputs).parts
            others = {part: value for part, value in wanted.items() if part not in keys.MADE_HERE}
            now = json.loads(session.keys.made_of(step, configs[step]))
            said += explain.differences(made, configs[step], keys.Key(others), now)
        except InputError as error:
            said.append(str(error))
        if said:
            session.say(f"{step}: {', '.join(said)}")
            refused.append(step)
    if refused:
        _say_where(session.screen, made_by["train"])
        raise InputError(f"{uri}: {', '.join(refused)} can't be run as recorded in this checkout; nothing was run")
    return configs


def _environment(made_here: keys.Keys, step: str, made: "Run") -> list[str]:
    """Which of code, requirements and Python are not those a run was made with."""
    known = json.loads(made.data.tags.get(run_tags.PARTS, "{}"))
    now = made_here.made_with(step)
    return [f"{part} {known.get(part, 'unknown')} -> {now[part]}" for part in now if known.get(part) != now[part]]


def _say_where(screen: Screen, train: "Run") -> None:
    """Tell how to get the code a training was made from."""
    commit = train.data.tags.get(lineage.COMMIT)
    if commit is None:
        screen.say("The git commit it was made from is not recorded.")
        return
    folder = shlex.quote(f"../{project.PROJECT.name}-{commit[:8]}")
    screen.say(f"It was made from git commit {commit}:\n  git worktree add {folder} {commit}")
    if lineage.uncommitted(train):
        screen.say(
            f"with changes that were not committed:\n  mlflow artifacts download -r {train.info.run_id} "
            f"-a {lineage.DIFF} -d {folder}\n  git -C {folder} apply {lineage.DIFF}"
        )


def again(launcher: launch.Launcher, made_by: "dict[str, Run]", configs: dict[str, Config]) -> "dict[str, Run]":
    """Run the steps once more below the launcher's run, each on the one before it; nothing is reused."""
    done: dict[str, Run] = {}
    for step, config in configs.items():
        recipe = f"reproduction/configs/{step}.yaml"
        runs.log_text(settings.dump(_as_planned(config, made_by[step])), recipe)
        inputs = {f"{i}_run": done[i].info.run_id for i in STEPS[step].inputs}
        done[step] = launch.launch(
            step, inputs, replace(launcher, recipe=recipe), f"it reproduces {made_by[step].info.run_id}"
        )
        launcher.session.say(f"{step}: ran {done[step].info.run_id}")
    return done


def _as_planned(config: Config, made: "Run") -> Config:
    """The config with what the run had of all that is measured: precision, epochs and windows instead of minutes."""
    had = {knob: made.data.params[param] for knob, param in PLANNED.items() if param in made.data.params}
    values = config.model_dump(mode="json")
    if had:
        values["train"] |= had | {"minutes": 0}
    if run_tags.PRECISION in made.data.tags:
        values["evaluate"]["precision"] = made.data.tags[run_tags.PRECISION]
    return settings.build(values)


def compare(uri: str, tolerance: float, made_by: "dict[str, Run]", repeated: "dict[str, Run]", before: Path) -> Report:
    """What was recorded, with the evaluation's folder in `before`, beside what came out now."""
    from segpipe.evaluation.summary import Summary

    after = artifacts.local(f"runs:/{repeated['evaluate'].info.run_id}/{EVALUATION}")
    return Report(
        model=uri,
        tolerance=tolerance,
        runs={step: Pair(made_by[step].info.run_id, repeated[step].info.run_id, None) for step in AGAIN},
        dataset=_tags(made_by["preprocess"], repeated["preprocess"], "segpipe.dataset_digest"),
        weights=_weights(made_by["evaluate"], repeated["evaluate"]),
        metrics=means(Summary.read(before).metrics, Summary.read(after).metrics),
        cases=_tables(before / CASES, after / CASES),
        circumstances=_circumstances(made_by["train"], repeated["train"]),
    )


def _tags(ours: "Run", theirs: "Run", name: str) -> Pair:
    return Pair(ours.data.tags.get(name, "unknown"), theirs.data.tags[name], None)


def means(ours: "Mapping[str, Interval]", theirs: "Mapping[str, Interval]") -> dict[str, Pair]:
    """Every test metric's mean; a metric that has no value in one of them differs by no number."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    return {
        name: _numbers(*(found[name].mean if name in found else math.nan for found in (ours, theirs))) for name in names
    }


def _numbers(ours: float, theirs: float) -> Pair:
    known = ["none" if math.isnan(value) else value for value in (ours, theirs)]
    return Pair(known[0], known[1], None if "none" in known else theirs - ours)


def _weights(ours: "Run", theirs: "Run") -> Pair:
    """SHA-256 of both models' weights, and the largest absolute difference of a weight."""
    models = [run.data.tags[run_tags.MODEL] for run in (ours, theirs)]
    old, new = (lineage.weights(model) for model in models)
    if new is None:
        raise StepError(f"run {theirs.info.run_id}: its model {models[1]} has no weights")
    kept = ours.data.tags.get(lineage.WEIGHTS_TAG) or (hashes.sha256(old) if old else "unknown")
    digest = hashes.sha256(new)
    if kept == digest:
        return Pair(kept, digest, 0.0)
    return Pair(kept, digest, largest_difference(old.parent, new.parent) if old else None)


def largest_difference(ours: Path, theirs: Path) -> float:
    """The largest absolute difference of a weight between two models of the same network."""
    from segpipe.inference.predictor import Predictor

    first, second = (Predictor.load(folder).model.state_dict() for folder in (ours, theirs))
    pairs = ((value.double(), second[name].double()) for name, value in first.items() if value.numel())
    return max(float((a - b).abs().max()) for a, b in pairs)


def _tables(ours: Path, theirs: Path) -> Pair:
    """SHA-256 of both tables of cases, and the largest difference of a number in them."""
    from segpipe.evaluation import kept

    digests = hashes.sha256(ours), hashes.sha256(theirs)
    if digests[0] == digests[1]:
        return Pair(*digests, 0.0)
    return Pair(*digests, largest_cell(kept.table(ours), kept.table(theirs)))


def largest_cell(ours: "pd.DataFrame", theirs: "pd.DataFrame") -> float | None:
    """The largest absolute difference of two tables' numbers; None where cases or columns are others, or a value is
    missing in one alone.
    """
    if list(ours["case"]) != list(theirs["case"]) or set(ours) != set(theirs):
        return None
    first = ours.select_dtypes("number")
    second = theirs[first.columns]
    if (first.isna() != second.isna()).any(axis=None):
        return None
    return float((first - second).abs().max().max())


def _circumstances(ours: "Run", theirs: "Run") -> dict[str, Pair]:
    """Hardware, threads and versions that are not the same."""
    first, second = ours.data.params, theirs.data.params
    names = sorted(name for name in first.keys() | second.keys() if name.startswith(CIRCUMSTANCES))
    pairs = {name.removeprefix("cfg."): Pair(first.get(name, "none"), second.get(name, "none"), None) for name in names}
    return {name: pair for name, pair in pairs.items() if not pair.equal}


def show(screen: Screen, report: Report) -> None:
    """Show what was recorded beside what came out, and the verdict."""
    rows = {"dataset": report.dataset, "weights": report.weights, **report.metrics, "cases.csv": report.cases}
    columns = [Column(title, wrap=True) for title in ("", "recorded", "reproduced", "difference")]
    cells = [
        (name, _text(pair.recorded), _text(pair.reproduced), _difference(pair))
        for name, pair in (rows | report.circumstances).items()
    ]
    screen.show(Table(columns, cells, title=report.model, caption=report.verdict))


def _text(value: str | float) -> str:
    return value[:16] if isinstance(value, str) else f"{value:.6g}"


def _difference(pair: Pair) -> str:
    if pair.equal:
        return "equal"
    return "differs" if pair.difference is None else f"{pair.difference:.3g}"
