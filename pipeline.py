"""The whole chain, preprocess, train, evaluate, register, or a comparison of models, as nested runs of one parent."""

import click

from segpipe.errors import InputError
from steps import cli

HELP = """Take a folder of images and masks to a promoted model: preprocess, train, evaluate, register.

With `compare` it trains every combination that the knobs compare.* name, ranks them, and goes on with the best.

Each step is a process of its own, started through MLflow Projects and nested under one parent run. A step whose config,
code, requirements, inputs and raw data are those of a finished run is not run again.
"""


def callback(what: str, recipe: str, env_manager: str, then: str, **values: str | None) -> None:
    """Resolve the config, run what was asked for, print what came of it."""
    try:
        config = cli.resolve(recipe, values)
    except InputError as error:
        raise cli.Refused(str(error)) from None
    if not config.tracking.enabled:
        raise cli.Refused("the chain hands results on through MLflow; without it: python -m steps.train --no-mlflow")
    from segpipe import tracking
    from steps import compare, driver

    tracking.connect()
    with tracking.run(what, config):
        if what == "compare":
            compare.run(config, env_manager, then)
        else:
            driver.run(config, env_manager)


def command() -> click.Command:
    """The command line of the chain: the steps' knobs and the environment manager handed on to every step."""
    what = click.Argument(["what"], type=click.Choice(["pipeline", "compare"]), default="pipeline")
    manager = click.Option(
        ["--env-manager"],
        type=click.Choice(["local", "uv", "virtualenv", "conda"]),
        default="local",
        show_default=True,
        help="environment that MLflow Projects runs each step in",
    )
    then = click.Option(
        ["--then"],
        type=click.Choice(["promote", "evaluate", "stop"]),
        default="promote",
        show_default=True,
        help="compare: what becomes of the best model afterwards; promote is evaluate and register",
    )
    return cli.Command("pipeline", callback=callback, params=[what, manager, then, *cli.options()], help=HELP)


if __name__ == "__main__":
    command().main()
