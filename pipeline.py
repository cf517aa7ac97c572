"""The whole chain, a comparison of models, or a model once more, as nested runs of one parent."""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import click

from segpipe.errors import UsageError
from segpipe.orchestration.session import Session
from segpipe.orchestration.step_table import STEPS
from steps import command as commands

if TYPE_CHECKING:
    from segpipe.config.sections import Config
    from segpipe.orchestration import launch
    from segpipe.orchestration.chain import Choice
    from segpipe.orchestration.plan import Asked
    from segpipe.orchestration.planning import Given

HELP = """Take a folder of images and masks to a promoted model: preprocess, train, evaluate, register.

`compare` trains every combination that the knobs compare.* name, `federate` at each site of the data set alone, on all
cases together, and with each federated strategy. Both rank them, and go on with the best.

`reproduce MODEL` (models:/NAME@champion, models:/NAME/VERSION, or the run ID of an evaluation) runs a model's recorded
steps once more, in an experiment of their own, and tells what differs; of the knobs it takes data.root and
tracking.experiment.

Each step is a process of its own, nested under one parent run. A step whose config, code, requirements, inputs and raw
data are those of a finished run is not run again; --plan tells what would run, and why.
"""
FLAGS: tuple[click.Parameter, ...] = (
    click.Argument(["what"], type=click.Choice(["pipeline", "compare", "federate", "reproduce"]), default="pipeline"),
    click.Argument(["model"], default=""),
    click.Option(["--plan", "only_plan"], is_flag=True, help="tell what would run, and why; run nothing"),
    click.Option(
        ["--fresh"],
        is_flag=False,
        flag_value="all",
        default=None,
        type=click.Choice(["all", *STEPS]),
        metavar="[STEP]",
        help="run all steps, or STEP and those after it, anew",
    ),
    click.Option(
        ["--from", "start"],
        default=None,
        type=click.Choice([*STEPS]),
        help="take the steps before this one as they are, whatever became of their code since",
    ),
    click.Option(["--until"], default=None, type=click.Choice([*STEPS]), help="the last step"),
    click.Option(["--run-name"], default="", help="name of the parent run"),
    click.Option(["--experiment", "tracking__experiment"], default=None, help="same as --tracking.experiment"),
    click.Option(["--in-process"], is_flag=True, help="run the steps in this process"),
    click.Option(
        ["--env-manager"],
        type=click.Choice(["local", "uv", "virtualenv", "conda"]),
        default="local",
        show_default=True,
        help="environment that each step runs in",
    ),
    click.Option(
        ["--backend"],
        default="local",
        show_default=True,
        metavar="NAME",
        help="where each step runs: local, kubernetes, databricks, or a plugin",
    ),
    click.Option(["--backend-config"], default="", metavar="FILE", help="JSON file for the backend"),
    click.Option(
        ["--then"],
        type=click.Choice(["promote", "evaluate", "stop"]),
        default="promote",
        show_default=True,
        help="compare, federate: how far the best model goes",
    ),
    click.Option(
        ["--tolerance"],
        type=click.FloatRange(min=0),
        default=0.01,
        show_default=True,
        help="reproduce: largest difference of a test metric's mean, relative where that is above 1",
    ),
)


