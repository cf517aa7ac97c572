"""What a person watches a command on, as orchestration sees it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, whether it holds numbers (to the right), and whether its text may be broken."""

    title: str
    right: bool = False
    wrap: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text, a title above and a caption below."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""


class Screen(Protocol):
    """Lines, progress, tables."""

    @property
    def live(self) -> bool:
        """Whether progress is drawn in place."""

    def say(self, line: str) -> None:
        """Tell what goes on."""

    def answer(self, text: str) -> None:
        """Give what the command was asked for."""

    def show(self, table: Table) -> None:
        """Draw a table, as part of the answer."""

    def wait(self, told: str) -> None:
        """Show that something goes on until the next output, where progress is drawn in place."""

    def progress(self, label: str, timed: bool = True) -> Progress:
        """A callback taking (done, total, item); with the time that is left, unless the item says it."""
