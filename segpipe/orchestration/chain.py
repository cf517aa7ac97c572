"""How a step finds its inputs, is reused or is started."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from segpipe.config.sections import Config
from segpipe.errors import InputError
from segpipe.orchestration import claims, explain, launch, pages
from segpipe.orchestration.keys import Key
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import ROWS
from segpipe.recording import logged_models
from segpipe.tracking import artifacts, lineage, run_tags, runs

if TYPE_CHECKING:
    from mlflow.entities import Run

REUSED = "segpipe.reuses"
Valid = Callable[["Run"], str]


@dataclass(frozen=True)
class Choice:
    """What is to become of a step: the finished run that stands for it and what becomes of its pages, or why it has to
    run.
    """

    wanted: Key
    run: "Run | None"
    because: str
    pages: str = ""

    @property
    def key(self) -> str:
        """What later steps' keys are made from."""
        return self.run.data.tags[run_tags.KEY] if self.run else self.wanted.digest

    def line(self) -> str:
        """The choice, as a line."""
        if self.run is None:
            return f"run: because {self.because}"
        reuse = f"reuse {self.run.info.run_id}" + (f" as it is, although {self.because}" if self.because else "")
        return f"{reuse}, {self.pages}" if self.pages else reuse


@dataclass(frozen=True)
class Result:
    """What became of a step: its run, whether it was reused, and the seconds it took here."""

    run: "Run"
    reused: bool
    seconds: float


def upstream_keys(built: "Mapping[str, Run]") -> dict[str, str]:
    """The keys of finished runs, by step."""
    return {name: run.data.tags.get(run_tags.KEY, run.info.run_id) for name, run in built.items()}


def inputs(session: Session, name: str, config: Config, given: dict[str, str]) -> dict[str, "Run"]:
    """The finished runs a step builds on: the given ones, checked; those they were built on; the others found by key or
    run first on top of these, as children of the active run. Raises InputError where given runs do not fit together.
    """
    built: dict[str, Run] = {}
    for upstream in ROWS[name].inputs:
        chosen = given | {known: run.info.run_id for known, run in built.items()}
        run_id = given.get(upstream) or _implied(upstream, given)
        if run_id:
            built[upstream] = runs.upstream(run_id, upstream)
        else:
            below = inputs(session, upstream, config, chosen)
            built[upstream] = obtain(upstream, config, below, launch.Launcher(session, runs.active())).run
    for later, run in built.items():
        for earlier in set(ROWS[later].inputs) & set(built):
            _check_built_on(later, run, earlier, built[earlier])
    return built


def _check_built_on(later: str, run: "Run", earlier: str, chosen: "Run") -> None:
    actual = runs.tag_of(run.info.run_id, f"{run_tags.INPUT}{earlier}")
    if actual == chosen.info.run_id:
        return
    if runs.tag_of(actual, run_tags.KEY) != runs.tag_of(chosen.info.run_id, run_tags.KEY):
        raise InputError(
            f"{later}_run={run.info.run_id} was built on {earlier} run {actual}, not on {chosen.info.run_id}; "
            f"leave out {earlier}_run or give the one it was built on"
        )


def _implied(name: str, given: dict[str, str]) -> str | None:
    """The run of `name` that a given run further down was built on."""
    for other, run_id in given.items():
        if run_id and name in ROWS[other].inputs:
            return runs.upstream(run_id, other).data.tags.get(f"{run_tags.INPUT}{name}")
    return None


def always(_run: "Run") -> str:
    """A whole run with the right key stays valid."""
    return ""


def choose(
    session: Session,
    name: str,
    config: Config,
    upstream: Mapping[str, str],
    valid: Valid = always,
    fresh: bool = False,
    there: Collection[str] = (),
) -> Choice:
    """Which finished run with the right key, whole and still valid, stands for a step, or why it has to run.

    `upstream` holds the keys of its inputs, `there` the IDs of runs that stand for them; `valid` says what speaks
    against a run, or nothing.
    """
    wanted = session.keys.key(name, config, upstream)
    if fresh:
        return Choice(wanted, None, explain.ASKED)
    faults = []
    for run in runs.finished(name, wanted.digest):
        fault = _deleted_behind(name, run, there) or damage(name, run) or valid(run)
        if not fault:
            return Choice(wanted, run, "", pages.describe(session.keys, name, run, config))
        faults.append(fault)
    faults += [runs.deleted(run.info.run_id) for run in runs.finished(name, wanted.digest, deleted=True)]
    faults += [_unfinished(run) for run in runs.unfinished(name, wanted.digest)]
    if faults:
        return Choice(wanted, None, faults[0])
    known = runs.finished(name, most=explain.COMPARED)
    return Choice(wanted, None, explain.reason(session.keys, known, name, config, wanted))


