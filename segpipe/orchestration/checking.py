"""The check of a data set: its findings on the screen, as a page and as numbers."""

from pathlib import Path

from segpipe.config.sections import Config
from segpipe.data.checking.reading import Check
from segpipe.orchestration.screen import Screen
from segpipe.orchestration.step_table import CHECK


def tell(screen: Screen, check: Check) -> None:
    """Say what is found but for errors, which end the command and are told by it."""
    for one in check.findings:
        if one.severity != "error":
            screen.say(f"{one.severity}: {one.told}")


def show(screen: Screen, config: Config, check: Check) -> None:
    """Make the page of a check an artifact of the active run, and say where it is."""
    from segpipe.evaluation.report import data_page
    from segpipe.tracking import artifacts, runs

    with artifacts.folder(CHECK.output) as folder:
        data_page.write(check, config, folder)
    screen.say(f"see {artifacts.place(runs.active(), CHECK.page)}")


def run(screen: Screen, config: Config, folder: Path) -> Check:
    """Read a data set once, tell what is found, and write data_report.html and data_report.json into a folder.

    Raises InputError where there is no data set to read.
    """
    from segpipe.data.manifest import SPLITS
    from segpipe.data.readers import open_reader
    from segpipe.evaluation.report import data_page

    check = Check(config, open_reader(config), screen.progress("check"))
    for split in SPLITS:
        for _ in check.read(split):
            pass
    check.end()
    tell(screen, check)
    data_page.write(check, config, folder)
    return check
