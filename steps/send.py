"""`python -m steps.send FOLDER`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from pathlib import Path

import click

from segpipe.orchestration.session import Session
from steps import command


@click.command(cls=command.Command)
@click.argument("folder", type=click.Path(path_type=Path))
@click.pass_obj
def main(session: Session, folder: Path) -> None:
    """Send what a training could not, to the tracking server: FOLDER is outputs/spool/RUN_ID."""
    from segpipe.recording import spool

    session.store.connect()
    session.say(f"{spool.send(folder.resolve(), session.say)} records sent")


if __name__ == "__main__":
    main()
