"""`python -m steps.send FOLDER`"""

from pathlib import Path

import click

from steps import cli


@click.command(cls=cli.Command)
@click.argument("folder", type=click.Path(path_type=Path))
def main(folder: Path) -> None:
    """Send what a training could not, to the tracking server: FOLDER is outputs/spool/RUN_ID."""
    from segpipe import spool, tracking

    tracking.connect()
    cli.say(f"{spool.send(folder.resolve(), cli.say)} records sent")


if __name__ == "__main__":
    main()
