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
SECTIONS = ("predict", "registry", "data", "evaluate", "train", "tracking")
PATHS = click.Argument(["paths"], nargs=-1, metavar="[FILES]...")


def checked(session: Session, recipe: str, values: dict[str, Any], paths: tuple[str, ...]) -> Config:
    """The Config of a command line that something can be predicted with. Raises UsageError."""
    if paths and values["predict__input"]:
        raise UsageError("predict.input: give files after the command, or --predict.input, not both")
    if len(paths) == 1:
        values["predict__input"] = paths[0]
    config = command.resolve(session, recipe, values)
    asked = [*paths] or [config.predict.input]
    if not config.tracking.enabled:
        raise UsageError("predict needs MLflow, where its model is; without it there are preprocess and train")
    if not asked[0]:
        raise UsageError(
            "predict.input: not given; files, a folder, a list of files, a manifest.json, runs:/ID/dataset"
        )
    for name in asked:
        if not name.startswith("runs:/") and not Path(name).expanduser().exists():
            raise UsageError(f"predict.input={name}: no such file or folder")
    with command.refusing():
        preconditions.check("predict", config)
    return _with_list(config, asked) if len(asked) > 1 else config


def _with_list(config: Config, asked: list[str]) -> Config:
    """A config whose input is a list of several files."""
    from segpipe.prediction import inputs
    from segpipe.recording import offline

    files = [Path(name).expanduser().resolve() for name in asked]
    listed = inputs.listed(files, offline.outputs(config.tracking.outputs) / "predictions" / "inputs")
    return config.model_copy(update={"predict": config.predict.model_copy(update={"input": str(listed)})})


@click.command("predict", cls=command.Command, params=[PATHS, *command.options()], sections=SECTIONS)
@click.pass_obj
def main(session: Session, /, recipe: str, paths: tuple[str, ...], **values: Any) -> None:
    """Segment files, folders, a list of files or a dataset with the champion or any other model.

    Exit code 0: all is segmented; 3: some files failed, predictions.csv says which and why; 1: all failed, or it can't
    begin; 2: a knob is wrong; 130, 143: interrupted, the same command goes on.
    """
    config = checked(session, recipe, values, paths)
    with command.recorded(session, "predict", config):
        from segpipe.orchestration import predictions

        failed = predictions.predict(session.screen, config)
    if failed:
        session.say(f"{failed} failed")
        sys.exit(SOME_FAILED)


if __name__ == "__main__":
    main()
