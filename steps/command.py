"""The command line that all entry points share: every knob, one line for an error, one MLflow run."""

import atexit
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.errors import InputError, one_line
from segpipe.runtime import processes, signals
from segpipe.tracking import connection

if TYPE_CHECKING:
    from rich.console import Console

gc.set_threshold(10_000, 10, 10)  # what is imported stays: looking for garbage in it takes some tenths of a second

DEFAULT_RECIPE = "configs/phantom.yaml"
BAD_USAGE, FAILED, SIGNALLED = 2, 1, 128
Body = Callable[..., str]


def options() -> list[click.Parameter]:
    """`--config` and one option for every knob."""
    recipe = click.Option(
        ["--config", "recipe"],
        metavar="FILE",
        default="",
        help="YAML recipe: what differs from the defaults; a path or runs:/ID/PATH."
        f"  [default: {DEFAULT_RECIPE}, for real data none]",
    )
    knobs: list[click.Parameter] = [
        click.Option(
            [f"--{knob.name}", knob.name.replace(".", "__")],
            metavar=f"[{knob.allowed}]",
            default=None,
            help=f"{knob.description}  [default: {knob.default or 'empty'}]",
        )
        for knob in settings.knobs().values()
    ]
    offline = click.Option(
        ["--no-mlflow", "tracking__enabled"], flag_value="false", default=None, help="same as --tracking.enabled false"
    )
    return [recipe, offline, *knobs]


def overrides(values: dict[str, Any]) -> dict[str, str]:
    """The knobs given on the command line, by dotted name."""
    return {name.replace("__", "."): value for name, value in values.items() if value is not None}


def resolve(recipe: str, values: dict[str, Any]) -> Config:
    """The Config of a command line. Raises InputError."""
    from segpipe.files import project

    if recipe.startswith("runs:/"):
        from segpipe.tracking import artifacts, connection

        connection.connect()
        recipe = str(artifacts.local(recipe))
    simulated = values.get("data__format") in (None, "phantom")
    return settings.load(recipe or (project.PROJECT / DEFAULT_RECIPE if simulated else None), overrides(values))


def step(
    name: str,
    inputs: tuple[str, ...] = (),
    elsewhere: Callable[..., bool] | None = None,
    more: tuple[click.Parameter, ...] = (),
) -> Callable[[Body], click.Command]:
    """Make `body(config, **run IDs of its inputs) -> key figure` an entry point.

    An input that is not given on the command line is found by its key, or run first. `elsewhere(config)` may do the
    work without a run of MLflow and say so. Both get the values of the parameters in `more`, by name.
    """

    def decorate(body: Body) -> click.Command:
        upstream: list[click.Parameter] = [
            click.Option(
                [f"--{i}-run", f"{i}_run"], default="", metavar="RUN_ID", help=f"run ID of {i}; empty: find or run it"
            )
            for i in inputs
        ]

        def callback(recipe: str, **values: Any) -> None:
            given = {i: values.pop(f"{i}_run") for i in inputs}
            asked = {str(p.name): values.pop(str(p.name)) for p in more}
            try:
                config = resolve(recipe, values)
            except InputError as error:
                raise Refused(str(error)) from None
            if elsewhere is not None and elsewhere(config, **asked):
                return
            if not config.tracking.enabled:
                raise Refused(f"{name} needs MLflow; without it (--no-mlflow) there are preprocess and train")
            _run(name, config, given, partial(body, **asked))

        return Command(name, callback=callback, params=[*more, *upstream, *options()], help=body.__doc__)

    return decorate


def _run(name: str, config: Config, given: dict[str, str], body: Body) -> None:
    from segpipe.orchestration import chain, keys
    from segpipe.tracking import runs

    with recorded(name, config):
        built_on = chain.inputs(name, config, given)
        key = keys.key(name, config, chain.upstream_keys(built_on))
        runs.tag(key=key.digest, parts=key.text(), **{f"input.{i}": run.info.run_id for i, run in built_on.items()})
        runs.log_text(keys.made_of(name, config), keys.MADE_OF)
        runs.tag(work_began=str(round(time.time() * 1000)))
        runs.tag(figure=body(config, **{i: run.info.run_id for i, run in built_on.items()}))


