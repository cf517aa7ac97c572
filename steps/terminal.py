"""What a person watches a command on: a terminal, or the files it is led into."""

import atexit
import sys
from typing import TYPE_CHECKING

import click

from segpipe.orchestration.screen import Progress, Table

if TYPE_CHECKING:
    from rich.console import Console


class Terminal:
    """Lines and progress on stderr, answers and tables on stdout."""

    @property
    def live(self) -> bool:
        """Whether progress is drawn in place."""
        return sys.stderr.isatty()

    def say(self, line: str) -> None:
        """Tell what goes on."""
        click.echo(line, err=True)

    def answer(self, text: str) -> None:
        """Give what the command was asked for."""
        click.echo(text)

    def show(self, table: Table) -> None:
        """Draw a table as wide as the terminal, in a file 160 characters wide."""
        from rich.table import Table as Drawn

        drawn = Drawn(title=table.title or None, caption=table.caption or None)
        for column in table.columns:
            drawn.add_column(
                column.title,
                justify="right" if column.right else "left",
                overflow="fold" if column.wrap else "ellipsis",
                no_wrap=not column.wrap,
            )
        for row in table.rows:
            drawn.add_row(*row)
        console().print(drawn)

    def progress(self, label: str) -> Progress:
        """A callback taking (done, total, item): a bar on a terminal, otherwise a line at each tenth."""
        return _bar(label) if self.live else _lines(label)


def console() -> "Console":
    """Where tables go."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)


def _lines(label: str) -> Progress:
    def line(done: int, total: int, item: str) -> None:
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            click.echo(f"{label}: {done}/{total} {item}", err=True)

    return line


def _bar(label: str) -> Progress:
    from rich.console import Console
    from rich.progress import Progress as Bar

    bar = Bar(console=Console(stderr=True), transient=True)
    task = bar.add_task(label)
    atexit.register(bar.stop)

    def advance(done: int, total: int, item: str) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, description=f"{label} {item}")
        if done == total:
            bar.stop()

    return advance
