"""`python -m steps.worker JOB`: one of the processes of a training, started by `segpipe.orchestration.workers`."""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from pathlib import Path

import click

from segpipe.orchestration import workers
from segpipe.orchestration.session import Session
from steps import command


@click.command(cls=command.Command)
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_obj
def main(session: Session, path: Path) -> None:
    """Take part in a training."""
    workers.work(session, path)


if __name__ == "__main__":
    main()
