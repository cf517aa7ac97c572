"""`python -m steps.predict --predict.input FOLDER`"""

import steps

if __name__ == "__main__":
    steps.start_quietly()

import sys
from pathlib import Path
from typing import Any

import click

from segpipe.config.sections import Config
from segpipe.errors import UsageError
from segpipe.orchestration import preconditions
from segpipe.orchestration.session import Session
from steps import command

SOME_FAILED = 3


def checked(session: Session, recipe: str, values: dict[str, Any]) -> Config:
    """The Config of a command line that something can be predicted with. Raises UsageError."""
    config = command.resolve(session, recipe, values)
    asked = config.predict.input
    if not config.tracking.enabled:
        raise UsageError("predict needs MLflow, where its model is; without it there are preprocess and train")
    if not asked:
        raise UsageError("predict.input: not given; a folder, a list of files, a manifest.json or runs:/ID/dataset")
    if not asked.startswith("runs:/") and not Path(asked).expanduser().exists():
        raise UsageError(f"predict.input={asked}: no such file or folder")
    with command.refusing():
        preconditions.check("predict", config)
    return config


@click.command("predict", cls=command.Command, params=command.options())
@click.pass_obj
def main(session: Session, /, recipe: str, **values: Any) -> None:
    """Segment a folder, a list of files or a dataset with the champion or any other model.

    Exit code 0: all is segmented; 3: some files failed, predictions.csv says which and why; 1: all failed, or it can't
    begin; 2: a knob is wrong; 130, 143: interrupted, the same command goes on.
    """
    config = checked(session, recipe, values)
    with command.recorded(session, "predict", config):
        from segpipe.orchestration import predictions

        failed = predictions.predict(session.screen, config)
    if failed:
        session.say(f"{failed} failed")
        sys.exit(SOME_FAILED)


if __name__ == "__main__":
    main()
