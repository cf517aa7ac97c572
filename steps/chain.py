"""How a step finds its inputs, is reused or is started."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe import artifacts, settings, sources, tracking
from segpipe.config import Config
from segpipe.errors import InputError, one_line
from steps import keys
from steps.keys import STEPS, Key

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Result:
    """What became of a step: its run, whether it was reused, why it ran, and the seconds it took here."""

    run: "Run"
    reused: bool
    because: str
    seconds: float

    def told(self) -> str:
        """What became of it, as a line."""
        return f"{'reused' if self.reused else 'ran'} {self.run.info.run_id}" + (
            "" if self.reused else f": because {self.because}"
        )


@dataclass(frozen=True)
class Launcher:
    """How a step that has to run is started: below which run, in which environment, and with which of that run's
    artifacts as its config.
    """

    parent: "Run"
    env_manager: str = "local"
    recipe: str = tracking.CONFIG


def upstream_keys(runs: dict[str, "Run"]) -> dict[str, str]:
    """The keys of finished runs, by step."""
    return {name: run.data.tags.get(tracking.KEY, run.info.run_id) for name, run in runs.items()}


def inputs(name: str, config: Config, given: dict[str, str]) -> dict[str, "Run"]:
    """The finished runs a step builds on: the given ones, checked; those they were built on; the others found by key or
    run first on top of these, as children of the active run. Raises InputError where given runs do not fit together.
    """
    runs: dict[str, Run] = {}
    for upstream in STEPS[name].inputs:
        chosen = given | {known: run.info.run_id for known, run in runs.items()}
        run_id = given.get(upstream) or _implied(upstream, given)
        if run_id:
            runs[upstream] = tracking.upstream(run_id, upstream)
        else:
            built_on = inputs(upstream, config, chosen)
            runs[upstream] = obtain(upstream, config, built_on, Launcher(tracking.active())).run
    for later, run in runs.items():
        for earlier in set(STEPS[later].inputs) & set(runs):
            _check_built_on(later, run, earlier, runs[earlier])
    return runs


def _check_built_on(later: str, run: "Run", earlier: str, chosen: "Run") -> None:
    actual = tracking.tag_of(run.info.run_id, f"{tracking.INPUT}{earlier}")
    if actual == chosen.info.run_id:
        return
    if tracking.tag_of(actual, tracking.KEY) != tracking.tag_of(chosen.info.run_id, tracking.KEY):
        raise InputError(
            f"{later}_run={run.info.run_id} was built on {earlier} run {actual}, not on {chosen.info.run_id}; "
            f"leave out {earlier}_run or give the one it was built on"
        )


def _implied(name: str, given: dict[str, str]) -> str | None:
    """The run of `name` that a given run further down was built on."""
    for other, run_id in given.items():
        if run_id and name in STEPS[other].inputs:
            return tracking.upstream(run_id, other).data.tags.get(f"{tracking.INPUT}{name}")
    return None


def always(_run: "Run") -> bool:
    """A finished run with the right key stays valid."""
    return True


def obtain(
    name: str,
    config: Config,
    runs: dict[str, "Run"],
    launcher: Launcher,
    valid: Callable[["Run"], bool] = always,
) -> Result:
    """Reuse a finished, whole and still valid run of a step with the right key, or run the step."""
    began = time.perf_counter()
    wanted = keys.key(name, config, upstream_keys(runs))
    known = tracking.finished(name, wanted.digest)
    for run in known:
        if artifacts.has(run.info.run_id, STEPS[name].output) and valid(run):
            return Result(run, True, "", time.perf_counter() - began)
    because = f"what run {known[0].info.run_id} left is gone or overtaken" if known else reason(name, config, wanted)
    run = launch(name, {f"{i}_run": run.info.run_id for i, run in runs.items()}, launcher, because)
    return Result(run, False, because, time.perf_counter() - began)


def reason(name: str, config: Config, wanted: Key) -> str:
    """What differs from the newest finished run of the step, in words."""
    earlier = tracking.finished(name)
    if not earlier:
        return "it has not run before"
    return ", ".join(differences(earlier[0], config, wanted)) or "it was asked for"


def differences(run: "Run", config: Config, wanted: Key) -> list[str]:
    """What differs between how a run was made and what is wanted now, in words."""
    known, params = json.loads(run.data.tags.get(tracking.PARTS, "{}")), run.data.params
    now = settings.flat(config)
    said = []
    for part in (part for part in wanted.parts if known.get(part) != wanted.parts[part]):
        section = part.removeprefix("config ")
        knobs = (
            [k for k in now if k.split(".")[0] == section and k not in keys.WITHOUT_EFFECT] if section != part else []
        )
        differing = [k for k in knobs if params.get(f"cfg.{k}") != now[k]]
        said += [f"{k} {params.get(f'cfg.{k}')} -> {now[k]}" for k in differing] or [f"{part} changed"]
    return said


def _python_on_path() -> None:
    """MLproject's commands say `python`: make that this interpreter, whether its environment is activated or not."""
    folder, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, path])


def launch(name: str, parameters: dict[str, str], launcher: Launcher, because: str) -> "Run":
    """Run a step as an MLflow Projects process nested under the launcher's run, and wait for it.

    It gets the URI of its config and its inputs' run IDs, no local path. Raises InputError with the step's own reason
    where it fails.
    """
    import mlflow
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    parent, client = launcher.parent.info, mlflow.MlflowClient()
    _python_on_path()
    tags = {MLFLOW_PARENT_RUN_ID: parent.run_id, tracking.STEP: name, tracking.BECAUSE: because}
    origin = client.get_run(parent.run_id).data.tags.items()
    tags |= {key: value for key, value in origin if key.startswith(("mlflow.source.", "mlflow.user"))}
    run_id = client.create_run(parent.experiment_id, tags=tags, run_name=name).info.run_id
    why = "it was interrupted"
    try:
        mlflow.projects.run(
            str(sources.PROJECT),
            entry_point=name,
            parameters={"config": f"runs:/{parent.run_id}/{launcher.recipe}", **parameters},
            experiment_id=parent.experiment_id,
            run_id=run_id,
            env_manager=launcher.env_manager,
        )
    except Exception as error:  # whatever MLflow can't start a process for: no conda, a failed build, no shell
        why = one_line(error)
    finally:
        run = client.get_run(run_id)
        if tracking.CONTINUED in run.data.tags:
            run_id = run.data.tags[tracking.CONTINUED]
            run = client.get_run(run_id)
        why = run.data.tags.get(tracking.REASON, why)
        if run.info.status != "FINISHED":
            client.set_tag(run_id, tracking.REASON, why)
        if run.info.status == "RUNNING":
            client.set_terminated(run_id, "FAILED")
    if run.info.status != "FINISHED":
        raise InputError(f"{name} failed (run {run_id}): {why}")
    return run
