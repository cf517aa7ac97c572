"""Run steps one after the other, each on top of the last, and tell what came of them."""

import os
import shlex
import sys
import time
from pathlib import Path

import mlflow
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from segpipe.config.sections import Config
from segpipe.data.manifest import FILE, Manifest
from segpipe.errors import redact
from segpipe.files import project
from segpipe.orchestration import chain, plan
from segpipe.orchestration.launch import Launcher
from segpipe.orchestration.plan import Asked
from segpipe.orchestration.screen import Column, Screen, Table
from segpipe.orchestration.step_table import ROWS, STEPS
from segpipe.registry import champions
from segpipe.tracking import artifacts, run_tags, runs


def run(launcher: Launcher, config: Config, asked: Asked, results: dict[str, chain.Result]) -> None:
    """The chain, or the part that is asked for, below the launcher's run; `results` has the plan if there is one."""
    began = time.perf_counter()
    advance(asked.names, config, results, launcher, asked)
    describe(results)
    show(launcher.session.screen, results, time.perf_counter() - began)
    show_pages(launcher.session.screen, results)
    if "register" in results:
        show_champion(launcher.session.screen, config.registry.model_name)


def advance(
    names: tuple[str, ...], config: Config, results: dict[str, chain.Result], launcher: Launcher, asked: Asked
) -> None:
    """Reuse or run the named steps on top of `results`, which grows. Raises StepError where a step fails."""
    kept = plan.taken(launcher.session, config, asked.start)
    for step in names:
        if (choice := kept.get(step)) and choice.run:
            results[step] = chain.reuse(step, choice.run, choice, config, launcher, step)
            continue
        inputs = {i: results[i].run for i in STEPS[step].inputs}
        results[step] = chain.obtain(
            step, config, inputs, launcher, plan.validity(launcher.session, step, config), asked.anew(step)
        )
    runs.tag(**{f"run.{step}": result.run.info.run_id for step, result in results.items()})


def describe(results: dict[str, chain.Result]) -> None:
    """Let the active run, the parent of the steps, carry the test metrics, and link to each step with its key figure
    and the page to look at.
    """
    if "evaluate" in results:
        measured = results["evaluate"].run.data.metrics
        mlflow.log_metrics({name: value for name, value in measured.items() if name.startswith("test_")})
    lines = []
    for step, result in results.items():
        info = result.run.info
        link = f"#/experiments/{info.experiment_id}/runs/{info.run_id}"
        figure = result.run.data.tags.get(run_tags.FIGURE, "")
        page = f"[{ROWS[step].page}]({link}/artifacts/{ROWS[step].page})"
        lines.append(f"- [{step}]({link}){' (reused)' if result.reused else ''}: {figure}; {page}")
    mlflow.set_tag(MLFLOW_RUN_NOTE, "\n".join(lines))


def show_pages(screen: Screen, results: dict[str, chain.Result]) -> None:
    """Show where the report is, and the command that shows all runs."""
    last = next((step for step in ("register", "evaluate") if step in results), None)
    if last:
        screen.answer(f"Report: {artifacts.place(results[last].run, ROWS[last].page)}")
    uri = redact(os.environ["MLFLOW_TRACKING_URI"])
    screen.answer(f"All runs: {uri if uri.startswith('http') else f'mlflow ui --backend-store-uri {shlex.quote(uri)}'}")


def show(screen: Screen, results: dict[str, chain.Result], seconds: float) -> None:
    """Show what became of each step and its key figure."""
    columns = (Column("step"), Column("run"), Column("took"), Column("key figure", wrap=True))
    rows = [
        (
            step,
            result.run.info.run_id,
            "reused" if result.reused else f"{result.seconds:.1f} s",
            result.run.data.tags.get(run_tags.FIGURE, ""),
        )
        for step, result in results.items()
    ]
    screen.show(Table(columns, rows, caption=f"{seconds:.0f} s in all"))


def show_champion(screen: Screen, name: str) -> None:
    """Show who is champion, and the commands that serve it and ask it."""
    holder = champions.holder(name)
    if holder is None:
        screen.answer(f"No champion of '{name}' yet: no model has passed the gate.")
        return
    environment = Path(sys.prefix) / "bin" / "activate"
    activate = f"  source {shlex.quote(str(environment))}\n" if environment.is_file() else ""
    dice, low, high = run_tags.dice_of(holder.tags)
    store = shlex.quote(redact(os.environ["MLFLOW_TRACKING_URI"]))
    screen.answer(
        f"Champion: {name} version {holder.version}, test Dice {dice:.3f} [{low:.3f}, {high:.3f}]\n\n"
        f"Serve it:\n{activate}  {project.called('serve')} --registry.model_name {shlex.quote(name)}\n"
        f"or with MLflow's own server:\n  MLFLOW_TRACKING_URI={store} \\\n"
        f"  mlflow models serve -m {shlex.quote(f'models:/{name}@champion')} --env-manager local -p 5001\n"
        f"Ask it:\n{_request(holder.tags.get('preprocess_run', ''))}"
    )


def _request(preprocess: str) -> str:
    """Shell lines that send a test case's own files to the server, with nothing but base64 and curl."""
    if not artifacts.has(preprocess, f"dataset/{FILE}"):
        return "  (the dataset it was measured on is no longer in the store)"
    manifest = Manifest.read(artifacts.local(f"runs:/{preprocess}/dataset/{FILE}"))
    case = max(manifest.of("test"), key=lambda c: (sum(c.voxels.values()), c.case))
    paths = [Path(manifest.root) / name for name in case.files]
    if not all(path.is_file() for path in paths):
        return f"  (the raw files of test case {case.case} are not on this machine: {manifest.root})"
    columns = manifest.channels if len(paths) > 1 else ("image",)
    record = ",".join(f'"{name}":"%s"' for name in columns)
    files = " \\\n    ".join(f'"$(base64 -w0 {shlex.quote(str(path))})"' for path in paths)
    return (
        f'  printf \'{{"dataframe_records":[{{{record}}}],"params":{{"output":"none"}}}}\' \\\n    {files} \\\n'
        "  | curl -s -H 'Content-Type: application/json' --data-binary @- http://127.0.0.1:5001/invocations"
    )
