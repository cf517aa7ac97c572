"""What a person watches a command on: a terminal, or the files it is led into."""

import sys
from typing import TYPE_CHECKING

import click

from segpipe.orchestration.screen import Progress, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.status import Status


class Terminal:
    """Lines and progress on stderr, answers and tables on stdout. What is drawn in place, one thing at a time, stays
    below the lines.
    """

    def __init__(self) -> None:
        self._status: Status | None = None
        self._bar: Bar | None = None

    @property
    def live(self) -> bool:
        """Whether progress is drawn in place."""
        return sys.stderr.isatty()

    def say(self, line: str) -> None:
        """Tell what goes on."""
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self._clear()
            click.echo(line, err=True)

    def answer(self, text: str) -> None:
        """Give what the command was asked for."""
        self._clear()
        click.echo(text)

    def show(self, table: Table) -> None:
        """Draw a table as wide as the terminal, in a file 160 characters wide."""
        from rich.table import Table as Drawn

        self._clear()
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

    def wait(self, told: str) -> None:
        """Show that something goes on until the next output, on a terminal."""
        if not self.live:
            return
        from rich.console import Console
        from rich.status import Status

        self._clear()
        self._status = Status(told, console=Console(stderr=True))
        self._status.start()

    def progress(self, label: str, timed: bool = True) -> Progress:
        """A callback taking (done, total, item): a bar on a terminal, otherwise a line at each tenth."""
        return self._advance(label, timed) if self.live else _lines(label)

    def _clear(self) -> None:
        for drawn in (self._status, self._bar):
            if drawn:
                drawn.stop()
        self._status = self._bar = None

    def _advance(self, label: str, timed: bool) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = [TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn()]
        last = [TimeRemainingColumn(compact=True)] if timed else []
        bar = Bar(*columns, *last, console=Console(stderr=True), transient=True, expand=True)
        task = bar.add_task(label)

        def advance(done: int, total: int, item: str) -> None:
            if self._bar is not bar:
                self._clear()
                self._bar = bar
                bar.start()
            bar.update(task, completed=done, total=total, description=f"{label} {item}")
            if done == total and timed:
                self._clear()

        return advance

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self._clear()


def console() -> "Console":
    """Where tables go."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)


def _lines(label: str) -> Progress:
    def line(done: int, total: int, item: str) -> None:
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            click.echo(f"{label}: {done}/{total} {item}", err=True)

    return line
