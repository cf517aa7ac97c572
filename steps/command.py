"""The command line that all entry points share: every knob, one line for an error, one MLflow run."""

import atexit
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.errors import FaultsError, InputError, SegpipeError, UsageError, one_line
from segpipe.orchestration import preconditions
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import ROWS
from segpipe.runtime import cores, processes
from segpipe.runtime.signals import Interrupted
from segpipe.tracking import connection
from steps import knob_help
from steps.terminal import Terminal

DEFAULT_RECIPE, RECIPE = "configs/phantom.yaml", "segpipe.yaml"
SIGNALLED = 128
Body = Callable[..., str]
BuildOn = Callable[[Session, Config, Collection[str]], tuple[Config, dict[str, str]]]


def options() -> list[click.Parameter]:
    """`--config` and one option for every knob."""
    recipe = click.Option(
        ["--config", "recipe"],
        metavar="FILE",
        default="",
        help="YAML recipe: what differs from the defaults; a path or runs:/ID/PATH."
        f"  [default: {RECIPE} of this folder, else {DEFAULT_RECIPE}, for real data none]",
    )
    knobs: list[click.Parameter] = [
        click.Option([f"--{knob}", knob.replace(".", "__")], default=None, hidden=True) for knob in settings.knobs()
    ]
    offline = click.Option(
        ["--no-mlflow", "tracking__enabled"], flag_value="false", default=None, help="same as --tracking.enabled false"
    )
    return [recipe, offline, *knobs]


def overrides(values: Mapping[str, Any]) -> dict[str, str]:
    """The knobs given on the command line, by dotted name."""
    found = {knob: values.get(knob.replace(".", "__")) for knob in settings.knobs()}
    return {knob: value for knob, value in found.items() if value is not None}


