"""What a folder held when it was finished: size and SHA-256 of each file, by which later damage is found."""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segpipe.errors import InputError
from segpipe.files import hashes

FILE = "inventory.json"


class Written(NamedTuple):
    """A file as it was written; `size` in bytes."""

    size: int
    sha256: str


Inventory = dict[str, Written]


def of(folder: Path) -> Inventory:
    """What a folder holds now, by path below it, hidden files left out."""
    found = [Path(inner) / name for inner, _, names in os.walk(folder) for name in names]
    names = {path: path.relative_to(folder) for path in found}
    shown = sorted(p for p in found if names[p] != Path(FILE) and not any(n.startswith(".") for n in names[p].parts))
    read = hashes.of(shown, folder)
    return {names[path].as_posix(): Written(path.stat().st_size, digest) for path, digest in read.items()}


def write(folder: Path) -> None:
    """Write the inventory of a complete folder."""
    save(of(folder), folder)


def text(entries: Inventory) -> str:
    """An inventory as its file holds it."""
    return json.dumps({name: entries[name]._asdict() for name in sorted(entries)}, indent=1) + "\n"


def save(entries: Inventory, folder: Path) -> None:
    """Write a folder's inventory atomically."""
    partial = folder / f".{FILE}.{os.getpid()}"
    try:
        partial.write_text(text(entries), encoding="utf-8")
        partial.replace(folder / FILE)
    finally:
        partial.unlink(missing_ok=True)


def read(folder: Path) -> Inventory:
    """A folder's inventory. Raises InputError where it is damaged, OSError where there is none."""
    return parse((folder / FILE).read_bytes(), str(folder / FILE))


def parse(content: bytes, where: str) -> Inventory:
    """The entries of an inventory. Raises InputError, naming `where`, for anything else."""
    try:
        entries = {name: Written(**written) for name, written in json.loads(content).items()}
        if not all(_sound(name, *written) for name, written in entries.items()):
            raise ValueError("an invalid entry")
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{where}: not a valid inventory; run the step that wrote it again") from None
    return entries


def _sound(name: str, size: object, sha256: object) -> bool:
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and name == path.as_posix()
    return inside and isinstance(size, int) and isinstance(sha256, str)


def damage(folder: Path, called: str = "") -> str:
    """What is wrong with a folder since its inventory was written, in words that call it `called`, by default its own
    name; empty where nothing is.
    """
    called = called or folder.name
    try:
        entries = read(folder)
        sizes = {name: (folder / name).stat().st_size for name in entries if (folder / name).is_file()}
        if by_size := missized(sizes, entries, called):
            return by_size
        now = hashes.of([folder / name for name in entries], folder)
    except (FileNotFoundError, NotADirectoryError):
        return f"{called}/{FILE} is missing"
    except InputError:
        return f"{called}/{FILE} is not what was written"
    except OSError as error:
        return f"{called} can't be read ({error.strerror})"
    wrong = (name for name, written in entries.items() if now[folder / name] != written.sha256)
    return next((f"{called}/{name} is not what was written" for name in wrong), "")


def missized(sizes: Mapping[str, int], entries: Inventory, called: str) -> str:
    """The first entry that is missing or has a different size, in words; empty if there is none."""
    for name, written in entries.items():
        if name not in sizes:
            return f"{called}/{name} is missing"
        if sizes[name] != written.size:
            return f"{called}/{name} is {'cut short' if sizes[name] < written.size else 'not what was written'}"
    return ""
