"""One row per format. A new format is one file with a Reader and one row here."""

import fnmatch
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from segpipe.config.sections import Config, DataConfig
from segpipe.data import raw
from segpipe.data.readers.folder import FolderReader, holds_stacks
from segpipe.data.readers.nifti import NiftiReader
from segpipe.data.volume import Case, Found, Kind, Volume
from segpipe.errors import FaultsError, InputError
from segpipe.files import project


class Reader(Protocol):
    """Finds cases and loads them."""

    root: Path

    def find(self) -> Found:
        """The cases, without opening their files. Raises InputError where there is no layout to find any in."""

    def load(self, case: Case) -> Volume:
        """One case. Raises InputError naming the file that is damaged or does not fit."""


class Format(NamedTuple):
    """A format of raw data: its reader, made from a DataConfig whose root and channels are filled in; what its cases
    are; the channels where data.channels names none; what shows that a folder has it; and whether the data is simulated
    first.
    """

    reader: Callable[[DataConfig], Reader]
    kind: Kind
    channels: tuple[str, ...]
    signs: tuple[str, ...] = ()
    simulated: bool = False


READERS = {
    "phantom": Format(NiftiReader, "volume", ("dwi", "adc"), simulated=True),
    "nifti": Format(NiftiReader, "volume", ("dwi", "adc"), signs=("sub-*/", "derivatives/")),
    "folder": Format(FolderReader, "picture", ("grey",), signs=("images/", "masks/")),
    "stacks": Format(partial(FolderReader, kind="volume"), "volume", ("grey",), signs=("images/", "masks/")),
}


def channel_names(data: DataConfig) -> tuple[str, ...]:
    """The channels read: data.channels, or the format's own."""
    return data.channels or READERS[data.format].channels


def open_reader(config: Config) -> Reader:
    """The configured reader. Simulated patients are written first, unless they are there already.

    Raises InputError where the data root is missing, not a folder or empty.
    """
    if READERS[config.data.format].simulated:
        from segpipe.data import phantom

        base = Path(config.data.root or project.home() / "data").resolve()
        return reader_of(config.data, phantom.simulate(base, config.data.patients, config.seed, config.data.site_gap))
    return reader_of(config.data, raw.check_root(config.data.root))


def reader_of(data: DataConfig, root: Path) -> Reader:
    """The reader of the configured format for the files in `root`; nothing is simulated."""
    given = {"root": str(root), "channels": channel_names(data)}
    return READERS[data.format].reader(data.model_copy(update=given))


def all_cases(reader: Reader) -> list[Case]:
    """All cases of a folder. Raises InputError naming what is missing or does not fit."""
    found = reader.find()
    if found.faults:
        raise FaultsError(found.faults)
    return found.cases


def detect(root: str) -> str:
    """The format of a folder, by what is in it. Raises InputError where it is none, or could be several."""
    path = raw.check_root(root)
    signs = {name: row.signs for name, row in READERS.items() if row.signs}
    there = {name: [part.name for part in raw.parts(path, name)] for name in signs}
    found = [n for n, wanted in signs.items() if all(fnmatch.filter(there[n], sign.rstrip("/")) for sign in wanted)]
    if found == ["folder", "stacks"]:
        return "stacks" if holds_stacks(path) else "folder"
    if len(found) == 1:
        return found[0]
    named = {wanted: " or ".join(n for n in signs if signs[n] == wanted) for wanted in signs.values()}
    known = ", or ".join(f"{' and '.join(wanted)} ({names})" for wanted, names in named.items())
    raise InputError(f"data.root {path}: holds {'more than one of' if found else 'neither'} {known}; give data.format")