def _help_all(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked:
        formatter = ctx.make_formatter()
        knob_help.write_all(formatter)
        click.echo(formatter.getvalue().rstrip())
        ctx.exit()


HELP_ALL = click.Option(
    ["--help-all"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_help_all,
    help="Show each knob with its meaning, the values it takes and its default.",
)


@contextmanager
def refusing() -> Iterator[None]:
    """Inside, nothing has run yet: what goes wrong ends the command as a wrong command line does."""
    try:
        yield
    except SegpipeError as error:
        error.exit_code = UsageError.exit_code
        raise


def named(session: Session, recipe: str, values: Mapping[str, Any]) -> tuple[Path | None, dict[str, str]]:
    """The recipe on this machine, if there is one, and the knobs of a command line; data.format as the folder looks,
    where only data.root is given, which is told. Raises SegpipeError, with the exit code of a wrong command line.
    """
    from segpipe.files import project

    with refusing():
        if recipe.startswith("runs:/"):
            from segpipe.tracking import artifacts

            session.store.connect()
            recipe = str(artifacts.local(recipe))
        if not recipe and Path(RECIPE).is_file():
            session.say(f"using {RECIPE} of this folder; --config FILE takes another recipe")
            recipe = str(Path(RECIPE).resolve())
        knobs = overrides(values)
        if knobs.get("data.root") and "data.format" not in {*knobs, *settings.names(recipe)}:
            from segpipe.data.readers import description, detect

            knobs["data.format"] = detect(knobs["data.root"])
            with suppress(InputError, UsageError):  # what is wrong is told where it is used
                session.say(description.describe(settings.unplanned(Path(recipe) if recipe else None, knobs)))
        simulated = knobs.get("data.format", "phantom") == "phantom"
        return Path(recipe) if recipe else project.PROJECT / DEFAULT_RECIPE if simulated else None, knobs


def unplanned(session: Session, values: Mapping[str, Any]) -> Config:
    """The Config of the knobs alone, as far as it is known before a plan. Raises SegpipeError, as `resolve` does."""
    found, knobs = named(session, "", values)
    with refusing():
        return settings.unplanned(found, knobs)


def resolve(session: Session, recipe: str, values: Mapping[str, Any]) -> Config:
    """The Config of a command line. Raises SegpipeError, with the exit code of a wrong command line."""
    found, knobs = named(session, recipe, values)
    with refusing():
        return settings.load(found, knobs)


def step(
    name: str,
    elsewhere: Callable[..., bool] | None = None,
    more: tuple[click.Parameter, ...] = (),
    build_on: BuildOn | None = None,
) -> Callable[[Body], click.Command]:
    """Make `body(session, config, **run IDs of its inputs) -> key figure` an entry point. Its config is
    narrowed to what the step table declares.

    An input that is not given on the command line is found by its key, or run first; where none is given, `build_on`
    may find them, and a config for them. `elsewhere(session, config)` may do the work without a run of MLflow and say
    so. It and the body get the values of the parameters in `more`, by name.
    """
    inputs = ROWS[name].inputs

    def decorate(body: Body) -> click.Command:
        upstream: list[click.Parameter] = [
            click.Option(
                [f"--{i}-run", f"{i}_run"], default="", metavar="RUN_ID", help=f"run ID of {i}; empty: find or run it"
            )
            for i in inputs
        ]

        @click.pass_obj
        def callback(session: Session, /, recipe: str, **values: Any) -> None:
            given = {i: values.pop(f"{i}_run") for i in inputs}
            asked = {str(p.name): values.pop(str(p.name)) for p in more}
            found, knobs = named(session, recipe, values)
            with refusing():
                config = settings.load(found, knobs)
                preconditions.check(name, config)
            if elsewhere is not None and elsewhere(session, config, **asked):
                return
            if not config.tracking.enabled:
                raise UsageError(f"{name} needs MLflow; without it (--no-mlflow) there are preprocess and train")
            if build_on and not any(given.values()):
                config, given = build_on(session, config, {*knobs, *settings.names(recipe and found)})
            _run(session, name, config, given, partial(body, **asked))

        own = {section.partition(".")[0] for section in (*ROWS[name].sections, "tracking")}
        params = [*more, *upstream, *options()]
        return Command(name, callback=callback, params=params, help=body.__doc__, sections=own)

    return decorate


def perform(name: str, arguments: list[str], session: Session) -> None:
    """Run a step in this process. Raises UsageError for what its command line refuses, and what the step raises."""
    command: click.Command = import_module(f"steps.{name}").main
    try:
        with command.make_context(name, arguments, obj=session) as context:
            command.invoke(context)
    except click.ClickException as error:
        raise UsageError(error.format_message()) from None


def _run(session: Session, name: str, config: Config, given: dict[str, str], body: Body) -> None:
    from segpipe.orchestration import chain, keys
    from segpipe.tracking import runs

    with recorded(session, name, config):
        built_on = chain.inputs(session, name, config, given)
        run_ids = {i: run.info.run_id for i, run in built_on.items()}
        key = session.keys.key(name, config, chain.upstream_keys(built_on))
        runs.tag(key=key.digest, parts=key.text(), **{f"input.{i}": run_id for i, run_id in run_ids.items()})
        runs.log_text(session.keys.made_of(name, config), keys.MADE_OF)
        runs.tag(work_began=str(round(time.time() * 1000)))
        figure = body(session, ROWS[name].narrowed(config), **run_ids)
        runs.tag(session.store.sender, figure=figure)
        session.say(f"{name}: {figure}")
        _show_page(session, name)


def _show_page(session: Session, name: str) -> None:
    """Say where the artifact is that a person looks at first, if this machine or the server has it."""
    from segpipe.tracking import artifacts, runs

    run, page = runs.active(), ROWS[name].page
    if session.store.sender is None and artifacts.has(run.info.run_id, page):
        session.say(f"{name}: see {artifacts.place(run, page)}")


@contextmanager
def recorded(session: Session, name: str, config: Config) -> Iterator[None]:
    """The run of a step, with its log, after what earlier ones left RUNNING has been ended."""
    from segpipe.orchestration import orphans, step_log
    from segpipe.tracking import runs

    session.store.connect()
    orphans.reap(session.say)
    with (
        runs.run(session.store, name, config),
        step_log.keeping(name, config.tracking.outputs, session.say, session.store) as session.log,
    ):
        yield


class Command(click.Command):
    """A command whose every failure is one line on stderr and an exit code that says what it was. Callbacks get what it
    remembers, a Session, by `click.pass_obj`. Its help names the knobs of some `sections`, or of all.
    """

    def __init__(self, *args: Any, sections: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        if any(option.name == "recipe" for option in self.params):
            self.params.append(HELP_ALL)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, and the names of the knobs."""
        super().format_options(ctx, formatter)
        if HELP_ALL in self.params:
            with formatter.section("Knobs: --SECTION.NAME VALUE"):
                formatter.write(knob_help.names(self.sections, formatter.width) + "\n")

    def main(self, *args: Any, **kwargs: Any) -> Any:
        gc.set_threshold(10_000, 10, 10)  # what is imported stays: looking for garbage in it takes tenths of a second
        cores.share()
        terminal = Terminal()
        session = Session(terminal)
        session.signals.install()
        if "RANK" not in os.environ and not {"--help", "--help-all"} & {
            *(args[0] if args and args[0] else sys.argv[1:])
        }:
            terminal.wait(f"{self.name}: starting")  # of several processes of a training one is watched
        end_with_driver()
        try:
            super().main(*args, **kwargs | {"standalone_mode": False, "obj": session})
        except (Exception, KeyboardInterrupt) as error:
            met = error.__cause__ or KeyboardInterrupt() if isinstance(error, click.Abort) else error
            _note(session, str(self.name), met)
            _leave(session, kwargs.get("prog_name") or f"segpipe {self.name}", met)
        finally:
            terminal.close()
            atexit.register(session.signals.ignore)


def reason(error: BaseException) -> str:
    """Why a command ends, as a line."""
    return error.format_message() if isinstance(error, click.UsageError) else connection.reason(error)


def exit_code(error: BaseException) -> int:
    """128 + the signal's number for an interrupt, 2 for bad usage, else 1."""
    match error:
        case Interrupted():
            return SIGNALLED + error.number
        case KeyboardInterrupt():
            return SIGNALLED + signal.SIGINT
        case click.UsageError():
            return UsageError.exit_code
        case SegpipeError():
            return error.exit_code
        case _:
            return SegpipeError.exit_code


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


def _note(session: Session, step: str, error: BaseException) -> None:
    """End the run that was opened for this process and has not begun."""
    if "MLFLOW_RUN_ID" not in os.environ:
        return
    from segpipe.tracking import runs

    try:
        runs.end_given_run(session.store, step, error, reason(error))
    except Exception as second:  # the reason itself is told either way
        session.say(f"(not noted on the run: {one_line(second)})")


def _leave(session: Session, command: str, error: BaseException) -> None:
    for more in getattr(error, "__notes__", []):
        session.say(f"({more})")
    if isinstance(error, FaultsError) and len(error.faults) > 1:
        for fault in error.faults:
            session.say(f"- {fault}")
    session.say(f"{command}: {reason(error)}")
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # where torchrun looks for what became of a process
        told = {"message": reason(error), "timestamp": int(time.time()), "type": type(error).__name__}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(told), encoding="utf-8")
    sys.exit(exit_code(error))
