"""Run steps one after the other, each on top of the last, and tell what came of them."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.config import Config
from segpipe.errors import redact
from steps import cli
from steps.keys import STEPS

if TYPE_CHECKING:
    from mlflow.entities import Run

    from steps import chain


def run(config: Config, env_manager: str) -> None:
    """The whole chain under the active run."""
    began = time.perf_counter()
    results: dict[str, chain.Result] = {}
    advance(tuple(STEPS), config, results, env_manager)
    table(results, time.perf_counter() - began)
    champion(config.registry.model_name)


def advance(
    names: tuple[str, ...], config: Config, results: "dict[str, chain.Result]", env_manager: str, recipe: str = ""
) -> None:
    """Reuse or run the named steps on top of `results`, which grows. `recipe` is the artifact of the active run that
    holds the config, if it is not the run's own. Raises InputError where a step fails.
    """
    from segpipe import registry, tracking
    from steps import chain

    name = config.registry.model_name

    def still_champion(run: "Run") -> bool:
        holder = registry.holder(name)
        return run.data.tags.get("segpipe.champion", "") == (str(holder.version) if holder else "")

    for step in names:
        valid = still_champion if step == "register" else chain.always
        inputs = {i: results[i].run for i in STEPS[step].inputs}
        launcher = chain.Launcher(tracking.active(), env_manager, recipe or tracking.CONFIG)
        results[step] = chain.obtain(step, config, inputs, launcher, valid)
        cli.say(f"{step}: {results[step].told()}")
    tracking.tag(**{f"run.{step}": result.run.info.run_id for step, result in results.items()})


def table(results: "dict[str, chain.Result]", seconds: float) -> None:
    """Print what became of each step and its key figure."""
    from rich.table import Table

    from segpipe import tracking

    table = Table(caption=f"{seconds:.0f} s in all")
    for column in ("step", "run", "took", "key figure"):
        table.add_column(column, no_wrap=column != "key figure")
    for step, result in results.items():
        took = "reused" if result.reused else f"{result.seconds:.1f} s"
        table.add_row(step, result.run.info.run_id, took, result.run.data.tags.get(tracking.FIGURE, ""))
    cli.console().print(table)


def champion(name: str) -> None:
    """Print who is champion, and the commands that serve it and ask it."""
    from segpipe import registry

    holder = registry.holder(name)
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
    from segpipe import artifacts
    from segpipe.manifest import FILE, Manifest

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
