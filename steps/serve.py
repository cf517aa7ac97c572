"""`python -m steps.serve`: the champion, or any model, behind MLflow's scoring application and a stricter door."""

from typing import Any

from segpipe.errors import InputError
from steps import command


def serve(recipe: str, **values: Any) -> None:
    """Serve models:/NAME@champion of registry.model_name, or --predict.model URI, until SIGINT or SIGTERM.

    POST /invocations as for `mlflow models serve`; GET /health, /ping, /version, /metrics.
    """
    try:
        config = command.resolve(recipe, values)
    except InputError as error:
        raise command.Refused(str(error)) from None
    from segpipe.registry import champions
    from segpipe.server import http_server
    from segpipe.tracking import connection

    connection.connect()
    http_server.run(champions.named(config), config.serving, command.say)


main = command.Command("serve", callback=serve, params=command.options(), help=serve.__doc__)

if __name__ == "__main__":
    main()
