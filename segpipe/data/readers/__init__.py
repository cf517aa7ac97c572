"""One row per format. A new format is one file with a Reader and one row here."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from segpipe.config import Config
from segpipe.data.readers.folder import FolderReader
from segpipe.data.readers.nifti import NiftiReader
from segpipe.data.readers.phantom import PhantomReader
from segpipe.data.volume import Case, Volume
from segpipe.errors import InputError


class Reader(Protocol):
    """Finds cases and loads them."""

    root: Path

    def cases(self) -> list[Case]:
        """All cases, sorted by name. Raises InputError naming what is missing or does not fit."""
        ...

    def load(self, case: Case) -> Volume:
        """One case. Raises InputError naming the file that is damaged or does not fit."""
        ...


READERS: dict[str, Callable[[Config], Reader]] = {"phantom": PhantomReader, "nifti": NiftiReader, "folder": FolderReader}


def open_reader(config: Config) -> Reader:
    """The configured reader. Raises InputError where the data root is missing, not a folder or empty."""
    if config.data.format != "phantom":
        check_root(config.data.root)
    return READERS[config.data.format](config)


def check_root(root: str) -> None:
    """Raise InputError unless `root` is a folder with something in it."""
    if not root:
        raise InputError("data.root: not given; pass --data.root FOLDER or set SEGPIPE_DATA")
    path = Path(root)
    if not path.exists():
        raise InputError(f"data.root {path}: no such folder")
    if not path.is_dir():
        raise InputError(f"data.root {path}: a file; give the folder that holds the data")
    if not any(path.iterdir()):
        raise InputError(f"data.root {path}: empty folder")
