"""`python -m steps.demo_page`: what `steps.serve` serves, and a page to try it."""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import webbrowser
from typing import Any

import click

from segpipe.orchestration.session import Session
from steps import command
from steps.serve import SECTIONS

SILENT = click.Option(["--no-open"], is_flag=True, help="only say the address, open no browser")


@click.command("demo_page", cls=command.Command, params=[SILENT, *command.options()], sections=SECTIONS)
@click.pass_obj
def main(session: Session, /, recipe: str, no_open: bool, **values: Any) -> None:
    """Open a page to try models:/NAME@champion of registry.model_name, or --predict.model URI, until it is interrupted.

    The page, and all that `python -m steps.serve` answers, on one address.
    """
    config = command.resolve(session, recipe, values)
    from segpipe.registry import champions
    from segpipe.server import http_server
    from segpipe.server.page import routes

    def show(address: str) -> None:
        if not no_open:
            webbrowser.open(address)

    session.store.connect()
    http_server.run(champions.named(config), config.serving, session.say, routes.routes(config.serving), show)


if __name__ == "__main__":
    main()
