"""`python -m steps.plan --data.root FOLDER`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from pathlib import Path

import click

from segpipe.config.sections import Config
from segpipe.orchestration.session import Session
from steps import command

OUTPUT = click.Option(
    ["--output"], default="plan.yaml", metavar="FILE", help="where the recipe is written; empty: on the run alone"
)


@command.step("plan", more=(OUTPUT,))
def main(session: Session, config: Config, output: str) -> str:
    """Look at a data set and write a recipe for it, with a reason beside each knob. Knobs that are given are kept."""
    from segpipe.orchestration import planning

    given = command.overrides(click.get_current_context().params)
    return planning.plan(session, config, given, Path(output) if output else None)


if __name__ == "__main__":
    main()
