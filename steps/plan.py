"""`python -m steps.plan --data.format folder --data.root FOLDER`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from pathlib import Path
from typing import Any

import click

from segpipe.errors import UsageError
from segpipe.orchestration.session import Session
from steps import command

OUTPUT = click.Option(["--output"], default="plan.yaml", metavar="FILE", help="where the recipe is written")


@click.command("plan", cls=command.Command, params=[OUTPUT, *command.options()])
@click.pass_obj
def main(session: Session, /, recipe: str, output: str, **values: Any) -> None:
    """Look at a data set and write a recipe for it, with a reason beside each knob. Knobs that are given are kept."""
    config = command.resolve(session, recipe, values)
    if not config.tracking.enabled:
        raise UsageError("plan needs MLflow; without it there are preprocess and train")
    with command.recorded(session, "plan", config):
        from segpipe.orchestration import planning
        from segpipe.tracking import runs

        planned = planning.plan(session, config, command.overrides(values), Path(output))
        runs.tag(figure=planned)
    session.say(planned)


if __name__ == "__main__":
    main()
