"""`segpipe COMMAND`: every entry point by a name, from any folder, which has its own store, outputs and recipe."""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import click

from segpipe import __version__
from segpipe.errors import UsageError, nearest
from segpipe.files import project

RECIPE = "segpipe.yaml"
USAGE = 2


class Entry(NamedTuple):
    """A command: the module whose `main` or `command()` it is, what precedes its arguments, and what it does."""

    module: str
    arguments: tuple[str, ...]
    does: str


COMMANDS = {
    "demo": Entry(
        "pipeline",
        ("--config", str(project.PROJECT / "configs" / "phantom.yaml")),
        "simulate patients here, and take them to a promoted model",
    ),
    "init": Entry("steps.init", (), f"look at a folder of images and masks, and write {RECIPE} for it"),
    "check": Entry("steps.check", (), "list all that is wrong with a data set, on a page with pictures"),
    "run": Entry("pipeline", (), "preprocess, train, evaluate, register: to a promoted model"),
    "compare": Entry("pipeline", ("compare",), "train several models, compare them, promote the best"),
    "federate": Entry(
        "pipeline", ("federate",), "train at each site, together and apart, and compare; promote the best"
    ),
    "predict": Entry("steps.predict", (), "segment files and folders with the champion"),
    "serve": Entry("steps.serve", (), "answer requests with the champion"),
    "page": Entry("steps.demo_page", (), "try the champion in a browser"),
    "register": Entry("steps.register", (), "promote the last evaluated model if it passes the gate"),
    "approve": Entry("steps.register", ("approve",), "promote a version that waits, or was refused"),
    "history": Entry("steps.register", ("history",), "which version was champion when, and why"),
    "rollback": Entry("steps.register", ("rollback",), "bring back the champion before this one"),
    "lineage": Entry("steps.lineage", (), "where a model comes from, and whether that still holds"),
    "reproduce": Entry("pipeline", ("reproduce",), "train a model once more, and compare"),
    "plan": Entry("steps.plan", (), "a recipe from the data, with a reason beside each knob"),
    "preprocess": Entry("steps.preprocess", (), "one step alone: from raw data to a data set"),
    "train": Entry("steps.train", (), "one step alone: a model from a data set"),
    "evaluate": Entry("steps.evaluate", (), "one step alone: a model on the test set"),
    "moved": Entry("steps.moved", (), "let a store whose folder was moved find its artifacts again"),
    "send": Entry("steps.send", (), "send records of trainings that a server has not got yet"),
}
CHAINS = ("run", "compare", "federate")


def main() -> None:
    """Run the command that the first argument names."""
    given = sys.argv[1:]
    if given and given[0] in COMMANDS:
        name, arguments = given[0], given[1:]
        os.environ.setdefault(project.HOME, str(Path.cwd()))
        if name in CHAINS and not _has_data(arguments):
            told = f"no {RECIPE} here, and no --data.root: segpipe init FOLDER writes one; segpipe demo simulates data"
            _refuse(f"segpipe {name}: {told}")
        if name == "check" and arguments and not arguments[0].startswith("-"):
            arguments = ["--data.root", *arguments]
        entry = COMMANDS[name]
        module = import_module(entry.module)
        command: click.Command = module.command() if entry.module == "pipeline" else module.main
        command.main([*entry.arguments, *arguments], prog_name=f"segpipe {name}")
    elif given[:1] == ["--version"]:
        click.echo(f"segpipe {__version__}")
    elif not given or given[0] in ("--help", "-h", "help"):
        click.echo(overview())
    else:
        _refuse(f"segpipe: no command '{given[0]}'{nearest(given[0], list(COMMANDS))}; segpipe --help lists them")


def _has_data(arguments: list[str]) -> bool:
    """Whether a chain knows its data, or is only asked for help."""
    named = any(part.partition("=")[0] in ("--config", "--data.root", "--data.format") for part in arguments)
    return (
        named or Path(RECIPE).is_file() or "SEGPIPE_DATA" in os.environ or bool({"--help", "--help-all"} & {*arguments})
    )


def _refuse(line: str) -> None:
    click.echo(line, err=True)
    sys.exit(UsageError.exit_code)


def overview() -> str:
    """What there is, a line a command."""
    formatter = click.HelpFormatter()
    formatter.write_usage("segpipe", "COMMAND [ARGUMENTS]...")
    formatter.write_paragraph()
    with formatter.indentation():
        formatter.write_text(
            "From a folder of images and masks to a segmentation model that is evaluated, promoted and served. Your "
            "own data takes three lines: segpipe init FOLDER, segpipe run, segpipe serve. Commands use "
            f"{RECIPE} of the folder they are started in, and keep their store and outputs there."
        )
    with formatter.section("Commands (segpipe COMMAND --help tells more)"):
        formatter.write_dl([(name, entry.does) for name, entry in COMMANDS.items()])
    with formatter.section("Options"):
        formatter.write_dl([("--version", "Show the version."), ("--help", "Show this message.")])
    return formatter.getvalue().rstrip()