@contextmanager
def recorded(name: str, config: Config) -> Iterator[None]:
    """The run of a step, with its log, after what earlier ones left RUNNING has been ended."""
    from segpipe.orchestration import orphans, step_log
    from segpipe.tracking import connection, runs

    connection.connect()
    orphans.reap(say)
    with runs.run(name, config), step_log.keeping(name, config):
        yield


class Refused(click.UsageError):
    """A knob or recipe is wrong: nothing has run, exit code 2."""


class Command(click.Command):
    """A command whose every failure is one line on stderr and an exit code that says what it was."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        signals.install()
        end_with_driver()
        kwargs["standalone_mode"] = False
        try:
            super().main(*args, **kwargs)
            atexit.register(signals.ignore)
        except (Exception, KeyboardInterrupt) as error:
            met = error.__cause__ or KeyboardInterrupt() if isinstance(error, click.Abort) else error
            _note(met)
            _leave(self.name, met)


def reason(error: BaseException) -> str:
    """Why a command ends, as a line."""
    match error:
        case click.UsageError():
            return error.format_message()
        case InputError():
            return str(error)
        case KeyboardInterrupt():
            return str(error) or "interrupted"
        case _:
            return f"{type(error).__name__}: {connection.told(error)}"


def exit_code(error: BaseException) -> int:
    """128 + the signal's number for an interrupt, 2 for bad usage, else 1."""
    match error:
        case signals.Interrupted():
            return SIGNALLED + error.number
        case KeyboardInterrupt():
            return SIGNALLED + signal.SIGINT
        case click.UsageError():
            return BAD_USAGE
        case _:
            return FAILED


def end_with_driver() -> None:
    """End as on SIGTERM once the process that $SEGPIPE_DRIVER names, PID:STARTED on this machine, is gone."""
    pid, _, started = os.environ.get(processes.DRIVER, "").partition(":")
    driver = {**processes.here(), processes.PID: pid, processes.STARTED: started}

    def watch() -> None:
        while processes.alive(driver):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if pid:
        threading.Thread(target=watch, daemon=True).start()


def _note(error: BaseException) -> None:
    """End the run that was opened for this process and has not begun."""
    if "MLFLOW_RUN_ID" not in os.environ:
        return
    from segpipe.tracking import runs

    try:
        runs.end_given_run(error, reason(error))
    except Exception as second:  # the reason itself is told either way
        say(f"(not noted on the run: {one_line(second)})")


def _leave(name: str | None, error: BaseException) -> None:
    for more in getattr(error, "__notes__", []):
        say(f"({more})")
    say(f"segpipe {name}: {reason(error)}")
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # where torchrun looks for what became of a process
        content = json.dumps({"message": reason(error), "timestamp": int(time.time())})
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(content, encoding="utf-8")
    sys.exit(exit_code(error))


def progress(label: str) -> Callable[[int, int, str], None]:
    """A callback taking (done, total, item): a bar on a terminal, otherwise a line at each tenth."""
    from rich.console import Console
    from rich.progress import Progress

    if not sys.stderr.isatty():

        def line(done: int, total: int, item: str) -> None:
            if done == total or done * 10 // total > (done - 1) * 10 // total:
                click.echo(f"{label}: {done}/{total} {item}", err=True)

        return line
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(label)
    atexit.register(bar.stop)

    def advance(done: int, total: int, item: str) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, description=f"{label} {item}")
        if done == total:
            bar.stop()

    return advance


def console() -> "Console":
    """Where tables go: as wide as the terminal, 160 characters in a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def say(text: str) -> None:
    """A line for the person who watches."""
    click.echo(text, err=True)
