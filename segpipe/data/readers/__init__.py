"""One row per format. A new format is one file with a Reader and one row here."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from segpipe.config.sections import Config
from segpipe.data import raw
from segpipe.data.readers.folder import FolderReader
from segpipe.data.readers.nifti import NiftiReader
from segpipe.data.readers.phantom import PhantomReader
from segpipe.data.volume import Case, Volume


class Reader(Protocol):
    """Finds cases and loads them."""

    root: Path

    def cases(self) -> list[Case]:
        """All cases, sorted by name. Raises InputError naming what is missing or does not fit."""
        ...

    def load(self, case: Case) -> Volume:
        """One case. Raises InputError naming the file that is damaged or does not fit."""
        ...


READERS: dict[str, Callable[[Config], Reader]] = {
    "phantom": PhantomReader,
    "nifti": NiftiReader,
    "folder": FolderReader,
}


def open_reader(config: Config) -> Reader:
    """The configured reader. Raises InputError where the data root is missing, not a folder or empty."""
    if config.data.format != "phantom":
        raw.check_root(config.data.root)
    return READERS[config.data.format](config)
