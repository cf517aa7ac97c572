"""`python -m steps.moved`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import click

from segpipe.errors import InputError
from segpipe.orchestration.session import Session
from segpipe.tracking import connection, locations
from steps import command


@click.command("moved", cls=command.Command)
@click.pass_obj
def main(session: Session) -> None:
    """Let a tracking store whose folder was moved or renamed find its artifacts beside it again.

    It changes the locations that the database records, after a copy of it, and only where the artifacts are there.
    """
    try:
        session.store.connect()
    except locations.MovedError as moved:
        session.say(locations.correct(moved))
        return
    if connection.database() is None:
        raise InputError("the tracking store is a server's, which knows where its artifacts are; nothing was changed")
    session.say("the tracking store points to where its artifacts are; nothing was changed")


if __name__ == "__main__":
    main()