@click.pass_obj
def callback(
    session: Session,
    /,
    what: str,
    model: str,
    recipe: str,
    only_plan: bool,
    fresh: str | None,
    start: str | None,
    until: str | None,
    run_name: str,
    in_process: bool,
    env_manager: str,
    backend: str,
    backend_config: str,
    then: str,
    tolerance: float,
    **values: str | None,
) -> None:
    """Resolve the config, run what was asked for, print what came of it."""
    if what in ("compare", "federate") and (start or until):
        raise UsageError(f"{what} takes no --from and --until; --then says how far it goes")
    if what == "reproduce" and (only_plan or fresh or start or until or run_name):
        raise UsageError("reproduce runs every step anew; leave out --plan, --fresh, --from, --until and --run-name")
    if model and what != "reproduce":
        raise UsageError(f"unexpected argument '{model}'")
    if what == "reproduce":
        _reproduce(
            session, model, recipe, partial(_how, env_manager, backend, backend_config, in_process), tolerance, values
        )
        return
    from segpipe.orchestration import planning

    given = planning.Given(*commands.named(session, recipe, values))
    with commands.refusing():
        config = given.unplanned()
    if not config.tracking.enabled:
        raise UsageError("the chain hands results on through MLflow; without it: python -m steps.train --no-mlflow")
    from segpipe.orchestration import compare, federate, plan, preconditions

    with commands.refusing():
        asked = plan.Asked(start or "", until or "", fresh or "")
        tried = {"compare": compare.members, "federate": federate.federations}.get(what)
        configs = [member.config for member in tried(config)] if tried else [config]
        preconditions.check_trainings(configs, asked)
    how = _how(env_manager, backend, backend_config, in_process, config)
    session.store.connect()
    chosen = planning.choose(session, config, asked) if given.planned else None
    planned = planning.follow(chosen, given) if chosen else config
    foreseen = {"compare": compare.planned, "federate": federate.planned}.get(what, plan.plan)
    coming = partial(foreseen, session, planned, asked)
    if backend == "local":
        with commands.refusing():
            preconditions.check_device(planned, coming)
    if only_plan:
        _show(session, planned, chosen, coming)
    else:
        _run(session, what, given, asked, how, then, run_name)


def _show(
    session: Session, config: "Config", chosen: "Choice | None", coming: "Callable[[], Iterable[tuple[str, Choice]]]"
) -> None:
    """Show what would become of the plan, if there is one, and of the steps."""
    from segpipe.tracking import experiments

    experiments.check(config.tracking.experiment)
    if chosen:
        session.screen.answer(f"plan: {chosen.line()}")
    if chosen and not chosen.run:
        session.screen.answer("preprocess and the steps after it follow from the plan")
        return
    for name, choice in coming():
        session.screen.answer(f"{name}: {choice.line()}")


def _run(
    session: Session, what: str, given: "Given", asked: "Asked", how: "launch.How", then: str, run_name: str
) -> None:
    """Run the chain or a comparison below one run, after a plan if there is one."""
    from segpipe.orchestration import chain, compare, driver, federate, launch, orphans, planning
    from segpipe.tracking import runs

    config, results = given.unplanned(), dict[str, chain.Result]()
    orphans.reap(session.say)
    with runs.run(session.store, what, config, name=run_name, resolved=not given.planned), session.guard.watching():
        launcher = launch.Launcher(session, runs.active(), how)
        if given.planned:
            results["plan"], config = planning.obtain(launcher, config, given, asked)
        if what == "compare":
            compare.run(launcher, config, then, asked, results)
        elif what == "federate":
            federate.run(launcher, config, then, asked, results)
        else:
            driver.run(launcher, config, asked, results)


def _how(env_manager: str, backend: str, backend_config: str, in_process: bool, config: "Config") -> "launch.How":
    from segpipe.orchestration import launch

    if in_process and config.compare.parallel > 1:
        raise UsageError("--in-process runs one step after the other; leave it out or set compare.parallel 1")
    timeout = {str(step): seconds for step, seconds in config.driver.timeout.items()}
    retries = {str(step): times for step, times in config.driver.retries.items()}
    perform = commands.perform if in_process else None
    with commands.refusing():
        return launch.How(env_manager, backend, backend_config, perform, timeout, retries).checked()


def _reproduce(
    session: Session,
    model: str,
    recipe: str,
    how: "Callable[[Config], launch.How]",
    tolerance: float,
    values: dict[str, str | None],
) -> None:
    knobs = commands.overrides(values)
    root, experiment = (knobs.pop(name, None) for name in ("data.root", "tracking.experiment"))
    if not model:
        raise UsageError("reproduce what? give a run ID, models:/NAME@champion or models:/NAME/VERSION")
    if recipe or knobs:
        given = ", ".join(["--config"] * bool(recipe) + list(knobs))
        raise UsageError(f"reproduce takes its config from the model's runs; leave out {given}")
    from segpipe.config.sections import Config
    from segpipe.orchestration import reproduce

    asked = how(Config())
    session.store.connect()
    reproduce.run(session, model, asked, tolerance, root, experiment)


def command() -> click.Command:
    """The command line of the chain: the steps' knobs, and the flags that say which of them run, how and where."""
    return commands.Command("pipeline", callback=callback, params=[*FLAGS, *commands.options()], help=HELP)


if __name__ == "__main__":
    command().main()
