"""The help of a command: its own options and the names of its knobs on a screen, or all there is about each knob."""

import textwrap
from collections.abc import Collection, Mapping

import click

from segpipe.config import settings
from segpipe.config.sections import Config
from segpipe.config.settings import Knob

INDENT = 13


def by_section(sections: Collection[str]) -> Mapping[str, list[Knob]]:
    """The knobs of some sections, or of all where none is named; those without a section under an empty name."""
    found: dict[str, list[Knob]] = {}
    for knob in settings.knobs().values():
        section, _, name = knob.name.rpartition(".")
        if not sections or (section or name) in sections:
            found.setdefault(section, []).append(knob)
    return found


def names(sections: Collection[str], width: int) -> str:
    """The names of the knobs, a paragraph a section."""
    parts = []
    for section, knobs in by_section(sections).items():
        words = " ".join(knob.name.rpartition(".")[2] for knob in knobs)
        head = f"  {section or 'seed'}".ljust(INDENT)
        text = words if section else "of every random draw"
        parts.append(textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * INDENT))
    return "\n".join(parts)


def write_all(formatter: click.HelpFormatter) -> None:
    """Every knob with its description, the values it takes and its default, by section."""
    for section, knobs in by_section(()).items():
        said = (Config.model_fields[section].annotation.__doc__ or "").strip() if section else ""
        rows = [
            (f"--{knob.name} [{knob.allowed}]", f"{knob.description}  [default: {knob.default or 'empty'}]")
            for knob in knobs
        ]
        with formatter.section(f"{section}: {said}".rstrip(": .") if section else "seed"):
            formatter.write_dl(rows)
