"""`segpipe init FOLDER`: a recipe for a folder of images and masks, to be read, edited and run."""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import re
from pathlib import Path
from typing import Any

import click

from segpipe.errors import UsageError
from segpipe.orchestration.session import Session
from steps import command

MORE: tuple[click.Parameter, ...] = (
    click.Argument(["folder"], metavar="FOLDER"),
    click.Option(["--output"], default=command.RECIPE, show_default=True, metavar="FILE", help="where it is written"),
)
SECTIONS = ("data", "split", "train", "registry")


@click.command("init", cls=command.Command, params=[*MORE, *command.options()], sections=SECTIONS)
@click.pass_obj
def main(session: Session, /, folder: str, output: str, recipe: str, **values: Any) -> None:
    """Look at a folder of images and masks, say what was found and what counts as a patient, and write a recipe for it
    with a reason beside each knob. Knobs that are given are kept.
    """
    target = Path(output)
    if recipe or values["data__root"]:
        raise UsageError("init looks at FOLDER and writes a recipe; leave out --config and --data.root")
    if target.exists():
        raise UsageError(f"{target} is there already; remove it, or give another --output")
    values["data__root"] = folder
    values["registry__model_name"] = values["registry__model_name"] or model_name(Path(folder).resolve().name)
    config = command.unplanned(session, values)
    from segpipe.orchestration import first_recipe

    given = list(command.overrides(values))
    text = first_recipe.write(session.screen, config, folder, given, target)
    session.screen.answer(text.rstrip("\n"))
    session.say(f"wrote {target}: read it, change what you know better, then: segpipe run")


def model_name(folder: str) -> str:
    """A folder's name as a name in the registry."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", folder).strip("-_.") or "segpipe"


if __name__ == "__main__":
    main()
