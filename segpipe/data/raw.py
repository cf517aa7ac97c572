"""The folder with the raw data: whether it is there, and what it holds."""

import hashlib
import os
from pathlib import Path

from segpipe.config import DataConfig
from segpipe.errors import InputError


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


def digest(config: DataConfig) -> str:
    """Digest (16 hex digits) of every raw file's path and bytes; hidden files do not count, links are followed.

    The phantom's is empty, because its config and code say it all. Raises InputError where the root is not there.
    """
    if config.format == "phantom":
        return ""
    root, total = check_root(config.root), hashlib.sha256()
    found = [Path(folder) / name for folder, _, names in os.walk(root, followlinks=True) for name in names]
    for path in sorted(path for path in found if not path.name.startswith(".")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
