"""`python -m steps.serve`: the champion, or any model, behind MLflow's scoring application and a stricter door."""

from typing import Any

from segpipe.errors import InputError
from steps import cli


def serve(recipe: str, **values: Any) -> None:
    """Serve models:/NAME@champion of registry.model_name, or --predict.model URI, until SIGINT or SIGTERM.

    POST /invocations as for `mlflow models serve`; GET /health, /ping, /version, /metrics.
    """
    try:
        config = cli.resolve(recipe, values)
    except InputError as error:
        raise cli.Refused(str(error)) from None
    from segpipe import registry, server, tracking

    tracking.connect()
    server.run(registry.named(config), config.serving, cli.say)


main = cli.Command("serve", callback=serve, params=cli.options(), help=serve.__doc__)

if __name__ == "__main__":
    main()
