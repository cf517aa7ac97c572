"""`python -m steps.send FOLDER`"""

from pathlib import Path

import click

from steps import command


@click.command(cls=command.Command)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Send what a training could not, to the tracking server: FOLDER is outputs/spool/RUN_ID."""
    from segpipe.recording import spool
    from segpipe.tracking import connection

    connection.connect()
    command.say(f"{spool.send(folder.resolve(), command.say)} records sent")


if __name__ == "__main__":
    main()
