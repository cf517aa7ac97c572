"""`python -m steps.register [approve VERSION | rollback | history]`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

from collections.abc import Collection

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
    click.Option(["--override"], is_flag=True, help="approve: promote a version that the gate refused; needs --why"),
    click.Option(["--why"], default="", metavar="TEXT", help="approve --override: the reason, which is recorded"),
    click.Option(
        ["--by"],
        default=connection.user,
        metavar="NAME",
        help="who decides  [default: $MLFLOW_TRACKING_USERNAME, else the login name]",
    ),
)


def elsewhere(
    session: Session, config: Config, action: str, number: str, dry_run: bool, override: bool, why: str, by: str
) -> bool:
    """What needs no run: approve, rollback and history."""
    if (action == "approve") != bool(number):
        raise UsageError("VERSION goes with approve, and approve with VERSION: python -m steps.register approve 3")
    if dry_run and action != "register":
        raise UsageError(f"--dry-run is for register itself; {action} has none")
    if override != bool(why.strip()) or (override and action != "approve"):
        raise UsageError('--override and --why go with approve, both: approve 3 --override --why "..."')
    if action == "register" or not config.tracking.enabled:
        return False
    from segpipe.orchestration import by_hand

    session.store.connect()
    by_hand.carry_out(session, action, config.registry.model_name, number, by, why)
    return True


def last_evaluation(session: Session, config: Config, asked: Collection[str]) -> tuple[Config, dict[str, str]]:
    """The run ID of the model's last evaluation, and the config that it is registered with."""
    from segpipe.orchestration import registration

    session.store.connect()
    return registration.last_evaluation(session, config, asked)


@command.step("register", elsewhere=elsewhere, more=MORE, build_on=last_evaluation)
def main(session: Session, config: Config, preprocess: str, evaluate: str, dry_run: bool, by: str, **_: str) -> str:
    """Register the evaluated model and promote it if it passes the gate: the evaluation that is given, or the last one
    of registry.model_name, with the gate of its recipe where no other is given.

    `approve VERSION` promotes what waits for approval or was rolled back, `rollback` brings back the champion before
    the current one, `history` shows who was champion when, how and why.
    """
    from segpipe.orchestration import registration

    return registration.register(session, config, registration.Challenger.of(preprocess, evaluate), dry_run, by)


if __name__ == "__main__":
    main()
