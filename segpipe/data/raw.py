"""The folder with the raw data: whether it exists, and what it holds."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from segpipe.config.sections import DataConfig
from segpipe.data import tables
from segpipe.errors import InputError
from segpipe.files import hashes

SYSTEM = ("thumbs.db", "desktop.ini")  # beside hidden files
PICTURES, VOLUMES = ("images", "masks"), "derivatives"


def of_the_system(path: Path) -> bool:
    """Whether a file is hidden, or one that a system leaves behind: never data."""
    return path.name.startswith(".") or path.name.lower() in SYSTEM


def fault_of_name(path: Path) -> str:
    """What is wrong with the path of a file, which tables and manifests have to hold; empty where nothing is."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return f"{os.fsencode(path).decode('utf-8', 'backslashreplace')}: a name that is not UTF-8; rename the file"
    return ""


def parts(root: Path, layout: str) -> list[Path]:
    """The folders of a layout, `nifti` or `folder`, that a root has; `folder` at the root and below its splits."""
    if layout == "nifti":
        return [*sorted(root.glob("sub-*/")), *root.glob(f"{VOLUMES}/")]
    splits = (path for path in sorted(root.glob("*/")) if path.name.lower() in tables.SPLITS)
    return [place / part for place in (root, *splits) for part in PICTURES if (place / part).is_dir()]


def check_root(root: str) -> Path:
    """The data root. Raises InputError unless it is a folder with something in it."""
    if not root:
        raise InputError("data.root: not given; pass --data.root FOLDER or set SEGPIPE_DATA")
    path = Path(root)
    if not path.exists():
        raise InputError(f"data.root {path}: no such folder")
    if not path.is_dir():
        raise InputError(f"data.root {path}: a file; give the folder that holds the data")
    if not any(path.iterdir()):
        raise InputError(f"data.root {path}: empty folder")
    return path


def files(config: DataConfig, progress: hashes.Progress | None = None) -> dict[str, str]:
    """SHA-256 (64 hex digits) of every raw file, by its path below the root: those below its `parts`, and the
    table of cases; not hidden ones and those of the system. Links are followed.

    The phantom has none, because its config and code say it all. `progress` is called for files that have to be read.
    Raises InputError where the root or a file can't be read.
    """
    if config.format == "phantom":
        return {}
    root = check_root(config.root)
    found = [path for path in root.iterdir() if tables.is_table(path)]
    for top in parts(root, config.format):
        found += [Path(folder) / name for folder, _, names in os.walk(top, followlinks=True) for name in names]
    shown = sorted(path for path in found if not of_the_system(path))
    try:
        return {path.relative_to(root).as_posix(): known for path, known in hashes.of(shown, root, progress).items()}
    except OSError as error:
        raise InputError(f"data.root {root}: {error.filename}: {error.strerror}; repair or remove that file") from None


def digest(files: Mapping[str, str]) -> str:
    """Digest (16 hex digits) of the paths and digests of raw files; of none it is empty."""
    total = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.split("/")):
        total.update(os.fsencode(name) + b"\0" + bytes.fromhex(files[name]))
    return total.hexdigest()[:16] if files else ""
