"""`python -m steps.serve`: the champion, or any model, behind MLflow's scoring application and a stricter door."""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from typing import Any

import click

from segpipe.orchestration.session import Session
from steps import command

SECTIONS = ("registry", "predict", "serving")


@click.command("serve", cls=command.Command, params=command.options(), sections=SECTIONS)
@click.pass_obj
def main(session: Session, /, recipe: str, **values: Any) -> None:
    """Serve models:/NAME@champion of registry.model_name, or --predict.model URI, until SIGINT or SIGTERM.

    POST /invocations as for `mlflow models serve`; GET /health, /ping, /version, /metrics.
    """
    config = command.resolve(session, recipe, values)
    from segpipe.registry import champions
    from segpipe.server import http_server

    session.store.connect()
    http_server.run(champions.named(config), config.serving, session.say)


if __name__ == "__main__":
    main()
