"""`python -m steps.register [approve VERSION | rollback | history]`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import click

from segpipe.config.sections import Config
from segpipe.errors import UsageError
from segpipe.orchestration.session import Session
from segpipe.tracking import connection
from steps import command

MORE: tuple[click.Parameter, ...] = (
    click.Argument(["action"], type=click.Choice(("register", "approve", "rollback", "history")), default="register"),
    click.Argument(["number"], default="", metavar="[VERSION]"),
    click.Option(["--dry-run"], is_flag=True, help="say what register would do; the registry stays as it is"),
    click.Option(
        ["--by"],
        default=connection.user,
        metavar="NAME",
        help="who decides  [default: $MLFLOW_TRACKING_USERNAME, else the login name]",
    ),
)


def elsewhere(session: Session, config: Config, action: str, number: str, dry_run: bool, by: str) -> bool:
    """What needs no run: approve, rollback and history."""
    if (action == "approve") != bool(number):
        raise UsageError("VERSION goes with approve, and approve with VERSION: python -m steps.register approve 3")
    if dry_run and action != "register":
        raise UsageError(f"--dry-run is for register itself; {action} has none")
    if action == "register" or not config.tracking.enabled:
        return False
    from segpipe.orchestration import decisions

    session.store.connect()
    decisions.carry_out(session, action, config.registry.model_name, number, by)
    return True


@command.step("register", elsewhere=elsewhere, more=MORE)
def main(session: Session, config: Config, preprocess: str, evaluate: str, dry_run: bool, by: str, **_: str) -> str:
    """Register the evaluated model and promote it if it passes the gate.

    `approve VERSION` promotes what waits for approval or was rolled back, `rollback` brings back the champion before
    the current one, `history` shows who was champion when, how and why.
    """
    from segpipe.orchestration import registration

    return registration.register(session, config, registration.Challenger.of(preprocess, evaluate), dry_run, by)


if __name__ == "__main__":
    main()
