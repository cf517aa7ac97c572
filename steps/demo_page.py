"""`python -m steps.demo_page`: what `steps.serve` serves, and a page to try it."""

import webbrowser
from typing import Any

import click

from segpipe.errors import InputError
from steps import command


def demo(recipe: str, no_open: bool, **values: Any) -> None:
    """Open a page to try models:/NAME@champion of registry.model_name, or --predict.model URI, until it is interrupted.

    The page, and all that `python -m steps.serve` answers, on one address.
    """
    try:
        config = command.resolve(recipe, values)
    except InputError as error:
        raise command.Refused(str(error)) from None
    from segpipe.registry import champions
    from segpipe.server import http_server
    from segpipe.server.page import routes
    from segpipe.tracking import connection

    def say(line: str) -> None:
        command.say(line)
        if line.startswith("serving ") and not no_open:
            webbrowser.open(line.rpartition(" on ")[2])

    connection.connect()
    http_server.run(champions.named(config), config.serving, say, routes.routes(config.serving))


silent = click.Option(["--no-open"], is_flag=True, help="only say the address, open no browser")
main = command.Command("demo_page", callback=demo, params=[silent, *command.options()], help=demo.__doc__)

if __name__ == "__main__":
    main()