def _deleted_behind(name: str, run: "Run", there: Collection[str]) -> str:
    """Which run that a step's run was built on, directly or not, was deleted, in words; empty where none was."""
    inputs = {i: run.data.tags.get(run_tags.INPUT + i, "") for i in ROWS[name].inputs}
    for step, run_id in inputs.items():
        if run_id and run_id not in there:
            earlier = lineage.find(run_id)
            if earlier is None or earlier.info.lifecycle_stage == lineage.DELETED:
                return f"its {step} {runs.deleted(run_id)}"
            if deleted := _deleted_behind(step, earlier, there):
                return deleted
    return ""


def _unfinished(run: "Run") -> str:
    reason = run.data.tags.get(run_tags.REASON)
    return f"run {run.info.run_id} of it is {run.info.status}" + (f": {reason}" if reason else "")


def damage(name: str, run: "Run") -> str:
    """What is missing from a step's artifacts or damaged in them, or from the model it logged; empty where all is as it
    was written.
    """
    fault = artifacts.damage(run.info.artifact_uri, ROWS[name].output)
    model = run.data.tags.get(run_tags.MODEL)
    if not fault and model:
        fault = logged_models.damage(model)
    return f"artifact {fault}" if fault else ""


def obtain(
    name: str,
    config: Config,
    built: "Mapping[str, Run]",
    launcher: launch.Launcher,
    valid: Valid = always,
    fresh: bool = False,
    label: str = "",
    more: Mapping[str, str] = MappingProxyType({}),
) -> Result:
    """Reuse a run that stands for a step, or run it, unless somebody else is about to: then wait, and look again.

    `more` are parameters of its entry point beside its inputs.
    """
    began, label, upstream = time.perf_counter(), label or name, upstream_keys(built)
    session = launcher.session
    look = partial(choose, session, name, config, upstream, valid, fresh, {run.info.run_id for run in built.values()})
    choice = look()
    if choice.run:
        return reuse(name, choice.run, choice, config, launcher, label)

    def say(line: str) -> None:
        session.say(f"{label}: {line}")

    with claims.claimed(
        choice.wanted.digest, launcher.parent.info.run_id, say, session.guard.pause, session.store.hurry_after
    ):
        choice = look()
        if choice.run is None:
            say(choice.line())
            given = {f"{i}_run": run.info.run_id for i, run in built.items()} | dict(more)
            run = launch.launch(name, given, launcher, choice.because)
            result = Result(run, False, time.perf_counter() - began)
            say(f"ran {run.info.run_id} in {result.seconds:.1f} s")
            return result
    return reuse(name, choice.run, choice, config, launcher, label)


def reuse(name: str, run: "Run", choice: Choice, config: Config, launcher: launch.Launcher, label: str) -> Result:
    """Let a run stand for a step, as chosen, with pages as they would be made now: under the parent appears a nested
    run that links to it.
    """
    line, source, parent, client = choice.line(), run.info, launcher.parent, mlflow.MlflowClient()
    launcher.session.say(f"{label}: {line}")
    if choice.pages:
        pages.renew(launcher.session, name, source.run_id, config, parent.info.run_id, label)
    tags = {
        MLFLOW_PARENT_RUN_ID: parent.info.run_id,
        MLFLOW_RUN_NOTE: f"Reuses [{source.run_name}](#/experiments/{source.experiment_id}/runs/{source.run_id}).",
        REUSED: source.run_id,
        run_tags.BECAUSE: line,
        run_tags.FIGURE: run.data.tags.get(run_tags.FIGURE, ""),
        **launch.origin(parent),
    }
    nested = client.create_run(parent.info.experiment_id, tags=tags, run_name=f"{label} (reused)")
    client.set_terminated(nested.info.run_id)
    return Result(run, True, 0.0)
