"""`python -m steps.lineage MODEL`: where a model comes from, and whether that is still so."""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import re

import click

from segpipe.orchestration.screen import Column, Table
from segpipe.orchestration.session import Session
from steps import command

DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
COLUMNS = (Column("item", wrap=True), Column("is", wrap=True), Column("found", wrap=True))


@click.command("lineage", cls=command.Command)
@click.argument("uri", metavar="MODEL")
@click.option("--json", "as_json", is_flag=True, help="print JSON instead of a tree")
@click.option("--files", is_flag=True, help="list every raw case with the SHA-256 of its files")
@click.option("--verify", is_flag=True, help="compute digests again and compare: exit code 1 where one differs")
@click.pass_obj
def main(session: Session, uri: str, as_json: bool, files: bool, verify: bool) -> None:
    """Show where a model comes from: decision, evaluation, training, dataset, raw files.

    MODEL is models:/NAME@champion, models:/NAME/VERSION, or the run ID of a step.
    """
    from segpipe.orchestration import verification
    from segpipe.tracking import lineage
    from steps import lineage_tree

    session.store.connect()
    found, screen = lineage.of(uri), session.screen
    checks = list(verification.verify(session, found)) if verify else []
    if as_json:
        more = {"checks": [check._asdict() for check in checks]} if verify else {}
        screen.answer(found.to_json(files, **more))
    else:
        lineage_tree.show(found, files)
        if checks:
            rows = [(c.item, c.state, DIGEST.sub(lambda digest: digest[0][:16], c.found)) for c in checks]
            screen.show(Table(COLUMNS, rows, title="verified"))
    if verify:
        verification.judge(screen, uri, checks)


if __name__ == "__main__":
    main()
