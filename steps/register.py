"""`python -m steps.register [approve VERSION | rollback | history]`"""

import getpass
import os

import click

from segpipe.config.sections import Config
from segpipe.orchestration import decisions, registration
from steps import command

DRY_RUN = "register --dry-run"  # the step that its run is tagged with: no later register is replaced by it


def login() -> str:
    """The name of who runs this, on the server or else on this machine, or its number where it has none."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


MORE: tuple[click.Parameter, ...] = (
    click.Argument(
        ["action"],
        type=click.Choice(("register", "approve", "rollback", "history")),
        default="register",
        required=False,
    ),
    click.Argument(["number"], default="", required=False, metavar="[VERSION]"),
    click.Option(
        ["--dry-run"],
        is_flag=True,
        help="measure, compare and tell what register would do; the registry stays as it is",
    ),
    click.Option(
        ["--by"],
        default=login,
        metavar="NAME",
        help="who decides  [default: $MLFLOW_TRACKING_USERNAME, else the login name]",
    ),
)


def elsewhere(config: Config, action: str, number: str, dry_run: bool, by: str) -> bool:
    """What needs no run: approve, rollback and history."""
    if (action == "approve") != bool(number):
        raise command.Refused("VERSION goes with approve, and approve with VERSION: python -m steps.register approve 3")
    if dry_run and action != "register":
        raise command.Refused(f"--dry-run is for register itself; {action} has none")
    if action == "register" or not config.tracking.enabled:
        return False
    from segpipe.registry import champions
    from segpipe.tracking import connection

    connection.connect()
    name = config.registry.model_name
    if action == "history":
        decisions.show_history(name)
    elif action == "approve":
        command.say(champions.approve(name, number, by, command.say))
    else:
        command.say(champions.rollback(name, by, command.say))
    return True


@command.step("register", inputs=("preprocess", "evaluate"), elsewhere=elsewhere, more=MORE)
def main(config: Config, preprocess: str, evaluate: str, dry_run: bool, by: str, **_: str) -> str:
    """Register the evaluated model and promote it if it passes the gate.

    `approve VERSION` promotes what waits for approval or was rolled back, `rollback` brings back the champion before
    the current one, `history` shows who was champion when, how and why.
    """
    from segpipe.registry import champions, lock
    from segpipe.tracking import runs

    name, challenger = config.registry.model_name, registration.Challenger.of(preprocess, evaluate)
    if dry_run:
        runs.tag(step=DRY_RUN)
    else:
        champions.exist(name)
    while True:
        champion = champions.holder(name)
        decision = registration.compare(challenger, champion, config)
        if dry_run:
            decision = champions.withheld(decision, champions.find(name, challenger.model_id))
            would_be = registration.told(decision, config, "")
            return decisions.show(decision, f"dry run, nothing moved; it would be {would_be}")
        with lock.turn(name, command.say) as turn:
            if champions.number(champions.holder(name)) == champions.number(champion):
                decision, version = registration.carry_out(turn, challenger, champion, decision, config, by)
                break
        command.say("another version became champion meanwhile: comparing with that one")
    registration.report(challenger, version)
    runs.tag(champion=champions.number(champions.holder(name)))
    return decisions.show(decision, registration.told(decision, config, champions.number(version)))


if __name__ == "__main__":
    main()
