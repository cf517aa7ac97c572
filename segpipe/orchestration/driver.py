"""Run steps one after the other, each on top of the last, and tell what came of them."""

import os
import shlex
import sys
import time
from pathlib import Path

import click

from segpipe.config.sections import Config
from segpipe.data.manifest import FILE, Manifest
from segpipe.errors import redact
from segpipe.orchestration import chain, keys, launch, plan
from segpipe.orchestration.plan import Asked
from segpipe.registry import champions
from segpipe.tracking import artifacts, run_tags, runs
from steps import command


def run(config: Config, how: launch.How, asked: Asked) -> None:
    """The chain, or the part that is asked for, under the active run."""
    began = time.perf_counter()
    results: dict[str, chain.Result] = {}
    advance(asked.names, config, results, how, asked)
    table(results, time.perf_counter() - began)
    if "register" in results:
        champion(config.registry.model_name)


def advance(
    names: tuple[str, ...],
    config: Config,
    results: dict[str, chain.Result],
    how: launch.How,
    asked: Asked,
    recipe: str = runs.CONFIG,
) -> None:
    """Reuse or run the named steps on top of `results`, which grows. `recipe` is the artifact of the active run that
    holds the config, if it is not the run's own. Raises InputError where a step fails.
    """
    launcher = launch.Launcher(runs.active(), how, recipe)
    kept = plan.taken(config, asked.start)
    for step in names:
        if (choice := kept.get(step)) and choice.run:
            results[step] = chain.reuse(choice.run, choice.told(), launcher, step)
            continue
        inputs = {i: results[i].run for i in keys.STEPS[step].inputs}
        results[step] = chain.obtain(step, config, inputs, launcher, plan.validity(step, config), asked.anew(step))
    runs.tag(**{f"run.{step}": result.run.info.run_id for step, result in results.items()})


def table(results: dict[str, chain.Result], seconds: float) -> None:
    """Print what became of each step and its key figure."""
    from rich.table import Table

    table = Table(caption=f"{seconds:.0f} s in all")
    for column in ("step", "run", "took", "key figure"):
        table.add_column(column, no_wrap=column != "key figure")
    for step, result in results.items():
        took = "reused" if result.reused else f"{result.seconds:.1f} s"
        table.add_row(step, result.run.info.run_id, took, result.run.data.tags.get(run_tags.FIGURE, ""))
    command.console().print(table)


def champion(name: str) -> None:
    """Print who is champion, and the commands that serve it and ask it."""
    holder = champions.holder(name)
    if holder is None:
        click.echo(f"No champion of '{name}' yet: no model has passed the gate.")
        return
    environment = Path(sys.prefix) / "bin" / "activate"
    activate = f"  source {shlex.quote(str(environment))}\n" if environment.is_file() else ""
    dice, low, high = (float(holder.tags.get(f"test_dice{end}", "nan")) for end in ("", "_ci_low", "_ci_high"))
    click.echo(
        f"Champion: {name} version {holder.version}, test Dice {dice:.3f} [{low:.3f}, {high:.3f}]\n\n"
        f"Serve it:\n{activate}  MLFLOW_TRACKING_URI={shlex.quote(redact(os.environ['MLFLOW_TRACKING_URI']))} \\\n"
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
        f"  printf '{{\"dataframe_records\":[{{{record}}}]}}' \\\n    {files} \\\n"
        "  | curl -s -H 'Content-Type: application/json' --data-binary @- http://127.0.0.1:5001/invocations"
    )
