"""A dataset from raw data, and where it lies without MLflow."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.config.sections import Config
from segpipe.data.manifest import FILE, Manifest
from segpipe.orchestration import checking
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.session import Session

if TYPE_CHECKING:
    from segpipe.data.checking.reading import Check


def build(screen: Screen, config: Config, folder: Path, show: Callable[["Check"], None] | None = None) -> Manifest:
    """Write a dataset with pictures of a few training cases into an empty folder. `show` is called where the check
    finds something, before that ends it.
    """
    from segpipe.data import dataset_writer, splits
    from segpipe.data.checking.reading import Check
    from segpipe.data.dataset import Dataset
    from segpipe.data.readers import open_reader
    from segpipe.plots import cases

    check = Check(config, open_reader(config), screen.progress("preprocess"))
    if config.split.val and splits.carves_validation(check.cases):
        screen.say("the data's own splits have no validation set: patients for it are drawn from training (split.val)")
    try:
        manifest = dataset_writer.write(config, check, folder)
    finally:
        checking.tell(screen, check)
        if show and check.findings:
            show(check)
    cases.dataset(Dataset(folder, manifest), folder / "samples.png")
    return manifest


def build_without_mlflow(session: Session, config: Config) -> tuple[Path, str]:
    """The dataset's folder under tracking.outputs, made if it is not there, and the step's key."""
    from segpipe.recording import offline

    key = session.keys.key("preprocess", config, {}).digest
    folder = offline.outputs(config.tracking.outputs) / "datasets" / key[:16]
    if not (folder / FILE).is_file():
        partial = folder.with_suffix(f".partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            build(session.screen, config, partial)
            partial.rename(folder)
        except OSError:
            if not (folder / FILE).is_file():  # no other process has made it meanwhile
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder, key
