"""The whole chain, a comparison of models, or a model once more, as nested runs of one parent."""

import click

from segpipe.errors import InputError
from steps import cli

HELP = """Take a folder of images and masks to a promoted model: preprocess, train, evaluate, register.

With `compare` it trains every combination that the knobs compare.* name, ranks them, and goes on with the best.

With `reproduce MODEL` (models:/NAME@champion, models:/NAME/VERSION, or the run ID of an evaluation) it runs a model's
recorded steps once more, in an experiment of their own, and tells what came out differently; of the knobs it takes
data.root, where the raw data has moved, and tracking.experiment. The registry stays as it is.

Each step is a process of its own, started through MLflow Projects and nested under one parent run. A step whose config,
code, requirements, inputs and raw data are those of a finished run is not run again.
"""


def callback(
    what: str, model: str, recipe: str, env_manager: str, then: str, tolerance: float, **values: str | None
) -> None:
    """Resolve the config, run what was asked for, print what came of it."""
    if what == "reproduce":
        _reproduce(model, recipe, env_manager, tolerance, cli.overrides(values))
        return
    if model:
        raise cli.Refused(f"unexpected argument '{model}'")
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


def _reproduce(model: str, recipe: str, env_manager: str, tolerance: float, knobs: dict[str, str]) -> None:
    root, experiment = (knobs.pop(name, None) for name in ("data.root", "tracking.experiment"))
    if not model:
        raise cli.Refused("reproduce what? python pipeline.py reproduce models:/NAME@champion")
    if recipe or knobs:
        given = ", ".join(["--config"] * bool(recipe) + list(knobs))
        raise cli.Refused(f"reproduce takes its config from the model's runs; leave out {given}")
    from segpipe import tracking
    from steps import reproduce

    tracking.connect()
    reproduce.run(model, env_manager, tolerance, root, experiment)


def command() -> click.Command:
    """The command line of the chain: the steps' knobs and the environment manager handed on to every step."""
    what = click.Argument(["what"], type=click.Choice(["pipeline", "compare", "reproduce"]), default="pipeline")
    model = click.Argument(["model"], default="")
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
    tolerance = click.Option(
        ["--tolerance"],
        type=click.FloatRange(min=0),
        default=0.01,
        show_default=True,
        help="reproduce: largest difference of a test metric's mean, relative where that is above 1",
    )
    params = [what, model, manager, then, tolerance, *cli.options()]
    return cli.Command("pipeline", callback=callback, params=params, help=HELP)


if __name__ == "__main__":
    command().main()
