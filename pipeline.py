"""The whole chain: preprocess, train, evaluate, register, as nested runs of one parent."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from segpipe.config import Config
from segpipe.errors import InputError, redact
from steps import cli

if TYPE_CHECKING:
    from mlflow.entities import Run

    from steps import chain

HELP = """Take a folder of images and masks to a promoted model: preprocess, train, evaluate, register.

Each step is a process of its own, started through MLflow Projects and nested under one parent run. A step whose config,
code, requirements, inputs and raw data are those of a finished run is not run again.
"""


def callback(recipe: str, env_manager: str, **values: str | None) -> None:
    """Resolve the config, run the chain, print what came of it."""
    try:
        config = cli.resolve(recipe, values)
    except InputError as error:
        raise cli.Refused(str(error)) from None
    from segpipe import tracking

    tracking.connect()
    with tracking.run("pipeline", config):
        _chain(config, env_manager)


def _chain(config: Config, env_manager: str) -> None:
    from segpipe import registry, tracking
    from steps import chain

    name = config.registry.model_name

    def still_champion(run: "Run") -> bool:
        holder = registry.holder(name)
        return run.data.tags.get("segpipe.champion", "") == (str(holder.version) if holder else "")

    began = time.perf_counter()
    results: dict[str, chain.Result] = {}
    runs: dict[str, Run] = {}
    for step in chain.STEPS.values():
        valid = still_champion if step.name == "register" else chain.always
        inputs = {i: runs[i] for i in step.inputs}
        result = chain.obtain(step.name, config, inputs, env_manager, valid)
        results[step.name], runs[step.name] = result, result.run
        verb = "reused" if result.reused else "ran"
        because = "" if result.reused else f": because {result.because}"
        click.echo(f"{step.name}: {verb} {result.run.info.run_id}{because}", err=True)
    tracking.tag(**{f"run.{step}": run.info.run_id for step, run in runs.items()})
    _table(results, time.perf_counter() - began)
    _champion(name)


def _table(results: "dict[str, chain.Result]", seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from segpipe import tracking

    table = Table(caption=f"{seconds:.0f} s in all")
    for column in ("step", "run", "took", "key figure"):
        table.add_column(column, no_wrap=column != "key figure")
    for step, result in results.items():
        took = "reused" if result.reused else f"{result.seconds:.1f} s"
        table.add_row(step, result.run.info.run_id, took, result.run.data.tags.get(tracking.FIGURE, ""))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _champion(name: str) -> None:
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
    from segpipe import tracking
    from segpipe.manifest import FILE, Manifest

    if not tracking.has_artifact(preprocess, f"dataset/{FILE}"):
        return "  (the dataset it was measured on is no longer in the store)"
    manifest = Manifest.read(tracking.local(f"runs:/{preprocess}/dataset/{FILE}"))
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


def command() -> click.Command:
    """The command line of the chain: the steps' knobs and the environment manager handed on to every step."""
    manager = click.Option(
        ["--env-manager"],
        type=click.Choice(["local", "uv", "virtualenv", "conda"]),
        default="local",
        show_default=True,
        help="environment that MLflow Projects runs each step in",
    )
    return cli.Command("pipeline", callback=callback, params=[manager, *cli.options()], help=HELP)


if __name__ == "__main__":
    command().main()
